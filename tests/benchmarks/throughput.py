"""Speed and memory against peers and against physical limits, as ratios of medians taken in one process.

    python -m tests.benchmarks.throughput                       engine and end to end, all models
    python -m tests.benchmarks.throughput --models resnet50 --images 32 --json figures.json
    python -m tests.benchmarks.throughput --memory              resident memory after 1,000 and 10,000 images

The peers (`grad-cam`, `torchcam`, `captum`) come with the extra `bench`; one that is not installed is left out.
Weights are random: they cost the same time as trained ones.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_loader, resolve_data_config
from timm.data.dataset import ImageDataset
from torch import Tensor, nn

from camcli.config import RunConfig
from camcli.engine import Engine
from camcli.errors import ItemError
from camcli.images import decode
from camcli.inputs import discover
from camcli.layers import TargetLayer, resolve_layer
from camcli.methods import METHODS
from camcli.models import LoadedModel, load_model
from camcli.pipeline import run

MODELS = {
    "resnet50": "resnet50",
    "mobilenetv3_large": "mobilenetv3_large_100",
    "convnext_tiny": "convnext_tiny",
    "vit_b_16": "vit_base_patch16_224",
}
PICTURES = {"500x375": (500, 375), "4000x3000": (4000, 3000)}
BATCH = 8

Work = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One figure: seconds per image, the median of the rounds."""

    part: str
    model: str
    what: str
    seconds: float


def medians(works: dict[str, Work], images: int, rounds: int) -> dict[str, float]:
    """Seconds per image of each work, taken in turns so that a busy machine slows all alike; one round is warm-up."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for round_ in range(rounds + 1):
        for name, work in works.items():
            gc.collect()
            start = time.perf_counter()
            work()
            if round_:
                taken[name].append((time.perf_counter() - start) / images)
    return {name: statistics.median(values) for name, values in taken.items()}


def build(name: str) -> LoadedModel:
    """A timm model with random weights."""
    config = RunConfig.model_validate({"model": {"source": "timm", "name": MODELS[name], "weights": "none"}})
    return load_model(config.model, config.input)


# ---- the engine alone: tensors in, maps at input size out


def ours(model: LoadedModel, layer: TargetLayer, pixels: Tensor, precision: str, channels_last: bool) -> Work:
    """camcli's engine on uint8 [B,H,W,3]."""
    model.module.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    engine = Engine(model, [layer], [METHODS.get("gradcam")], "cpu", precision)

    def work() -> object:
        answers = engine.explain(pixels, lambda probabilities: [int(probabilities.argmax())])
        heats = [torch.from_numpy(a.heatmaps[0].heat) for a in answers if not isinstance(a, ItemError)]
        return F.interpolate(torch.stack(heats)[:, None], size=pixels.shape[1:3], mode="bilinear")

    return work


def plain_forward(module: nn.Module, inputs: Tensor, precision: str, channels_last: bool) -> Work:
    """The limit: predictions without any explanation."""
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def work() -> object:
        module.to(memory_format=layout)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return module(inputs.contiguous(memory_format=layout))

    return work


def peers(module: nn.Module, layer: TargetLayer, inputs: Tensor) -> dict[str, Work]:
    """The documented way of each installed peer, whole batch at once; token layouts get the reshape they ask for."""
    target = module.get_submodule(layer.taps[0].path)
    layout = layer.taps[0].layout
    makers = {
        "grad-cam": ("pytorch_grad_cam", _grad_cam),
        "torchcam": ("torchcam", _torchcam),
        "captum": ("captum", _captum),
    }
    works: dict[str, Work] = {}
    for name, (package, make) in makers.items():
        if find_spec(package) and (layout.kind == "nchw" or name == "grad-cam"):
            works[name] = make(module, target, inputs, None if layout.kind == "nchw" else layout.to_maps)
    return works


def _grad_cam(module: nn.Module, target: nn.Module, inputs: Tensor, reshape: Any) -> Work:
    from pytorch_grad_cam import GradCAM

    def work() -> object:
        with GradCAM(module, [target], reshape_transform=reshape) as cam:
            return cam(inputs, None)

    return work


def _torchcam(module: nn.Module, target: nn.Module, inputs: Tensor, reshape: Any) -> Work:
    from torchcam.methods import GradCAM

    def work() -> object:
        with GradCAM(module, target_layer=target) as extractor:
            logits = module(inputs)
            [maps] = extractor(logits.argmax(dim=1).tolist(), logits)
        return F.interpolate(maps[:, None], size=inputs.shape[-2:], mode="bilinear")

    return work


def _captum(module: nn.Module, target: nn.Module, inputs: Tensor, reshape: Any) -> Work:
    from captum.attr import LayerAttribution, LayerGradCam

    def work() -> object:
        with torch.no_grad():
            classes = module(inputs).argmax(dim=1)
        maps = LayerGradCam(module, target).attribute(inputs, classes, relu_attributions=True)
        return LayerAttribution.interpolate(maps, inputs.shape[-2:], "bilinear")

    return work


def engine_rows(name: str, rounds: int) -> list[Row]:
    """Engine, forward and peers on one batch."""
    model = build(name)
    layer = resolve_layer(model.module, model.preprocess.size)
    pixels = torch.randint(0, 256, (BATCH, *model.preprocess.size, 3), dtype=torch.uint8)
    inputs = Engine(model, [layer], []).normalise(pixels).contiguous()
    trainable = build(name).module.requires_grad_(True)
    works: dict[str, Work] = {}
    for precision in ("fp32", "bf16"):
        for channels_last in (False, True):
            suffix = f"{precision}{' channels_last' if channels_last else ''}"
            works[f"forward {suffix}"] = plain_forward(model.module, inputs, precision, channels_last)
            works[f"camcli {suffix}"] = ours(model, layer, pixels, precision, channels_last)
    works.update(peers(trainable, layer, inputs))
    return [Row("engine", name, what, s) for what, s in medians(works, BATCH, rounds).items()]


# ---- end to end: JPEG on disk in, overlay and report on disk out


def write_pictures(folder: Path, size: tuple[int, int], count: int) -> list[Path]:
    """Photograph-like JPEGs: smooth structure with some grain."""
    rng = np.random.default_rng(0)
    paths = []
    for index in range(count):
        small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        array = np.asarray(small.resize(size, Image.Resampling.BICUBIC), dtype=np.int16)
        grainy = (array + rng.integers(-6, 7, array.shape, dtype=np.int16)).clip(0, 255).astype(np.uint8)
        paths.append(folder / f"{index:05}.jpg")
        Image.fromarray(grainy).save(paths[-1], quality=90)
    return paths


def end_to_end(name: str, paths: Sequence[Path], precision: str, out: Path) -> Work:
    """`camcli run`, without the start of the interpreter and the loading of weights."""
    config = RunConfig.model_validate(
        {
            "model": {"source": "timm", "name": MODELS[name], "weights": "none"},
            "runtime": {"precision": precision, "batch_size": BATCH, "device": "cpu"},
        }
    )
    items = discover([str(path) for path in paths])
    return lambda: run(config, items, Path(tempfile.mkdtemp(dir=out)))


def decode_and_encode(paths: Sequence[Path], out: Path, threads: int) -> Work:
    """The other limit: Pillow's own decode and encode of the same files, from disk to disk, on as many threads."""

    def one(path: Path) -> None:
        with Image.open(path) as image:
            image.save(out / path.name, quality=90)

    def work() -> object:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(one, paths))

    return work


def timm_predicts(name: str, folder: Path) -> Work:
    """What timm's inference script does: its dataset, loader and a plain fp32 forward; no heatmap."""
    module = timm.create_model(MODELS[name]).eval()
    settings = resolve_data_config(model=module)
    workers = os.cpu_count() or 1

    def work() -> object:
        loader = create_loader(
            ImageDataset(str(folder)), batch_size=BATCH, use_prefetcher=False, num_workers=workers, **settings
        )
        with torch.inference_mode():
            return [module(batch).softmax(dim=1).topk(5) for batch, _ in loader]

    return work


def grad_cam_loop(name: str, layer: TargetLayer, paths: Sequence[Path], out: Path) -> Work:
    """The loop that a person writes around `grad-cam`: one image at a time, overlay saved with OpenCV."""
    import cv2
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.image import show_cam_on_image
    from torchvision import transforms

    module = timm.create_model(MODELS[name]).eval()
    target, layout = module.get_submodule(layer.taps[0].path), layer.taps[0].layout
    reshape = None if layout.kind == "nchw" else layout.to_maps
    prepare = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()])

    def work() -> object:
        with GradCAM(module, [target], reshape_transform=reshape) as cam:
            for path in paths:
                tensor = prepare(Image.open(path).convert("RGB"))
                heat = cam(tensor[None], None)[0]
                cv2.imwrite(str(out / path.name), show_cam_on_image(tensor.permute(1, 2, 0).numpy(), heat)[..., ::-1])
        return None

    return work


def end_to_end_rows(name: str, images: int, rounds: int, sizes: Sequence[str]) -> list[Row]:
    """camcli, its two limits and the peers on the same files."""
    model = build(name)
    layer = resolve_layer(model.module, model.preprocess.size)
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            out.mkdir()
            pictures = Path(folder) / "in"
            pictures.mkdir()
            paths = write_pictures(pictures, PICTURES[size], images)
            inputs = torch.zeros(BATCH, 3, *model.preprocess.size)
            forward = plain_forward(model.module, inputs, "fp32", True)
            works: dict[str, Work] = {
                "forward only": lambda forward=forward: [forward() for _ in range(images // BATCH)],  # type: ignore[misc]
                "decode + encode": decode_and_encode(paths, out, os.cpu_count() or 1),
                "timm predicts": timm_predicts(name, pictures),
                "camcli fp32": end_to_end(name, paths, "fp32", out),
                "camcli bf16": end_to_end(name, paths, "bf16", out),
            }
            if find_spec("pytorch_grad_cam"):
                works["grad-cam loop"] = grad_cam_loop(name, layer, paths, out)
            rows += [Row(f"end to end {size}", name, what, s) for what, s in medians(works, images, rounds).items()]
    return rows


def resident_mib(images: int) -> float:
    """Peak resident memory, in MiB, of a run of the demo model over `images` pictures in a process of its own."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom camcli.configfile import load_config\n"
        "from camcli.inputs import discover\nfrom camcli.pipeline import run\n"
        "run(load_config(None).config, discover([sys.argv[1]]), Path(sys.argv[2]))\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder) / "in"
        pictures.mkdir()
        [original] = write_pictures(Path(folder), PICTURES["500x375"], 1)
        for index in range(images):
            os.link(original, pictures / f"{index:05}.jpg")
        process = os.posix_spawn(
            "/proc/self/exe", ["python", "-c", code, str(pictures), f"{folder}/out"], dict(os.environ)
        )
        _, status, usage = os.wait4(process, 0)
        assert status == 0
    return usage.ru_maxrss / 1024


def table(rows: Sequence[Row]) -> str:
    """Markdown: milliseconds per image, and the ratio to camcli in the same part."""
    lines = ["| part | model | what | ms/image |", "|---|---|---|---|"]
    lines += [f"| {row.part} | {row.model} | {row.what} | {1000 * row.seconds:.1f} |" for row in rows]
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--sizes", nargs="*", choices=PICTURES, default=list(PICTURES))
    parser.add_argument("--images", type=int, default=4 * BATCH)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="resident memory at 1,000 and 10,000 images instead")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.memory:
        for images in (1_000, 10_000):
            print(f"{images} images: {resident_mib(images):.0f} MiB")
        return
    rows = [row for name in args.models for row in engine_rows(name, args.rounds)]
    rows += [r for name in args.models for r in end_to_end_rows(name, args.images, args.rounds, args.sizes)]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps([row.__dict__ for row in rows], indent=2))


if __name__ == "__main__":
    main()
