"""Grey of one channel, 12 and 16 bits without loss, and DICOM files, of which no word about a patient comes out."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import tracemalloc
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

import camcli
from camcli.config.file import load_config
from camcli.config.model import ModelConfig
from camcli.config.schema import InputConfig
from camcli.errors import ConfigError, ItemError
from camcli.images import dicom as dicom_room
from camcli.images.decode import decode, load_image, prepare_image
from camcli.images.preprocess import Preprocess
from camcli.models.source import load_model
from tests.conftest import Ended
from tests.test_run import lines

Camcli = Callable[..., Ended]
PLAIN = Preprocess((16, 16), (16, 16), (0.4, 0.5, 0.6), (0.2, 0.2, 0.2), "bilinear", "squash")
needs_pydicom = pytest.mark.skipif(not importlib.util.find_spec("pydicom"), reason="pydicom is not installed")


def ramp(high: int) -> NDArray[np.uint16]:
    """[16,16] all values 0, 1, 2 … 255 above high - 255: neighbours that 8 bits cannot tell apart."""
    return np.arange(high - 255, high + 1, dtype=np.uint16).reshape(16, 16)


@pytest.mark.parametrize(
    ("high", "scale", "black", "white"),
    [
        (65535, None, 0, 65535),
        (65535, "dtype", 0, 65535),
        (4095, (0, 4095), 0, 4095),
        (5000, (4745, 5000), 4745, 5000),
        (5000, "percentile", 4745 + 2.55, 4745 + 252.45),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_deep_grey_reaches_the_model_without_loss(
    tmp_path: Path, high: int, scale: Any, black: float, white: float, channels: Any
) -> None:
    values = ramp(high)
    Image.fromarray(values).save(tmp_path / "x.png")
    preprocess = PLAIN.override(InputConfig(channels=channels, range=scale))
    for loaded in (load_image(tmp_path / "x.png", preprocess), prepare_image(Image.fromarray(values), preprocess)):
        expected = ((values.astype(np.float64) - black) / (white - black)).clip(0, 1) * 255
        assert loaded.input.shape == (16, 16, channels)
        assert np.allclose(loaded.input, expected[..., None], atol=2e-4)
        assert len(np.unique(loaded.input[..., 0])) >= 250
        assert loaded.image is not None
        assert np.array_equal(np.asarray(loaded.image)[..., 1], np.rint(loaded.input[..., 0]).astype(np.uint8))


def test_colours_become_grey_for_a_network_of_one_channel() -> None:
    image = Image.effect_noise((32, 32), 60).convert("RGB")
    grey = PLAIN.override(InputConfig(channels=1))
    assert np.array_equal(prepare_image(image, grey).input[..., 0], prepare_image(image, PLAIN).input[..., 1])
    assert (*grey.mean, *grey.std) == pytest.approx((0.5, 0.2))
    assert PLAIN.override(InputConfig(channels=1, mean=(0.3,), std=(0.7,))).mean == (0.3,)
    stretched = PLAIN.override(InputConfig(range=(100, 200)))
    assert prepare_image(Image.new("L", (16, 16), 150), stretched).input[0, 0].tolist() == [127.5] * 3
    assert prepare_image(Image.new("RGB", (16, 16), (9, 8, 7)), stretched).input[0, 0].tolist() == [9, 8, 7]


class Bright(nn.Module):
    """Class 1 is bright on the right, class 0 on the left: one channel, cells of 4 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.Conv2d(1, 2, 4, 4, bias=False)
        self.cells.weight.data.fill_(1 / 16)
        self.rectify = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[B,1,H,W] -> [B,2]."""
        cells = self.rectify(self.cells(x))
        half = cells.shape[-1] // 2
        return torch.stack([cells[:, 0, :, :half].mean((1, 2)), cells[:, 1, :, half:].mean((1, 2))], dim=1)


def test_heat_of_deep_grey_lies_where_eight_bits_see_nothing() -> None:
    values = np.full((64, 64), 30_000, dtype=np.uint16)
    values[24:40, 44:56] += 100
    given: dict[str, Any] = {"size": 64, "mean": [0.0], "std": [1.0], "channels": 1, "range": [30_000, 30_200]}
    [found] = camcli.explain(values, Bright(), preprocess=given, layer="rectify", targets=[1])
    x, y = found.peak() or (0, 0)
    assert 44 <= x < 56
    assert 24 <= y < 40
    assert found.predictions[0].index == 1
    assert found.overlay(size="model").size == (64, 64)


@pytest.mark.parametrize("methods", [["gradcam", "scorecam", "smoothgrad", "occlusion"]])
def test_a_network_of_one_channel_runs_as_any_other(camcli: Camcli, tmp_path: Path, methods: list[str]) -> None:
    Image.fromarray(ramp(65535)).resize((64, 64)).save(tmp_path / "x.png")
    model = "model={source: timm, name: test_resnet, weights: none, num_classes: 2, kwargs: {in_chans: 1}}"
    words = ("-s", model, "-s", "input.size=64", "-s", f"methods=[{', '.join(methods)}]", "-s", "options.chunk=64")
    ended = camcli("run", tmp_path / "x.png", "--out", tmp_path / "out", *words, "-s", "overlay.size=model")
    assert ended.code == 0, ended.err
    [record] = lines(tmp_path / "out")
    assert len(record["heatmaps"]) == len(methods)
    told = json.loads((tmp_path / "out" / "run.json").read_text())["input"]
    assert (told["channels"], len(told["mean"])) == (1, 1)
    assert camcli("layers", *words[:4]).code == 0


def test_published_weights_are_summed_for_one_channel_and_another_number_is_named(tmp_path: Path) -> None:
    plain = timm.create_model("test_resnet", num_classes=2)
    torch.save(plain.state_dict(), tmp_path / "w.pth")
    fields = {"source": "timm", "name": "test_resnet", "weights": str(tmp_path / "w.pth"), "kwargs": {"in_chans": 1}}
    loaded = load_model(ModelConfig.model_validate(fields), InputConfig(size=(64, 64)))
    x = torch.rand(1, 1, 64, 64)
    assert torch.allclose(loaded.module(x), plain.eval()(x.expand(-1, 3, -1, -1)), atol=1e-5)
    with pytest.raises(ConfigError, match=r"does not take images of 3 channels .* set input.channels to 1 or 3"):
        load_model(ModelConfig.model_validate(fields), InputConfig(size=(64, 64), channels=3))
    for text in ("input.range=[5, 5]", "input.range=all", "input.channels=2"):
        with pytest.raises(ConfigError, match=text.partition("=")[0]):
            load_config(None, [text])


PATIENT = ("Doe^Jane", "ID-4711", "19600229", "St Elsewhere", "Dr^Strange", "1.2.826.0.1.4711")


def dicom(path: Path, values: NDArray[Any], **fields: Any) -> Path:
    """A DICOM file of these values that tells of a patient."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.7")
    meta.MediaStorageSOPInstanceUID = UID("1.2.826.0.1.4711")
    found = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    found.SOPClassUID, found.SOPInstanceUID = meta.MediaStorageSOPClassUID, "1.2.826.0.1.4711"
    found.PatientName, found.PatientID, found.PatientBirthDate = PATIENT[:3]
    found.InstitutionName, found.ReferringPhysicianName = PATIENT[3:5]
    found.Rows, found.Columns = values.shape[:2]
    found.SamplesPerPixel, found.PhotometricInterpretation = 1, "MONOCHROME2"
    found.BitsAllocated, found.BitsStored, found.HighBit = 16, 16, 15
    found.PixelRepresentation = int(values.dtype.kind == "i")
    for name, value in fields.items():
        setattr(found, name, value)
    found.PixelData = values.tobytes()
    found.save_as(path)
    return path


@needs_pydicom
def test_a_dicom_file_is_seen_through_its_slope_and_window(tmp_path: Path) -> None:
    values = (np.arange(256, dtype=np.int16).reshape(16, 16) * 8) - 900  # of a CT: -1000 is air, 0 water
    scan = {"RescaleSlope": 1, "RescaleIntercept": -100}
    window = {"WindowCenter": [40, 300], "WindowWidth": [400, 1500]}
    hounsfield = values.astype(np.float64) - 100
    expected = ((hounsfield - (40 - 0.5)) / (400 - 1) + 0.5).clip(0, 1) * 255  # part 3 of the standard, C.11.2.1.2.1
    seen = load_image(dicom(tmp_path / "a.dcm", values, **scan, **window), PLAIN).input
    assert np.allclose(seen, expected[..., None], atol=1e-3)
    inverse = dicom(tmp_path / "b.dcm", values, **scan, **window, PhotometricInterpretation="MONOCHROME1")
    assert np.allclose(load_image(inverse, PLAIN).input, 255 - expected[..., None], atol=1e-3)
    plain = load_image(dicom(tmp_path / "c.dcm", values, RescaleSlope=2), PLAIN).input
    assert np.allclose(plain[..., 0].ravel(), np.arange(256), atol=1e-3)
    ranged = load_image(tmp_path / "a.dcm", PLAIN.override(InputConfig(range=(-1000, 0), channels=1))).input
    assert np.allclose(ranged[..., 0], ((hounsfield + 1000) / 1000).clip(0, 1) * 255, atol=1e-3)


def renamed(path: Path, values: NDArray[Any]) -> Path:
    """A DICOM file whose number of columns is a word, as a torn or careless program writes it."""
    data = dicom(path, values).read_bytes()
    columns = data.index(b"\x28\x00\x11\x00US")
    path.write_bytes(data[: columns + 4] + b"IS\x08\x00Doe^Jane" + data[columns + 10 :])
    return path


@needs_pydicom
def test_a_damaged_header_says_nothing_outside_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, level = renamed(tmp_path / "a.dcm", ramp(255)), logging.getLogger("pydicom").level
    for read in (decode, lambda path: load_image(path, PLAIN), lambda path: prepare_image(path, PLAIN)):
        said = warnings.catch_warnings(record=True, action="always")
        with said as told, pytest.raises(ItemError, match="DICOM") as caught:
            read(path)
        assert "Doe" not in f"{caught.value} {caplog.text} {[one.message for one in told]}"
    assert logging.getLogger("pydicom").level == level


@needs_pydicom
def test_silence_lasts_until_the_last_thread_needs_none(tmp_path: Path) -> None:
    before, level = list(warnings.filters), logging.getLogger("pydicom").level
    path = dicom(tmp_path / "a.dcm", ramp(255))
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda _: decode(path).size == (16, 16), range(40)))
    with dicom_room.muted():
        decode(path)
        assert logging.getLogger("pydicom").level > logging.CRITICAL
    assert (warnings.filters, logging.getLogger("pydicom").level) == (before, level)


@needs_pydicom
@pytest.mark.parametrize("stored", [12, 16])
def test_deep_colours_of_a_dicom_file_keep_their_order(tmp_path: Path, stored: int) -> None:
    values = np.random.default_rng(0).integers(0, 2**stored, (16, 16, 3), dtype=np.uint16)
    fields = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": "RGB"}
    path = dicom(tmp_path / "a.dcm", values, **fields, BitsStored=stored, HighBit=stored - 1)
    expected = values.astype(np.float64) / (2**stored - 1) * 255
    assert np.abs(np.asarray(decode(path)) - expected).max() <= 0.5 + 1e-3


@needs_pydicom
@pytest.mark.parametrize("deflated", [False, True])
def test_of_many_frames_the_first_alone_is_loaded(tmp_path: Path, deflated: bool) -> None:
    from pydicom import dcmread
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    values = np.random.default_rng(0).integers(0, 4096, (64, 64), dtype=np.uint16)
    path = dicom(tmp_path / "a.dcm", values)
    found = dcmread(path)
    found.NumberOfFrames, found.PixelData = 400, values.tobytes() + bytes(399 * values.nbytes)
    if deflated:
        found.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    found.save_as(path)
    dicom_room.header(io.BytesIO(path.read_bytes()), "warm")
    with path.open("rb") as file:
        tracemalloc.start()
        header = dicom_room.header(file, "a")
        frame = dicom_room.grey_or_rgb(file, header.dataset, "a")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert isinstance(frame, tuple)
    assert np.array_equal(frame[0], values)
    if not deflated:
        assert peak < header.cost + 1_000_000


@needs_pydicom
def test_nothing_of_a_patient_is_written_or_said(camcli: Camcli, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (64, 64), dtype=np.uint16)
    folder = tmp_path / "in"
    folder.mkdir()
    dicom(folder / "a.dcm", values, BitsStored=12, HighBit=11)
    torn = dicom(folder / "b.dcm", values)
    torn.write_bytes(torn.read_bytes()[:-4000])
    odd = dicom(folder / "c.dcm", values, RescaleSlope=2)
    odd.write_bytes(odd.read_bytes().replace(b"MONOCHROME2", b"Doe^Jane   ").replace(b"19600229", b"no date "))
    renamed(folder / "d.dcm", values)
    for more in ((), ("--log-format", "json")):
        ended = camcli("run", folder, "--out", tmp_path / f"out{len(more)}", "-s", "maps=npz", *more)
        assert ended.code == 1
        said = {tmp_path / "said": (ended.out + ended.err).encode()}
        said |= {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file() and file.parent != folder}
        assert sum(file.suffix == ".json" for file in said) >= 2
        for file, data in said.items():
            assert not [word for word in PATIENT if word.encode() in data], file
    found = {record["id"]: record["status"] for record in lines(tmp_path / "out0")}
    assert (found["a.dcm"], found["b.dcm"]) == ("done", "failed")
