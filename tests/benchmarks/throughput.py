"""Speed and memory against peers and against physical limits, as ratios of medians taken in one process.

    python -m tests.benchmarks.throughput                       engine and end to end, all models, on the CPU
    python -m tests.benchmarks.throughput --device cuda         the same on a GPU
    python -m tests.benchmarks.throughput --models resnet50 --parts engine --json figures.json
    python -m tests.benchmarks.throughput --parts files         the pipeline around an engine that answers at once
    python -m tests.benchmarks.throughput --parts memory        peak memory after 1,000 and 10,000 images

The peers (`grad-cam`, `torchcam`, `captum`) come with the extra `bench`; one that is not installed is left out.
Weights are random, but for a head with one likely class, so that precision changes predictions no more than it does
with trained weights; they cost the same time.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_loader, resolve_data_config
from timm.data.dataset import ImageDataset
from torch import Tensor, nn

from camcli.config.schema import RunConfig
from camcli.engine.engine import Engine
from camcli.engine.layers import TargetLayer
from camcli.engine.targets import likeliest
from camcli.errors import ItemError
from camcli.images.find import discover
from camcli.images.memory import keep_freed_memory
from camcli.pipeline.job import Job
from camcli.pipeline.prepare import prepare
from camcli.pipeline.run import perform
from tests.benchmarks.simulated_device import SIZES as IMAGES
from tests.benchmarks.simulated_device import file_work, pipeline

MODELS = {
    "resnet50": "resnet50",
    "mobilenetv3_large": "mobilenetv3_large_100",
    "convnext_tiny": "convnext_tiny",
    "vit_b_16": "vit_base_patch16_224",
}
LOOP = 8

Work = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One figure: seconds per image, the median of the rounds."""

    part: str
    model: str
    what: str
    seconds: float


@dataclass(frozen=True)
class Ratio:
    """One figure against another of the same part, and what it was to reach."""

    part: str
    model: str
    what: str
    value: float
    wanted: str


def medians(works: Mapping[str, tuple[Work, int]], rounds: int) -> dict[str, float]:
    """Seconds per image of each work on so many images, taken in turns, so that a busy machine slows all alike.

    One round is warm-up.
    """
    taken: dict[str, list[float]] = {name: [] for name in works}
    for round_ in range(rounds + 1):
        for name, (work, images) in works.items():
            gc.collect()
            start = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if round_:
                taken[name].append((time.perf_counter() - start) / images)
    return {name: statistics.median(values) for name, values in taken.items()}


@cache
def weights_of(name: str) -> Path:
    """A file of random weights whose head prefers the first class."""
    module = timm.create_model(MODELS[name])
    with torch.no_grad():
        module.get_classifier().bias[0] += 10
    file = Path(tempfile.mkdtemp()) / f"{name}.safetensors"
    save_file(module.state_dict(), file)
    return file


def config_of(name: str, precision: str, batch: int, device: str, overlay: str = "original") -> RunConfig:
    """A timm model with random weights, Grad-CAM of the top class; overlay: its size, as in a config."""
    model = {"source": "timm", "name": MODELS[name], "weights": str(weights_of(name))}
    runtime = {"precision": precision, "batch_size": batch, "device": device}
    return RunConfig.model_validate({"model": model, "runtime": runtime, "overlay": {"size": overlay}})


def bare(name: str, device: str, layout: torch.memory_format = torch.contiguous_format) -> nn.Module:
    """The model as its library builds it, with the same weights for all."""
    module: nn.Module = timm.create_model(MODELS[name]).eval().requires_grad_(False)
    module.load_state_dict(load_file(weights_of(name)))
    return module.to(device).to(memory_format=layout)


# ---- the engine alone: tensors in, maps at input size out


def ours(engines: Sequence[Engine], pixels: Tensor) -> Work:
    """camcli's engines, each on a batch uint8 [B,H,W,3] at the same time."""

    def one(engine: Engine) -> object:
        answers = engine.explain(pixels, likeliest)
        heats = [torch.from_numpy(a.heatmaps[0].heat) for a in answers if not isinstance(a, ItemError)]
        return F.interpolate(torch.stack(heats)[:, None], size=pixels.shape[1:3], mode="bilinear")

    def work() -> object:
        with ThreadPoolExecutor(len(engines)) as pool:
            return list(pool.map(one, engines))

    return work if len(engines) > 1 else lambda: one(engines[0])


def plain_forward(module: nn.Module, inputs: Tensor, precision: str) -> Work:
    """The limit: predictions without any explanation."""

    def work() -> object:
        half = precision == "bf16"
        with torch.inference_mode(), torch.autocast(inputs.device.type, torch.bfloat16, enabled=half):
            return module(inputs)

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


def engine_rows(name: str, batch: int, device: str, rounds: int) -> list[Row]:
    """Engine, forward and peers on one batch."""
    works: dict[str, tuple[Work, int]] = {}
    for precision in ("fp32", "bf16"):
        ready = prepare(config_of(name, precision, batch, device), (), batch_size=batch)
        engines = ready.engines if device != "cpu" else ready.engines[:1]
        pixels = torch.randint(0, 256, (batch, *ready.model.preprocess.size, 3), dtype=torch.uint8)
        inputs = engines[0].normalise(pixels)
        for layout in (torch.contiguous_format, torch.channels_last):
            about = f"{precision}{' channels_last' if layout == torch.channels_last else ''}"
            module, laid_out = bare(name, device, layout), inputs.contiguous(memory_format=layout)
            works[f"forward {about}"] = plain_forward(module, laid_out, precision), batch
        works[f"camcli {precision}"] = ours(engines, pixels), batch * len(engines)
    trainable = bare(name, device).requires_grad_(True)
    for peer, work in peers(trainable, ready.layers[0], inputs.contiguous()).items():
        works[peer] = work, batch
    return [Row("engine", name, what, s) for what, s in medians(works, rounds).items()]


def engine_ratios(name: str, seconds: Mapping[str, float], on_gpu: bool) -> list[Ratio]:
    """Against the plain forward in the same precision, colours last, and against the peers in theirs."""
    found = []
    for precision in ("fp32", "bf16"):
        value = seconds[f"camcli {precision}"] / seconds[f"forward {precision} channels_last"]
        wanted = "<= 1.18" if on_gpu else "<= 1.10"
        found.append(Ratio("engine", name, f"camcli {precision} / forward", value, wanted))
    wishes = {"grad-cam": ">= 2.3", "captum": ">= 1.5", "torchcam": ">= 1"}
    for peer in wishes.keys() & seconds.keys():
        found.append(
            Ratio("engine", name, f"{peer} / camcli fp32", seconds[peer] / seconds["camcli fp32"], wishes[peer])
        )
    if "grad-cam" in seconds:
        value = seconds["grad-cam"] / seconds["camcli bf16"]
        found.append(Ratio("engine", name, "grad-cam / camcli bf16", value, ">= 6"))
    return found


# ---- end to end: JPEG on disk in, overlay and report on disk out


def write_images(folder: Path, size: tuple[int, int], count: int) -> list[Path]:
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


def end_to_end(config: RunConfig, paths: Sequence[Path], out: Path) -> Work:
    """`camcli run`, without the start of the interpreter and the loading of weights, as for all others."""
    items = discover([str(path) for path in paths])
    ready = prepare(config, items)
    print(f"{config.model.name}: {ready.precision.used}, {ready.precision.why}; batches of {ready.batch_size}")
    return lambda: perform(Job(config, items, Path(tempfile.mkdtemp(dir=out))), prepared=ready)


def decode_and_encode(paths: Sequence[Path], out: Path, threads: int) -> Work:
    """The other limit: Pillow's own decode and encode of the same files, from disk to disk, on as many threads."""

    def one(path: Path) -> None:
        with Image.open(path) as image:
            image.save(out / path.name, quality=90)

    def work() -> object:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(one, paths))

    return work


def timm_predicts(name: str, folder: Path, batch: int, device: str) -> Work:
    """What timm's inference script does: its dataset, its loader on all cores, a plain fp32 forward; no heatmap."""
    module = bare(name, device)
    loader = create_loader(
        ImageDataset(str(folder)),
        batch_size=batch,
        use_prefetcher=device != "cpu",
        num_workers=os.cpu_count() or 1,
        persistent_workers=True,
        device=torch.device(device),
        **resolve_data_config(model=module),
    )

    def work() -> object:
        with torch.inference_mode():
            return [module(inputs).softmax(dim=1).topk(5)[1].cpu() for inputs, _ in loader]

    return work


def grad_cam_loop(name: str, layer: TargetLayer, paths: Sequence[Path], device: str, out: Path) -> Work:
    """The loop that a person writes around `grad-cam`: one image at a time, an overlay of 224 px saved with OpenCV."""
    import cv2
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.image import show_cam_on_image
    from torchvision import transforms

    module = bare(name, device).requires_grad_(True)
    target, layout = module.get_submodule(layer.taps[0].path), layer.taps[0].layout
    reshape = None if layout.kind == "nchw" else layout.to_maps
    prepare = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()])

    def work() -> object:
        with GradCAM(module, [target], reshape_transform=reshape) as cam:
            for path in paths:
                tensor = prepare(Image.open(path).convert("RGB"))
                heat = cam(tensor[None].to(device), None)[0]
                cv2.imwrite(str(out / path.name), show_cam_on_image(tensor.permute(1, 2, 0).numpy(), heat)[..., ::-1])
        return None

    return work


def end_to_end_rows(name: str, size: str, images: int, batch: int, device: str, rounds: int) -> list[Row]:
    """camcli, its two limits and the peers on the same files."""
    with tempfile.TemporaryDirectory() as folder:
        out, loaded_images = Path(folder) / "out", Path(folder) / "in"
        out.mkdir()
        loaded_images.mkdir()
        paths = write_images(loaded_images, IMAGES[size], images)
        ready = prepare(config_of(name, "fp32", batch, device), (), batch_size=batch)
        works: dict[str, tuple[Work, int]] = {}
        for precision in ("fp32", "bf16"):
            inputs = torch.zeros(batch, 3, *ready.model.preprocess.size, device=device)
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            forward = plain_forward(bare(name, device, torch.channels_last), inputs, precision)
            works[f"forward {precision}"] = forward, batch
        works["decode + encode"] = decode_and_encode(paths, out, os.cpu_count() or 1), images
        works["timm predicts"] = timm_predicts(name, loaded_images, batch, device), images
        for precision in ("fp32", "bf16"):
            works[f"camcli {precision}"] = end_to_end(config_of(name, precision, batch, device), paths, out), images
        small = config_of(name, "bf16", batch, device, overlay="model")
        works["camcli bf16, overlays of the model's size"] = end_to_end(small, paths, out), images
        if find_spec("pytorch_grad_cam"):
            works["grad-cam loop"] = grad_cam_loop(name, ready.layers[0], paths[:LOOP], device, out), LOOP
        return [Row(f"end to end {size}", name, what, s) for what, s in medians(works, rounds).items()]


def end_to_end_ratios(part: str, name: str, seconds: Mapping[str, float]) -> list[Ratio]:
    """Against the limits, against the loop, and against predicting alone."""
    files = seconds["decode + encode"]
    found = []
    for precision in ("fp32", "bf16"):
        value = seconds[f"camcli {precision}"] / max(seconds[f"forward {precision}"], files)
        found.append(Ratio(part, name, f"camcli {precision} / max(forward, decode + encode)", value, "<= 1.15"))
    if "4000x3000" in part:
        value = files / min(seconds[f"camcli {precision}"] for precision in ("fp32", "bf16"))
        found.append(Ratio(part, name, "decode + encode / camcli", value, ">= 0.6"))
    for ours in ("camcli bf16", "camcli bf16, overlays of the model's size"):
        if "grad-cam loop" in seconds:
            value = seconds["grad-cam loop"] / seconds[ours]
            found.append(Ratio(part, name, f"grad-cam loop / {ours}", value, ">= 4"))
    value = seconds["timm predicts"] / seconds["camcli bf16"]
    return [*found, Ratio(part, name, "timm predicts / camcli bf16", value, "> 1")]


def files_rows(size: str, images: int, batch: int, rounds: int) -> list[Row]:
    """The pipeline around an engine that answers at once, and the file work that it cannot do without."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_images(folder, IMAGES[size], images)
        config = config_of("mobilenetv3_large", "fp32", batch, "cpu")
        preprocess = prepare(config, (), batch_size=1).model.preprocess
        needed = file_work(config, preprocess, paths, folder, os.cpu_count() or 1)
        works = {"file work": (needed, images), "camcli": (pipeline(config, paths, folder), images)}
        return [Row(f"files {size}", "none", what, s) for what, s in medians(works, rounds).items()]


def files_ratios(part: str, seconds: Mapping[str, float]) -> list[Ratio]:
    """Against decode, resize, paint, encode and write in processes that share nothing, on all cores."""
    return [Ratio(part, "none", "camcli / file work", seconds["camcli"] / seconds["file work"], "<= 1.15")]


def resident_mib(images: int) -> float:
    """Peak resident memory, in MiB, of a run of the demo model over `images` images in a process of its own."""
    code = (
        "import sys\nfrom camcli.images.memory import keep_freed_memory\nkeep_freed_memory()\n"
        "from pathlib import Path\nfrom camcli.config.file import load_config\n"
        "from camcli.images.find import discover\nfrom camcli.pipeline.job import Job\n"
        "from camcli.pipeline.run import perform\n"
        "perform(Job(load_config(None).config, discover([sys.argv[1]]), Path(sys.argv[2])))\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        loaded_images = Path(folder) / "in"
        loaded_images.mkdir()
        [original] = write_images(Path(folder), IMAGES["500x375"], 1)
        for index in range(images):
            os.link(original, loaded_images / f"{index:05}.jpg")
        process = os.posix_spawn(
            "/proc/self/exe", ["python", "-c", code, str(loaded_images), f"{folder}/out"], dict(os.environ)
        )
        _, status, usage = os.wait4(process, 0)
        assert status == 0
    return usage.ru_maxrss / 1024


def table(rows: Sequence[Row], ratios: Sequence[Ratio]) -> str:
    """Markdown: milliseconds per image, then the ratios."""
    lines = ["| part | model | what | ms/image |", "|---|---|---|---|"]
    lines += [f"| {row.part} | {row.model} | {row.what} | {1000 * row.seconds:.1f} |" for row in rows]
    lines += ["", "| part | model | ratio | value | wanted |", "|---|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {r.part} | {r.model} | {r.what} | {r.value:.2f} | {r.wanted} |" for r in ratios)])


def machine(device: str) -> str:
    """What the figures were taken on."""
    names = [line.partition(":")[2].strip() for line in _cpu_lines() if line.startswith("model name")]
    cpu = f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"
    gpu = "" if device == "cpu" else f", {torch.cuda.get_device_name(device)}"
    return f"{cpu}{gpu}; torch {torch.__version__}, timm {timm.__version__}, Pillow {PIL.__version__}"


def _cpu_lines() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text().splitlines() if file.exists() else []


def by_part(rows: Sequence[Row]) -> dict[tuple[str, str], dict[str, float]]:
    """(part, model) -> seconds by what was measured."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        found.setdefault((row.part, row.model), {})[row.what] = row.seconds
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument(
        "--parts", nargs="+", choices=["engine", *IMAGES, "files", "memory"], default=["engine", *IMAGES, "files"]
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, help="images per forward pass; 8 on a CPU, 64 on a GPU")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    batch = args.batch or (8 if args.device == "cpu" else 64)
    print(machine(args.device))
    rows, ratios = [], []
    for name in args.models:
        for part in args.parts:
            if part == "engine":
                rows += engine_rows(name, batch, args.device, args.rounds)
            elif part in IMAGES:
                rows += end_to_end_rows(name, part, args.images, batch, args.device, args.rounds)
    for size in IMAGES if "files" in args.parts else ():
        rows += files_rows(size, args.images, batch, args.rounds)
    for (part, name), seconds in by_part(rows).items():
        if part.startswith("files"):
            ratios += files_ratios(part, seconds)
            continue
        of_engine = part == "engine"
        ratios += (
            engine_ratios(name, seconds, args.device != "cpu") if of_engine else end_to_end_ratios(part, name, seconds)
        )
    print(table(rows, ratios))
    peaks = {images: round(resident_mib(images)) for images in (1_000, 10_000) if "memory" in args.parts}
    print("".join(f"peak after {images} images: {peak} MiB\n" for images, peak in peaks.items()), end="")
    if args.json:
        found = {
            "machine": machine(args.device),
            "rows": [asdict(r) for r in rows],
            "ratios": [asdict(r) for r in ratios],
        }
        args.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    keep_freed_memory()
    main()
