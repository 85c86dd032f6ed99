"""Properties that hold for all inputs, not only for those that someone thought of."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, astuple
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from camcli.config.file import load_config
from camcli.config.schema import Crop, RunConfig
from camcli.errors import ConfigError
from camcli.images import geometry
from camcli.images.preprocess import Preprocess, full_size, model_input
from camcli.pipeline.record import shortest
from camcli.records import Box, Prediction
from camcli.results.report import ImageRecord, ModelRecord, line_of_record, sealed
from camcli.results.storage import NAME_BYTES, fitted, is_inside
from tests.fuzz_decode import fuzz
from tests.soak import soak

quick = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))

KEYS = st.sampled_from(
    ["model", "source", "name", "weights", "targets", "top", "layer", "overlay", "alpha", "input", "size"]
)
VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(["timm", "top1"])
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=8,
)
NAMES = (
    st.binary(min_size=1, max_size=300).filter(lambda raw: raw.strip(b".") and not set(raw) & {0, 47}).map(os.fsdecode)
)


def loads_or_refuses(data: bytes, *overrides: str) -> None:
    """A config or a ConfigError with words in it, and nothing else."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "c.yaml"
        path.write_bytes(data)
        try:
            assert isinstance(load_config(path, overrides).config, RunConfig)
        except ConfigError as error:
            assert str(error)  # noqa: PT017 - whether it is raised is open


@quick
@given(
    st.one_of(st.binary(max_size=200), st.text(alphabet="am:-[]{}&*!|>'\"#%@`?, \n\t0.", max_size=80).map(str.encode))
)
def test_any_bytes_are_a_config_or_a_config_error(data: bytes) -> None:
    loads_or_refuses(data)


@quick
@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_any_values_are_a_config_or_a_config_error(values: dict[str, object]) -> None:
    loads_or_refuses(yaml.safe_dump(values).encode())


@quick
@given(st.text(max_size=40), st.text(max_size=40))
def test_any_override_is_a_config_or_a_config_error(field: str, value: str) -> None:
    loads_or_refuses(b"", f"{field}={value}")
    loads_or_refuses(b"", f"overlay.alpha={value}")


@quick
@given(st.lists(st.lists(NAMES, min_size=1, max_size=3).map("/".join), min_size=2, max_size=6, unique=True))
def test_ids_become_different_paths_inside(names: list[str]) -> None:
    paths = [fitted(f"overlays/{name}.gradcam.1-cat.jpg") for name in names]
    assert len(set(paths)) == len(paths)
    for path in paths:
        assert is_inside(Path("/run"), Path("/run") / path)
        assert all(len(os.fsencode(part)) <= NAME_BYTES for part in path.split("/"))
    again = [fitted(path) for path in paths]
    assert len(set(again)) == len(again)


FOLDERS = st.sampled_from(["a", "a.jpg", "a.jpg.gradcam.1-cat.jpg", "a.json", "a.jpg.json", "x" * 250, "~", ".jpg~"])


@quick
@given(
    st.lists(
        st.lists(st.one_of(FOLDERS, FOLDERS.map("{}~".format), NAMES), min_size=1, max_size=4).map("/".join),
        max_size=6,
        unique=True,
    )
)
def test_no_output_is_the_folder_of_another(names: list[str]) -> None:
    written = [f"{kind}{name}{end}" for name in names for kind, end in OUTPUTS]
    paths = [fitted(name) for name in written]
    assert len(set(paths)) == len(paths)
    folders = {path.rsplit("/", depth)[0] for path in paths for depth in range(1, path.count("/") + 1)}
    assert not folders & set(paths)


OUTPUTS = (("overlays/", ".gradcam.1-cat.jpg"), ("reports/", ".json"), ("maps/", ".npz"), ("overlays/", ".grid.jpg"))


def test_a_name_cannot_pose_as_the_short_form_of_another() -> None:
    long = "x" * 300 + ".jpg"
    assert fitted(fitted(long)) != fitted(long)


SIDE = st.integers(1, 3000)


@quick
@given(
    SIDE, SIDE, st.integers(8, 96), st.integers(8, 96), st.sampled_from(["center", "squash", "pad"]), st.integers(0, 30)
)
def test_the_box_that_the_model_sees(width: int, height: int, h: int, w: int, crop: Crop, margin: int) -> None:
    preprocess = Preprocess((h, w), (h + margin, w + margin), (0, 0, 0), (1, 1, 1), "nearest", crop)
    if max(full_size(width, height, preprocess)) > 50_000:
        return
    pixels, seen = model_input(Image.new("RGB", (width, height)), preprocess)
    assert pixels.shape == (h, w, 3)
    clipped = seen.clip(width, height)
    assert clipped.width > 0
    assert clipped.height > 0
    if crop == "squash" and not margin:
        assert astuple(seen) == pytest.approx((0, 0, width, height))
    middle = ((seen.x0 + seen.x1) / 2, (seen.y0 + seen.y1) / 2)
    full_w, full_h = full_size(width, height, preprocess)
    assert abs(middle[0] - width / 2) <= width / full_w
    assert abs(middle[1] - height / 2) <= height / full_h


@quick
@given(SIDE, SIDE, st.integers(1, 14), st.integers(1, 14), st.data())
def test_heat_lies_on_the_image_and_in_the_box(width: int, height: int, h: int, w: int, data: st.DataObject) -> None:
    width, height = min(width, 400), min(height, 400)
    x0, y0 = data.draw(st.floats(-50, width - 1)), data.draw(st.floats(-50, height - 1))
    seen = Box(x0, y0, x0 + data.draw(st.floats(51, 500)), y0 + data.draw(st.floats(51, 500)))
    heat = np.random.default_rng(data.draw(st.integers(0, 99))).random((h, w), dtype=np.float32)
    (left, top, right, bottom), grey = geometry.place(heat, seen, width, height)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert grey.size == (right - left, bottom - top)
    peak = geometry.peak(heat, seen, width, height)
    assert peak is not None
    assert 0 <= peak[0] < width
    assert 0 <= peak[1] < height
    box = geometry.hot_box(heat, seen, width, height)
    if box is not None:
        inner = seen.clip(width, height)
        assert inner.x0 - 0.01 <= box.x0 < box.x1 <= inner.x1 + 0.01
        assert inner.y0 - 0.01 <= box.y0 < box.y1 <= inner.y1 + 0.01


@pytest.mark.parametrize("length", [0, 1, 400, 4000, 40_000])
def test_a_report_knows_its_own_size(length: int) -> None:
    record = _record("x" * length)
    found, line, text = sealed(record, "reports/a.json")
    assert found.files == {"overlays/a.jpg": 5, "reports/a.json": len(text)}
    assert json.loads(text) == json.loads(line) == json.loads(json.dumps(asdict(found)))
    assert sealed(record, None) == (record, line_of_record(record), b"")


@quick
@given(st.floats(-(2.0**127), 2.0**127, width=32))
def test_a_number_is_written_with_the_fewest_digits_of_its_float32(value: float) -> None:
    short = shortest(value)
    assert np.float32(short) == np.float32(value)
    digits = next(n for n in range(1, 10) if np.float32(f"{value:.{n - 1}e}") == np.float32(value))
    assert short == float(f"{value:.{digits - 1}e}")


def _record(layer: str) -> ImageRecord:
    model = ModelRecord(source="demo", name="demo", weights_sha256=None)
    return ImageRecord(
        id="a",
        source="a",
        predictions=(Prediction(1, "\u2603", 0.5, 1.0),) * 2,
        heatmaps=(),
        without_evidence="no_heatmap",
        width=1,
        height=1,
        seen=(0, 0, 1, 1),
        model=model,
        layer=layer,
        precision="fp32",
        input=None,
        files={"overlays/a.jpg": 5},
        fingerprint="f",
        look="l",
        versions="v",
    )


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning:PIL")
def test_mutated_files_are_images_or_failures(tmp_path: Path) -> None:
    fates = fuzz(3, seed=1, place=tmp_path)
    assert fates.total() > 20
    assert fates["SLOW"] == 0


def test_a_long_run_leaves_nothing_behind(tmp_path: Path) -> None:
    found = soak(400, tmp_path)
    assert (found.done, found.failed, found.records) == (400 - found.bad, found.bad, 400)
    assert found.bad == 12
    assert (found.threads, found.handles) == (0, 0)
    assert found.late < found.early + 100
