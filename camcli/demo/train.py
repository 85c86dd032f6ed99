"""Trains one of the networks on generated scenes, writes its weights and prints their quality.

    python -m camcli.demo.train                               the embedded model
    python -m camcli.demo.train --arch vit --epochs 3         tests/weights/vit.safetensors
    python -m camcli.demo.train --arch swin --epochs 4        tests/weights/swin.safetensors

Every scene is drawn once; flips, quarter turns, swapped colour channels, contrast and blur make it fresh in every
epoch. The loss is binary cross-entropy per label, plus cross-entropy for what each cell of the last features shows,
through a second head that is thrown away ("token labeling", https://arxiv.org/abs/2104.10858): with it about ten
minutes of one CPU core suffice. One thread (OMP_NUM_THREADS=1) is best on a machine that is busy. Weights are stored
as float16, and the quality printed at the end is that of the stored file on scenes of another seed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from timm.layers import set_fused_attn
from torch import Tensor, nn
from torch.nn import functional as F

from camcli.demo.evaluate import evaluate, report
from camcli.demo.nets import NETS, build
from camcli.demo.scenes import scene
from camcli.models.demo import LABELS, MEAN, SIZE, STD

BATCH = 32
CELL = 4
RATE = {"resnet": 3e-3, "vit": 1.5e-3, "swin": 1.5e-3}


def train(arch: str, scenes: int, epochs: int, seed: int) -> Any:
    """A network of `arch` that has seen the first `scenes` images of `seed` `epochs` times."""
    torch.manual_seed(seed)
    set_fused_attn(False)  # the plain form is a third faster in bfloat16 on a CPU
    model = build(arch).to(memory_format=torch.channels_last).train()
    cell_head = nn.Linear(model.num_features, len(LABELS) + 1)
    weights = [*model.parameters(), *cell_head.parameters()]
    optimizer = torch.optim.AdamW(weights, RATE[arch], weight_decay=0.05)
    images = render(seed, scenes)
    steps = epochs * (scenes // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE[arch], steps, pct_start=0.15)
    for epoch in range(epochs):
        start, losses = time.perf_counter(), []
        for batch in batches(*images):
            loss = _loss(model, cell_head, *augment(*batch))
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1}: loss {np.mean(losses):.4f}, {time.perf_counter() - start:.0f} s", flush=True)
    return model


def _loss(model: Any, cell_head: nn.Module, images: Tensor, labels: Tensor, cells: Tensor) -> Tensor:
    """Of the image's labels [B,K], and of the label of each cell [B,g,g]."""
    with torch.autocast("cpu", torch.bfloat16):
        features = model.forward_features(images)
        logits = model.forward_head(features)
        cell_logits = cell_head(_grid(model, features)).permute(0, 3, 1, 2)
    wanted = F.interpolate(cells[:, None].float(), cell_logits.shape[-2:], mode="nearest-exact")[:, 0].long()
    of_cells = F.cross_entropy(cell_logits.float(), wanted)
    return F.binary_cross_entropy_with_logits(logits.float(), labels) + of_cells


def _grid(model: Any, features: Tensor) -> Tensor:
    """The last features as [B,h,w,C]: from a ViT's tokens, a Swin's NHWC or a ResNet's NCHW."""
    if features.ndim == 3:
        return features[:, model.num_prefix_tokens :].reshape(-1, *model.patch_embed.grid_size, model.num_features)
    return features if features.shape[-1] == model.num_features else features.permute(0, 2, 3, 1)


def render(seed: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first `count` images of `seed`: uint8 [N,3,H,W], float labels 0 or 1 [N,K], uint8 cell labels [N,g,g]."""
    with ProcessPoolExecutor() as pool:
        drawn = list(pool.map(partial(_sample, seed), range(count), chunksize=64))
    images, labels, cells = (torch.from_numpy(np.stack(part)) for part in zip(*drawn, strict=True))
    return images.permute(0, 3, 1, 2), labels, cells


def _sample(seed: int, index: int) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    drawn = scene(seed, index)
    labels = np.zeros(len(LABELS), dtype=np.float32)
    cells = np.full((SIZE // CELL, SIZE // CELL), len(LABELS), dtype=np.uint8)
    for label, mask in drawn.shapes:
        labels[label] = 1
        cells[mask[CELL // 2 :: CELL, CELL // 2 :: CELL]] = label
    return drawn.image, labels, cells


def batches(*tensors: Tensor) -> Iterator[list[Tensor]]:
    """All images in random order, whole batches only."""
    for rows in torch.split(torch.randperm(len(tensors[0])), BATCH):
        if len(rows) == BATCH:
            yield [tensor[rows] for tensor in tensors]


def augment(images: Tensor, labels: Tensor, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A batch turned, flipped, recoloured and blurred at random, its images [B,3,H,W] from uint8 to normal."""
    turns, mirror = int(torch.randint(4, ())), [-1] if torch.rand(()) < 0.5 else []
    images = images[:, torch.randperm(3)].rot90(turns, (-2, -1)).flip(mirror)
    cells = cells.rot90(turns, (-2, -1)).flip(mirror)
    contrast = torch.empty(len(images), 1, 1, 1).uniform_(0.7, 1.2)
    light = torch.empty_like(contrast).uniform_(-0.1, 0.1)
    pixels = ((images.float() / 255 - 0.5) * contrast + 0.5 + light).clamp(0, 1)
    if torch.rand(()) < 0.3:
        small = F.interpolate(pixels, scale_factor=float(torch.empty(()).uniform_(0.6, 1)), mode="bilinear")
        pixels = F.interpolate(small, pixels.shape[-2:], mode="bilinear")
    return normalise(pixels), labels, cells


def normalise(pixels: Tensor) -> Tensor:
    """[B,3,H,W] in 0..1 as the network wants it."""
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (MEAN, STD))
    return ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)


def save(model: nn.Module, path: Path, **facts: object) -> None:
    """Writes float16 weights; `facts` go into the file's metadata."""
    halves = {
        name: value.half().contiguous() if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    save_file(halves, path, {name: str(fact) for name, fact in facts.items()})


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", choices=NETS, default="resnet")
    parser.add_argument("--scenes", type=int, default=16_000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=20_240_607)
    parser.add_argument("--out", type=Path, help="default: ARCH.safetensors")
    args = parser.parse_args()
    out = args.out or Path(f"{args.arch}.safetensors")
    start = time.perf_counter()
    model = train(args.arch, args.scenes, args.epochs, args.seed)
    save(model, out, arch=args.arch, seed=args.seed, scenes=args.scenes, epochs=args.epochs)
    seconds = time.perf_counter() - start
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{out}: {count:,} parameters, seed {args.seed}, {seconds:.0f} s on {torch.get_num_threads()} threads")
    print(report(evaluate(seed=args.seed + 1, weights=out)))


if __name__ == "__main__":
    main()
