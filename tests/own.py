"""A small network fine-tuned on three shapes, saved in the ways that people save networks.

python -m tests.own FOLDER     writes every file, and prints the line that explains an image with it
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from camcli.demo.scenes import scene
from camcli.models.demo import ARCH, KWARGS, LABELS, MEAN, SIZE, STD, WEIGHTS

SHAPES = ("heart", "ring", "star")
SEED = 7
SCENES = 60
INPUT = f"input={{size: {SIZE}, mean: {list(MEAN)}, std: {list(STD)}, crop: squash}}"
TIMM = f"source: timm, name: {ARCH}, kwargs: {json.dumps(KWARGS)}"


def fine_tuned() -> nn.Module:
    """The embedded network with a new head that knows SHAPES, the same at every call; in evaluation mode."""
    torch.manual_seed(SEED)
    module: nn.Module = timm.create_model(ARCH, num_classes=len(SHAPES), **KWARGS).eval()
    trained = {name: tensor.float() for name, tensor in load_file(WEIGHTS).items() if not name.startswith("fc.")}
    module.load_state_dict(trained, strict=False)
    images, wanted = drawn(SEED, SCENES)
    with torch.no_grad():
        features = module.forward_head(module.forward_features(images), pre_logits=True)  # type: ignore[operator]
    head = module.get_submodule("fc")
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(head(features), wanted).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return module


def drawn(seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Scenes with one of SHAPES each: normalised images [N,3,H,W] and the indices of their classes [N]."""
    wanted = torch.arange(count) % len(SHAPES)
    scenes = [scene(seed, i, labels=[LABELS.index(SHAPES[k])]).image for i, k in enumerate(wanted.tolist())]
    pixels = torch.from_numpy(np.stack(scenes)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (pixels - mean) / std, wanted


@dataclass(frozen=True, slots=True)
class Way:
    """How a network is saved: `write` puts files into a folder, `words` are the options for them, {0} the folder.

    said: what a run says of it, once.
    """

    write: Callable[[nn.Module, Path], object]
    words: tuple[str, ...]
    said: str = ""


def _timm(file: str, more: str = "") -> tuple[str, ...]:
    """Explain with the weights of `file` and the labels that are in it."""
    return ("-s", f"model={{{TIMM}, weights: '{{0}}/{file}'{more}}}", "-s", INPUT)


def _state(module: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    return {prefix + name: tensor.clone() for name, tensor in module.state_dict().items()}


def _blurred(module: nn.Module) -> dict[str, Tensor]:
    """Weights that are not the trained ones: all classes alike."""
    return {name: torch.zeros_like(t) if name.startswith("fc.") else t for name, t in _state(module).items()}


def _optimizer(module: nn.Module) -> dict[str, Any]:
    """Of an optimizer that has made a step, which moved nothing."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.0)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    module.zero_grad()
    return optimizer.state_dict()


def _shards(module: nn.Module, folder: Path) -> None:
    names = list(module.state_dict())
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: module.state_dict()[name] for name in part}, folder / file)
    placed = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))


def _args() -> argparse.Namespace:
    return argparse.Namespace(lr=0.1, output_dir=Path("runs"), classes=list(SHAPES))


LABELLED = f", labels: {json.dumps(list(SHAPES))}"
BY_INDEX = {name: index for index, name in enumerate(SHAPES)}
CHECKPOINTS: Mapping[str, Way] = {
    "plain": Way(lambda m, to: torch.save(_state(m), to / "w.pth"), _timm("w.pth", LABELLED)),
    "safetensors": Way(lambda m, to: save_file(_state(m), to / "w.safetensors"), _timm("w.safetensors", LABELLED)),
    "nested with labels": Way(
        lambda m, to: torch.save({"state_dict": _state(m), "class_to_idx": BY_INDEX, "epoch": 3}, to / "w.pth"),
        _timm("w.pth"),
        "w.pth: took `state_dict`; 3 classes, as many as its head has rows",
    ),
    "arguments and optimizer": Way(
        lambda m, to: torch.save(
            {"model": _state(m), "optimizer": _optimizer(m), "args": _args(), "best": np.float64(0.9)}, to / "w.pth"
        ),
        _timm("w.pth"),
        "w.pth: took `model`",
    ),
    "parallel": Way(
        lambda m, to: torch.save({"model_state_dict": _state(m, "module.")}, to / "w.pth"),
        _timm("w.pth", LABELLED),
        "took `model_state_dict`; prefix `module.` removed",
    ),
    "compiled": Way(
        lambda m, to: torch.save(_state(m, "_orig_mod."), to / "w.pth"),
        _timm("w.pth", LABELLED),
        "prefix `_orig_mod.` removed",
    ),
    "lightning": Way(
        lambda m, to: torch.save(
            {
                "state_dict": _state(m, "model.") | {"criterion.weight": torch.ones(3)},
                "optimizer_states": [_optimizer(m)],
                "hyper_parameters": {"lr": 0.1, "id2label": dict(enumerate(SHAPES))},
                "pytorch-lightning_version": "2.5",
            },
            to / "w.ckpt",
        ),
        _timm("w.ckpt"),
        "took `state_dict`; prefix `model.` removed, 1 tensor without it left out",
    ),
    "head beside its backbone": Way(
        lambda m, to: torch.save(
            {("" if name.startswith("fc.") else "backbone.") + name: t for name, t in _state(m).items()}, to / "w.pth"
        ),
        _timm("w.pth", LABELLED),
        "prefix `backbone.` removed",
    ),
    "averaged, not asked for": Way(
        lambda m, to: torch.save({"state_dict_ema": _blurred(m), "state_dict": _state(m)}, to / "w.pth"),
        _timm("w.pth", LABELLED),
        "took `state_dict` (averaged weights: model.checkpoint_key=state_dict_ema)",
    ),
    "averaged, as asked": Way(
        lambda m, to: torch.save({"ema": {"module": _state(m)}, "net": _blurred(m)}, to / "w.pth"),
        _timm("w.pth", f"{LABELLED}, checkpoint_key: ema.module"),
        "took `ema.module`",
    ),
    "averaged, in the same dictionary": Way(
        lambda m, to: torch.save(
            {f"ema_model.{n}": t for n, t in _blurred(m).items()} | _state(m, "model."), to / "w.pth"
        ),
        _timm("w.pth", LABELLED),
        "prefix `model.` removed",
    ),
    "shards": Way(_shards, _timm("model.safetensors.index.json", LABELLED)),
}
MY_MODEL = f'''"""A module of one's own."""

from pathlib import Path

import torch
from timm import create_model

WEIGHTS = Path(__file__).with_name("w.pth")


def build(stride=8, classes={len(SHAPES)}):
    module = create_model("{ARCH}", num_classes=classes, output_stride=stride)
    module.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    return module


def bare(num_classes={len(SHAPES)}):
    return create_model("{ARCH}", num_classes=num_classes, output_stride=8)


class Named(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = build()

    def forward(self, x):
        features = self.net.forward_features(x)
        return {{"features": features, "logits": self.net.forward_head(features)}}


def named():
    return Named()


def preprocess():
    return {{"size": {SIZE}, "mean": {list(MEAN)}, "std": {list(STD)}, "crop": "squash"}}
'''


def _my_model(module: nn.Module, folder: Path, name: str = "my_model.py") -> None:
    torch.save(module.state_dict(), folder / "w.pth")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(MY_MODEL)


def _python(fields: str, preprocess: str = "preprocess") -> tuple[str, ...]:
    labels = json.dumps(list(SHAPES))
    return ("-s", f"model={{source: python, {fields}, preprocess: '{preprocess}', labels: {labels}}}", "--allow-code")


CODE: Mapping[str, Way] = {
    "a file": Way(_my_model, _python("path: '{0}/my_model.py'")),
    "a file by its name": Way(_my_model, _python("name: '{0}/my_model.py:build', kwargs: {stride: 8}")),
    "a function and a file of weights": Way(
        _my_model, _python("path: '{0}/my_model.py', name: bare, weights: '{0}/w.pth'")
    ),
    "a dictionary of outputs": Way(_my_model, _python("path: '{0}/my_model.py', name: named, output: logits")),
}


def _timm_folder(module: nn.Module, folder: Path) -> None:
    config = {"mean": MEAN, "std": STD, "input_size": (3, SIZE, SIZE), "crop_pct": 1.0, "crop_mode": "squash"}
    module.pretrained_cfg = {**module.pretrained_cfg, **config, "num_classes": len(SHAPES)}  # type: ignore[dict-item, assignment]
    told = {"label_names": list(SHAPES), "num_classes": len(SHAPES)}
    timm.models.save_for_hf(module, folder / "saved", model_config=told, model_args=KWARGS)


FOLDERS: Mapping[str, Way] = {
    "timm's folder": Way(_timm_folder, ("-s", "model={source: timm, path: '{0}/saved'}")),
    "timm's folder by its name": Way(_timm_folder, ("-m", "timm/local-dir:{0}/saved")),
}


def _exported(module: nn.Module, folder: Path) -> None:
    """For any number of images."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = ({0: torch.export.Dim("batch")},)
        program = torch.export.export(module.eval(), (torch.zeros(2, 3, SIZE, SIZE),), dynamic_shapes=shapes)
        torch.export.save(program, folder / "net.pt2")


EXPORTED: Mapping[str, Way] = {
    "exported": Way(
        _exported,
        ("-s", f"model={{source: exported, path: '{{0}}/net.pt2'{LABELLED}}}", "-s", INPUT, "--allow-code"),
    ),
}
WAYS: Mapping[str, Way] = {**CHECKPOINTS, **CODE, **FOLDERS, **EXPORTED}


def command(way: Way, folder: Path) -> tuple[str, ...]:
    """The options that explain images with what was saved into `folder`."""
    return tuple(word.replace("{0}", str(folder)) for word in way.words)


def main() -> None:
    """The command line."""
    module = fine_tuned()
    for name, way in WAYS.items():
        folder = Path(sys.argv[1]) / name.replace(" ", "-").replace(",", "")
        folder.mkdir(parents=True, exist_ok=True)
        way.write(module, folder)
        words = " ".join(f'"{word}"' if " " in word else word for word in command(way, folder))
        print(f"{name}:\n    camcli run sample_images/shapes --out out {words}")


if __name__ == "__main__":
    main()
