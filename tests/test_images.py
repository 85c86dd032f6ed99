"""Decoding and preprocessing: the libraries' own transforms are the oracle."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm.data
import torchvision
from PIL import Image
from torchvision.transforms import v2

from camcli.config.model import ModelConfig
from camcli.config.schema import InputConfig, Interpolation
from camcli.errors import ItemError
from camcli.images.decode import decode, load_image
from camcli.images.libtiff import silence
from camcli.images.preprocess import Preprocess, model_input
from camcli.models.source import model_source
from camcli.records import Box
from tests.conftest import save_image

SIZES = [(640, 427), (300, 451), (500, 375), (225, 224), (97, 61), (1600, 90), (33, 900), (4000, 3000)]
PLAIN = Preprocess((64, 64), (64, 64), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear", "center")


def pixels_apart(ours: object, theirs: object) -> int:
    """Largest difference in grey levels."""
    return int(np.abs(np.asarray(ours, dtype=np.int16) - np.asarray(theirs, dtype=np.int16)).max())


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", ["resnet50", "vit_b_16", "efficientnet_b3", "swin_t"])
def test_input_agrees_with_torchvision(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    image = decode(save_image(tmp_path / "x.png", *size))
    source = model_source("torchvision")
    ours, _ = model_input(image, source.preprocess(ModelConfig(source="torchvision", name=name), None))  # type: ignore[arg-type]
    recipe = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    resized = v2.functional.resize(image, recipe.resize_size, recipe.interpolation, antialias=True)
    assert pixels_apart(ours, v2.functional.center_crop(resized, recipe.crop_size)) <= 2


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    "name", ["resnet18.a1_in1k", "convnext_atto.d2_in1k", "vit_base_patch16_clip_quickgelu_224.openai", "levit_128s"]
)
def test_input_agrees_with_timm(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    image = decode(save_image(tmp_path / "x.png", *size))
    cfg = timm.get_pretrained_cfg(name)

    class Described:
        pretrained_cfg = cfg.to_dict()

    source = model_source("timm")
    ours, _ = model_input(image, source.preprocess(ModelConfig(source="timm", name=name), Described()))  # type: ignore[arg-type]
    data = timm.data.resolve_data_config(pretrained_cfg=cfg.to_dict())
    steps = timm.data.create_transform(**data).transforms
    theirs = steps[1](steps[0](image))
    assert pixels_apart(ours, theirs) <= 2


@pytest.mark.parametrize("filter_", ["bilinear", "bicubic", "lanczos"])
def test_a_large_noisy_photograph_is_resized_within_two_levels(filter_: Interpolation) -> None:
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).resize((4000, 3000))
    noise = rng.integers(-40, 41, (3000, 4000, 3), dtype=np.int16)
    image = Image.fromarray((np.asarray(smooth, dtype=np.int16) + noise).clip(0, 255).astype(np.uint8))
    ours, box = model_input(image, replace(PLAIN, size=(224, 224), resize=(256, 256), interpolation=filter_))
    resample = Image.Resampling[filter_.upper()]
    assert pixels_apart(ours, image.resize((224, 224), resample, (box.x0, box.y0, box.x1, box.y1))) <= 2


def test_padding_keeps_the_whole_image_and_its_ratio(tmp_path: Path) -> None:
    preprocess = PLAIN.override(InputConfig(crop="pad"))
    image = Image.new("RGB", (200, 100), "red")
    pixels, seen = model_input(image, preprocess)
    assert seen == Box(0, -50, 200, 150)
    assert (pixels[16:48] == (255, 0, 0)).all()
    assert (pixels[:16] == 128).all()
    assert (pixels[48:] == 128).all()


def test_squash_sees_all_and_center_the_middle() -> None:
    image = Image.new("RGB", (200, 100))
    assert model_input(image, PLAIN.override(InputConfig(crop="squash")))[1] == Box(0, 0, 200, 100)
    assert model_input(image, PLAIN)[1] == Box(50, 0, 150, 100)


def test_a_new_size_keeps_the_margin_and_a_new_crop_has_none() -> None:
    trained = Preprocess((224, 224), (256, 256), (0, 0, 0), (1, 1, 1), "bicubic", "center")
    assert trained.override(InputConfig(size=(112, 112))).resize == (128, 128)
    assert trained.override(InputConfig(crop="squash")).resize == (224, 224)
    assert trained.override(InputConfig(mean=(0.5, 0.5, 0.5))).mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_first(tmp_path: Path, orientation: int) -> None:
    upright = Image.new("RGB", (80, 48), "white")
    upright.paste("red", (0, 0, 24, 16))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "x.png", exif=exif)
    assert decode(tmp_path / "x.png").tobytes() == upright.tobytes()


def test_deep_grey_is_scaled_and_transparency_laid_on_white(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    Image.fromarray(ramp.astype(np.float32) * 3 - 1000).save(tmp_path / "float.tiff")
    for name in ("deep.png", "float.tiff"):
        grey = np.asarray(decode(tmp_path / name))[..., 0].ravel()
        assert pixels_apart(grey, np.arange(256)) <= 1
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert decode(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)


def test_float_images_of_extreme_range_do_not_overflow(tmp_path: Path) -> None:
    values = np.array([[-3e38, 0.0], [3e38, np.inf]], dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "x.tiff")
    grey = np.asarray(decode(tmp_path / "x.tiff"))[..., 0]
    assert grey[0].tolist() == [0, 128]
    assert grey[1, 0] == 255


def test_damaged_tiffs_are_told_of_in_the_record_only(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "x.tiff", compression="tiff_lzw")
    data = bytearray((tmp_path / "x.tiff").read_bytes())
    for at in range(8, len(data) // 2):
        data[at] ^= 0x5A
    (tmp_path / "x.tiff").write_bytes(data)
    silence()
    with pytest.raises(ItemError, match=r"x\.tiff"):
        decode(tmp_path / "x.tiff")
    assert capfd.readouterr() == ("", "")


def bad_files() -> dict[str, tuple[bytes, str, str]]:
    """name -> content, expected stage and error."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "JPEG")
    whole = buffer.getvalue()
    return {
        "empty.jpg": (b"", "read", "EmptyFile"),
        "text.jpg": (b"not an image", "decode", "UnidentifiedImageError"),
        "truncated.jpg": (whole[: len(whole) // 2], "decode", "OSError"),
        "header.png": (b"\x89PNG\r\n\x1a\n", "decode", "UnidentifiedImageError"),
    }


@pytest.mark.parametrize("name", bad_files())
def test_a_bad_file_is_an_item_error_that_names_it(tmp_path: Path, name: str) -> None:
    data, stage, kind = bad_files()[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ItemError, match=name) as caught:
        load_image(tmp_path / name, PLAIN)
    assert (caught.value.stage, caught.value.kind) == (stage, kind)


def test_missing_files_and_folders_are_item_errors(tmp_path: Path) -> None:
    for path, kind in ((tmp_path / "gone.jpg", "FileNotFoundError"), (tmp_path, "NotAFile")):
        with pytest.raises(ItemError) as caught:
            load_image(path, PLAIN)
        assert (caught.value.stage, caught.value.kind) == ("read", kind)
