"""The networks that can be trained on the scenes, each built through timm, with 12 labels for 128 px images.

`resnet` is the embedded model. `vit` and `swin` prove the token layouts on trained weights; they see the image
through the first stages of the trained `resnet` ("hybrid", https://arxiv.org/abs/2010.11929), because a transformer
that starts from raw patches needs far more images.
"""

from __future__ import annotations

from typing import Any

import timm
from safetensors.torch import load_file
from timm.models.vision_transformer_hybrid import HybridEmbed

from camcli.models.demo import ARCH, KWARGS, LABELS, SIZE, WEIGHTS

NETS = ("resnet", "vit", "swin")


def build(net: str) -> Any:
    """The module called `net`, one of NETS, with random weights, but for the stem of a transformer."""
    if net == "resnet":
        return timm.create_model(ARCH, num_classes=len(LABELS), **KWARGS)
    return _vit() if net == "vit" else _swin()


def _vit() -> Any:
    """A class token and 16x16 patches of 8 px."""
    sizes = {"img_size": SIZE, "patch_size": 8, "embed_dim": 96, "depth": 3, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=len(LABELS), **sizes)
    model.patch_embed = HybridEmbed(_stem(2), SIZE, embed_dim=model.embed_dim)
    return model


def _swin() -> Any:
    """Three stages of windows on 32x32, 16x16 and at the end 8x8 locations."""
    sizes = {"img_size": SIZE, "window_size": 8, "embed_dim": 32, "depths": (2, 2, 2), "num_heads": (1, 2, 4)}
    model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=len(LABELS), **sizes)
    model.patch_embed = HybridEmbed(_stem(1), SIZE, embed_dim=model.embed_dim, output_fmt="NHWC")
    return model


def _stem(stage: int) -> Any:
    """The embedded network up to its `stage`-th stage; a location is 4 px wide after stage 1 and 8 px after stage 2."""
    stem = timm.create_model(ARCH, features_only=True, out_indices=[stage])
    trained = load_file(WEIGHTS)
    stem.load_state_dict({key: trained[key] for key in stem.state_dict()})
    return stem
