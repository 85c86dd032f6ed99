"""`model:` of a config: which classifier, from which library, with which weights."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, JsonValue, StrictInt, model_validator

from camcli.config.section import Positive, Section

Source = Literal["demo", "timm", "torchvision", "transformers", "python", "exported"]


class ModelConfig(Section):
    """Which classifier. The string `timm/resnet50.a1_in1k` stands for `{source: timm, name: resnet50.a1_in1k}`."""

    source: Source = Field("demo", description="Library that builds the model.")
    name: str = Field("demo", description="Architecture, as its library names it; python: `package.module:function`.")
    path: str | None = Field(
        None,
        description="python: a file with the function, `build` unless it is named. timm, transformers: a folder that "
        "their own functions have saved, in place of a name. exported: a file of torch.export.",
    )
    weights: str = Field(
        "pretrained", description="`pretrained`, `none` (random), a file, or torchvision's `IMAGENET1K_V2`."
    )
    weights_sha256: Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")] | None = Field(
        None, description="What the weights file must hash to; null: any."
    )
    kwargs: dict[str, JsonValue] = Field({}, description="Passed to the library's model function.")
    num_classes: Positive | None = Field(None, description="Size of the head; null: that in the weights file.")
    checkpoint_key: str | None = Field(
        None, description="Where in the file the weights are, such as `state_dict_ema`; null: they are looked for."
    )
    labels: str | tuple[str, ...] | None = Field(
        None, description="A .txt (one label a line), .csv or .json file, or the labels; null: the model's own."
    )
    preprocess: str | None = Field(
        None, description="python: a function beside the other that returns fields of `input`, or `module:function`."
    )
    output: str | StrictInt | None = Field(
        None, description="Key, position or attribute of the logits in what the model returns; null: it returns them."
    )
    activation: Literal["softmax", "sigmoid"] | None = Field(
        None, description="Logits to probabilities; null: softmax, and sigmoid for the demo model."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        if isinstance(value, str):
            return expand_model(value)
        if isinstance(value, dict) and value.get("source") == "torchvision" and is_enum(value.get("weights")):
            return _tagged(value)
        if isinstance(value, dict) and isinstance(value.get("path"), str) and "name" not in value:
            ending = ":build" if value.get("source") == "python" else ""
            return {**value, "name": f"{PurePath(value['path']).name or value['path']}{ending}"}
        return value

    @model_validator(mode="after")
    def _named(self) -> ModelConfig:
        if self.source != "demo" and "name" not in self.model_fields_set:
            example = "my_package.models:build` or a path: `my_model.py" if self.source == "python" else "resnet50"
            raise ValueError(f"source {self.source} needs a name, such as `model: {self.source}/{example}`")
        if self.source != "python" and self.preprocess:
            raise ValueError("preprocess goes with source: python")
        if self.source in ("demo", "torchvision") and self.path:
            raise ValueError("path goes with the sources timm, transformers, python and exported")
        if self.source == "demo" and self.name != "demo":
            raise ValueError(f"the demo source has one model, not {self.name!r}; set model.source as well")
        return self


def is_enum(weights: object) -> bool:
    """Whether weights are named as torchvision does: `IMAGENET1K_V2`, or `ResNet50_Weights.IMAGENET1K_V2`."""
    return isinstance(weights, str) and bool(re.fullmatch(r"(\w+_Weights\.)?[A-Z][A-Z0-9_]+", weights))


def _tagged(model: dict[str, Any]) -> dict[str, Any]:
    """A section with torchvision's name of weights, written as the tag of its name."""
    tag = model["weights"].rpartition(".")[2]
    name = str(model.get("name", ""))
    if "." in name:
        raise ValueError(f"weights are named twice: {name} and {model['weights']}")
    return {**model, "name": name if tag == "DEFAULT" else f"{name}.{tag}", "weights": "pretrained"}


def expand_model(short: str) -> dict[str, str]:
    """`timm/resnet50.a1_in1k` as the section that it stands for; raises ValueError where no source is named."""
    source, slash, name = short.partition("/")
    if not slash and source not in get_args(Source):
        raise ValueError(
            f"{short!r} names no library: write timm/{short} or torchvision/{short}; "
            f"`camcli models {short}` says which has it"
        )
    return {"source": source, "name": name or source}
