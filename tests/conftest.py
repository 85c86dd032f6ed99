"""Shared fixtures: the command in this process, tiny models with known answers, generated images."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from camcli.cli.app import main
from camcli.images.preprocess import Preprocess
from camcli.models.loaded import LoadedModel

if TYPE_CHECKING:
    from tests.driver import Driver

REPO = Path(__file__).parents[1]
SHAPES = REPO / "sample_images" / "shapes"
PHOTOS = REPO / "sample_images" / "photos"
# Real ImageNet weights, used where a developer keeps them beside the checkout; see tests/test_real_weights.py.
REAL_WEIGHTS = REPO.parent / "shared" / "weights"

torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Layers found before by the person who runs the tests prove nothing, nor does the width of a terminal."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("COLUMNS", raising=False)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@dataclass(frozen=True)
class Ended:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def camcli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run the command line in this process; `stdin` is what it reads there."""

    def call(*words: object, stdin: str = "") -> Ended:
        monkeypatch.setattr(sys, "argv", ["camcli", *map(str, words)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        code = ended.value.code
        return Ended(code if isinstance(code, int) else 0 if code is None else 1, out, err)

    return call


@pytest.fixture(scope="session")
def driver() -> Iterator[Driver]:
    """Runs the command line in children that may be killed."""
    from tests.driver import Driver

    with Driver() as found:
        yield found


class RedDetector(nn.Module):
    """Class 0 is red, class 1 is blue: a stride-4 colour difference, averaged over the image."""

    def __init__(self) -> None:
        super().__init__()
        self.colour = nn.Conv2d(3, 2, kernel_size=4, stride=4, bias=False)
        weight = torch.tensor([[1.0, -0.5, -0.5], [-0.5, -0.5, 1.0]]) / 16
        self.colour.weight.data = weight[:, :, None, None].expand(2, 3, 4, 4).clone()
        self.rectify = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[B,3,H,W] -> logits [B,2]."""
        scores: Tensor = self.rectify(self.colour(x)).mean(dim=(2, 3))
        return scores


def loaded(module: nn.Module, preprocess: Preprocess | None = None, classes: int = 2) -> LoadedModel:
    """`module` as the engine takes it; 64 px inputs on a 0..1 scale unless told."""
    plain = Preprocess((64, 64), (64, 64), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear", "center")
    labels = tuple(f"class_{i}" for i in range(classes))
    frozen = module.eval().requires_grad_(False)
    return LoadedModel(frozen, "test", "tiny", labels, "softmax", preprocess or plain, "none", None)


def save_image(path: Path, width: int, height: int, seed: int = 0) -> Path:
    """A smooth random RGB image."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    small.resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path
