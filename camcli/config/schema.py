"""What a run does, as one strict, frozen record with a default for every field."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import (
    ByteSize,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    StrictInt,
    StrictStr,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from camcli.config.model import ModelConfig
from camcli.config.section import Level, Percent, Positive, Section, Spread, Switch, Unit

DFF = "dff"
"""The method that stands alone: it finds what all images of a run share."""
SCHEMA_URL = "https://json-schema.org/draft/2020-12/schema"

Crop = Literal["center", "squash", "pad"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Smoothing = Literal["none", "aug", "eigen"]
_DEVICE = r"(auto|all|cpu|(cuda|mps)(:\d+)?)"


LEAST_MEMORY = 1 << 20
_BYTES = TypeAdapter(ByteSize)


class TargetsConfig(Section):
    """Which classes to explain: exactly one of `top`, `above`, `classes`, `contrast`.

    `top1` stands for `{top: 1}`, and a list (or a single class) for `{classes: [...]}`. `else` says what to explain
    where no class is `above`; it is called `otherwise` here, and `else` wherever a config is written.
    """

    top: Positive | None = Field(None, description="The k most probable classes of each image.")
    above: Unit | None = Field(None, description="Every class at least this probable, for multi-label models.")
    otherwise: Literal["top1"] | None = Field(
        None, alias="else", description="With `above`: the most probable class of an image that has none; null: none."
    )
    classes: tuple[StrictInt | StrictStr, ...] | None = Field(
        None, min_length=1, description="Classes by index or by label."
    )
    contrast: tuple[StrictInt | StrictStr, StrictInt | StrictStr] | None = Field(
        None, description="[a, b]: why class a rather than b, that is logit a less logit b."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_short(cls, value: Any) -> Any:
        if value == "top1":
            return {"top": 1}
        if isinstance(value, list | tuple):
            return {"classes": tuple(value)}
        if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
            return {"classes": (value,)}
        return value

    @model_validator(mode="after")
    def _exactly_one(self) -> TargetsConfig:
        if sum(v is not None for v in (self.top, self.above, self.classes, self.contrast)) != 1:
            raise ValueError("give exactly one of `top`, `above`, `classes`, `contrast`")
        if self.otherwise is not None and self.above is None:
            raise ValueError("`else` goes with `above`: {above: 0.5, else: top1}")
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"else" if name == "otherwise" else name: value for name, value in dump(self).items()}


Range = tuple[Level, Level] | Literal["dtype", "percentile"]


class InputConfig(Section):
    """How an image becomes the model's input; null means: as the weights were trained."""

    size: tuple[Positive, Positive] | None = Field(None, description="[height, width] in pixels, or one number.")
    mean: tuple[Unit, ...] | None = Field(None, description="Per channel, on a 0..1 scale.")
    std: tuple[Spread, ...] | None = Field(None, description="Per channel, on a 0..1 scale.")
    channels: Literal[1, 3] | None = Field(None, description="3: RGB; 1: grey.")
    range: Range | None = Field(
        None,
        description="Which values of grey images are black and white: [lo, hi], `dtype` (all that the type holds) or "
        "`percentile` (1 and 99 %); null: 8 and 16 bits in full, a DICOM file's window, else minimum and maximum.",
    )
    interpolation: Interpolation | None = Field(None, description="Filter of the resize, antialiased.")
    crop: Crop | None = Field(
        None,
        description="center: short side resized, middle cut out; squash: whole image, ratio lost; "
        "pad: whole image, ratio kept, borders filled with the mean.",
    )

    @field_validator("mean", "std")
    @classmethod
    def _each_channel(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value is not None and len(value) not in (1, 3):
            raise ValueError("one number for grey or three for red, green and blue are wanted")
        return value

    @field_validator("range")
    @classmethod
    def _rising(cls, value: Range | None) -> Range | None:
        if isinstance(value, tuple) and not value[0] < value[1]:
            raise ValueError("the first value is black and the second, higher one white")
        return value

    @field_validator("size", mode="before")
    @classmethod
    def _square(cls, value: Any) -> Any:
        return (value, value) if isinstance(value, int | str) else value


class OverlayConfig(Section):
    """How heat is painted on the image."""

    format: Literal["jpg", "png", "webp"] = Field("jpg", description="File type of the overlays.")
    quality: Percent = Field(90, description="For jpg and webp.")
    style: Literal["heat", "blend", "spotlight", "contours"] = Field(
        "heat",
        description="heat: opacity rises with the heat; blend: the same opacity everywhere; spotlight: grey and dim "
        "where there is no heat; contours: lines at half and at 80 % of the maximum.",
    )
    alpha: Unit | None = Field(
        None, description="Opacity of the hottest; null: that of the style, 0.75, for blend 0.5, for contours 1."
    )
    colormap: str = Field("inferno", description="Any matplotlib colour map.")
    signed_colormap: str = Field("RdBu_r", description="For signed maps: a diverging matplotlib colour map.")
    grid: Switch = Field(False, description="Also a sheet for each image that shows all methods and targets.")
    caption: Switch | None = Field(
        None,
        description="Class, probability, method, layer and raw range below each overlay; null: in grids only.",
    )
    size: Literal["original", "model"] | Positive = Field(
        1280,
        description="Pixels of the longest side, where the image has more; original: the image as it is; model: the "
        "crop that the model saw.",
    )
    scale: Literal["image", "run"] = Field(
        "image", description="image: every map uses the full colour range; run: one range for all images."
    )

    @field_validator("size", mode="wrap")
    @classmethod
    def _size(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError("write original, model, or how many pixels the longest side may have") from None

    @field_validator("colormap", "signed_colormap")
    @classmethod
    def _known(cls, value: str) -> str:
        from matplotlib import colormaps

        from camcli.registry import did_you_mean

        if value not in colormaps:
            raise ValueError(f"unknown matplotlib colour map {value!r}{did_you_mean(value, colormaps)}")
        return value


class OptionsConfig(Section):
    """What methods are told: a section for each method, under its name, such as `occlusion: {patch: 32, stride: 16}`.

    The methods declare what they take, and check it. An option beside the sections, such as `patch: 32`, is for every
    method that has one of this name and no word of its own on it.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue] = Field(init=False)

    chunk: Positive = Field(16, description="Images or channels per forward pass; changes speed and memory alone.")

    @property
    def given(self) -> dict[str, JsonValue]:
        """Sections and options beside `chunk`, as they were written."""
        return dict(self.model_extra or {})


class RuntimeConfig(Section):
    """Where and how fast; nothing here changes what is found beyond rounding."""

    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps; several (cuda:0,cuda:1), or all GPUs: all.")
    batch_size: Positive | Literal["auto"] = Field(16, description="Images per forward pass; auto: measured.")
    precision: Literal["fp32", "bf16", "fp16", "auto"] = Field(
        "fp32",
        description="Of the forward pass; maps stay fp32. auto: 16 bits where the hardware has them and they pay, and "
        "fp32 for each image whose answer they may have changed.",
    )
    backend: Literal["torch", "openvino", "compile", "auto"] = Field(
        "torch",
        description="What computes the network before the target layer. openvino: an extra, for CPUs; torch where it "
        "finds anything else. compile: torch.compile, a slow start for long runs. auto: openvino where it pays.",
    )
    threads: Positive | None = Field(None, description="Cores to work on; null: all that this process may use.")
    memory: Spread = Field(
        0.25, description="For decoded images, in all processes together: 4GiB, or a part of what may be used."
    )

    @field_validator("memory", mode="before")
    @classmethod
    def _in_bytes(cls, value: Any) -> Any:
        return float(_BYTES.validate_python(value)) if isinstance(value, str) and value[-1:].isalpha() else value

    @field_validator("memory")
    @classmethod
    def _enough(cls, value: float) -> float:
        if 1 < value < LEAST_MEMORY:
            raise ValueError("write a size of at least 1MiB, such as 4GiB, or a part of at most 1")
        return value

    @field_validator("device")
    @classmethod
    def _listed(cls, value: str) -> str:
        names = [name.strip() for name in value.split(",")]
        if unknown := [name for name in names if not re.fullmatch(_DEVICE, name)]:
            raise ValueError(f"{unknown[0]!r} is no device; write auto, all, cpu, cuda, cuda:1, mps, or cuda:0,cuda:1")
        return ",".join(names)


class RunConfig(Section):
    """Everything that a run needs to know."""

    model: ModelConfig = ModelConfig()
    layer: tuple[str, ...] = Field(("auto",), min_length=1, description="auto, a module path, or a list (averaged).")
    methods: tuple[str, ...] = Field(("gradcam",), min_length=1, description="See `camcli methods`.")
    smoothing: Smoothing = Field(
        "none",
        description="aug: mean over mirrored and brightened copies, 6x the cost; "
        "eigen: first principal component of the channel contributions instead of their sum.",
    )
    targets: TargetsConfig = TargetsConfig(top=1)
    input: InputConfig = InputConfig()
    overlay: OverlayConfig = OverlayConfig()
    options: OptionsConfig = OptionsConfig()
    report: Switch = Field(True, description="Write reports/<id>.json for each image.")
    maps: Literal["none", "npz", "png16"] = Field("none", description="Also keep the raw maps.")
    runtime: RuntimeConfig = RuntimeConfig()

    @field_validator("layer", "methods", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        if isinstance(value, str):
            return (value,)
        if isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
            return tuple(value)
        raise ValueError("a string or a list of strings is wanted")

    @field_validator("methods")
    @classmethod
    def _alone(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if DFF in value and value != (DFF,):
            raise ValueError(f"{DFF} stands alone, for it finds what all images share; run the others by themselves")
        return value

    @property
    def finds_concepts(self) -> bool:
        """Whether the run is about what all its images share, not about each by itself."""
        return self.methods == (DFF,)

    @property
    def in_one_range(self) -> bool:
        """Whether the colours of all overlays stand for one range, which is known when all images are explained."""
        return self.overlay.scale == "run" and not self.finds_concepts


def json_schema() -> dict[str, Any]:
    """JSON Schema of a config file, shorthands included, for editors and for `camcli config schema`."""
    schema = RunConfig.model_json_schema()
    fields, defs = schema["properties"], schema["$defs"]
    for name in ("layer", "methods"):
        fields[name] = _or(fields[name], {"type": "string"})
    fields["model"] = _or(fields["model"], {"type": "string"})
    classes = {"type": ["string", "integer"]}
    fields["targets"] = _or(fields["targets"], classes, {"type": "array", "minItems": 1, "items": classes})
    runtime = defs["RuntimeConfig"]["properties"]
    runtime["memory"] = _or(runtime["memory"], {"type": "string", "pattern": r"^[0-9.]+ *[kKMGT]?i?B$"})
    size = defs["InputConfig"]["properties"]["size"]
    size["anyOf"].append({"type": "integer", "minimum": 1})
    return {"$schema": SCHEMA_URL, **_or_variable(schema)}


def _or_variable(schema: dict[str, Any]) -> dict[str, Any]:
    """Wherever a number or a switch is wanted, `${VARIABLE}` serves too."""
    inner = {key: _inside(value) for key, value in schema.items()}
    if schema.get("type") in ("integer", "number", "boolean") or "enum" in schema:
        return {"anyOf": [inner, {"type": "string", "pattern": r"\$\{\w+(:-.*)?\}"}]}
    return inner


def _inside(value: Any) -> Any:
    if isinstance(value, dict):
        return _or_variable(value) if "type" in value or "anyOf" in value else {k: _inside(v) for k, v in value.items()}
    return [_inside(v) for v in value] if isinstance(value, list) else value


def _or(schema: dict[str, Any], *others: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, *others]}
