"""The tensors of a checkpoint under the names of a module, and what is said where they do not fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from camcli.errors import ModelError
from camcli.models.checkpoint import AVERAGED, Checkpoint

NAMED = 3
CHECK = "check model.name, model.num_classes and model.kwargs"
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Built:
    """A module as a source builds it; labels: those that its weights came with. notes: what a user should know.

    code: the Python file that built it. weights_sha256: of weights that are in no single file.
    """

    module: nn.Module
    labels: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    code: Path | None = None
    code_sha256: str | None = None
    weights_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Fit:
    """Tensors by the names of a model. steps: what was unwrapped to come to them."""

    tensors: dict[str, Tensor]
    steps: tuple[str, ...]

    def notes(self, path: Path) -> tuple[str, ...]:
        """One sentence about the steps, if there were any."""
        return (f"{path.name}: {'; '.join(self.steps)}",) if self.steps else ()


def build_with(
    make: Callable[[int | None], nn.Module], checkpoint: Checkpoint, classes: int | None, model: str
) -> Built:
    """The module that `make` builds for a number of classes, with the weights of `checkpoint`; raises ModelError.

    classes: None for as many as the head in the file has, or as `make` thinks best. model: what to call it.
    """
    module = make(classes)
    fit = fitted(checkpoint, module.state_dict())
    rows = head_rows(fit.tensors, shapes_of(module)) if classes is None else None
    if rows is not None:
        module = make(rows)
        fit = replace(fit, steps=(*fit.steps, f"{rows} classes, as many as its head has rows"))
    load(module, fit, checkpoint.path, model, classes)
    return Built(module, checkpoint.labels, fit.notes(checkpoint.path))


def filled(module: nn.Module, checkpoint: Checkpoint, classes: int | None, model: str) -> Built:
    """A module, whose head stays as it is, with the weights of `checkpoint`; raises ModelError.

    classes: as many as were asked for. model: what to call it.
    """
    fit = fitted(checkpoint, module.state_dict())
    load(module, fit, checkpoint.path, model, classes)
    return Built(module, checkpoint.labels, fit.notes(checkpoint.path))


def fitted(checkpoint: Checkpoint, names: Collection[str]) -> Fit:
    """The tensors without the prefix that makes most of them fit `names`; what has another prefix is left out."""
    prefix = _prefix(checkpoint.path, checkpoint.tensors, names)
    tensors = _without(checkpoint.tensors, prefix)
    for above in _above(prefix):
        beside = _without(checkpoint.tensors, above)
        tensors |= {name: beside[name] for name in names if name in beside and name not in tensors}
    steps = list(checkpoint.steps)
    if prefix:
        left = len(checkpoint.tensors) - len(tensors)
        beside_it = f", {left} {'tensor' if left == 1 else 'tensors'} without it left out" if left else ""
        steps.append(f"prefix `{prefix}` removed{beside_it}")
    return Fit(tensors, tuple(steps))


def _prefix(path: Path, keys: Collection[str], names: Collection[str]) -> str:
    """Of those with equally many names, one of no averaged weights; raises ModelError where that leaves a choice."""
    counted: Counter[str] = Counter()
    for key in keys:
        parts = key.split(".")
        counted.update(
            ".".join((*parts[:start], "")) for start in range(len(parts)) if ".".join(parts[start:]) in names
        )
    best = max(counted.values(), default=0)
    if best < len(names) / 2:
        return "module." if all(key.startswith("module.") for key in keys) else ""
    equal = [prefix for prefix, count in counted.items() if count == best]
    own = [prefix for prefix in equal if not any(name in prefix for name in AVERAGED)] or equal
    if len(own) > 1:
        there = ", ".join(prefix.removesuffix(".") for prefix in own)
        raise ModelError(f"{path}: holds several sets of weights: set model.checkpoint_key to one of {there}")
    return own[0]


def _without(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _above(prefix: str) -> list[str]:
    """`a.` and nothing for `a.b.`: where a head may be that is beside its backbone."""
    parts = prefix.split(".")[:-1]
    return [".".join((*parts[:end], "")) for end in range(len(parts) - 1, -1, -1)]


def shapes_of(module: nn.Module) -> Shapes:
    """The shape of each of a module's tensors."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def head_rows(tensors: Mapping[str, Tensor], shapes: Shapes) -> int | None:
    """The number of classes in the file, where tensors differ from `shapes` in their first size alone, all alike."""
    pairs = [(tuple(t.shape), shapes[name]) for name, t in tensors.items() if name in shapes]
    differing = [(ours, theirs) for ours, theirs in pairs if ours != theirs and ours[1:] == theirs[1:]]
    sizes = {(ours[0], theirs[0]) for ours, theirs in differing if ours}
    return sizes.pop()[0] if len(sizes) == 1 and any(len(ours) > 1 for ours, _ in differing) else None


def fits(tensors: Mapping[str, Tensor], shapes: Shapes) -> bool:
    """Whether there is a tensor of its shape for every name; old checkpoints do not count the batches of norms."""
    needed = {name for name in shapes if not name.endswith("num_batches_tracked")}
    alike = all(shapes.get(name) == tuple(tensor.shape) for name, tensor in tensors.items())
    return alike and needed <= tensors.keys()


def load(module: nn.Module, fit: Fit, path: Path, model: str, classes: int | None) -> None:
    """Put the tensors into `module`, called `model`; raises ModelError."""
    shapes = shapes_of(module)
    if not fits(fit.tensors, shapes):
        raise unfit(path, model, mismatch(fit, shapes, classes))
    with torch.no_grad():
        module.load_state_dict(fit.tensors, strict=False)


def unfit(path: Path, model: str, reason: str) -> ModelError:
    """The error about weights of another model."""
    return ModelError(f"{path}: does not fit {model}: {reason}")


def mismatch(fit: Fit, shapes: Shapes, classes: int | None) -> str:
    """How many tensors match, the first few that do not, and what to set."""
    tensors = fit.tensors
    common = [name for name in shapes if name in tensors]
    other = [name for name in common if tuple(tensors[name].shape) != shapes[name]]
    missing = [name for name in shapes if name not in tensors and not name.endswith("num_batches_tracked")]
    more = [name for name in tensors if name not in shapes]
    parts = [f"{len(common) - len(other)} of {len(shapes)} tensors match"]
    if missing:
        parts.append(f"it holds nothing for {_some(missing)}")
    if more:
        parts.append(f"it has too many: {_some(more)}")
    if other:
        shown = [f"{name} {list(tensors[name].shape)} instead of {list(shapes[name])}" for name in other]
        parts.append(f"other shapes: {_some(shown)}")
    steps = f" ({'; '.join(fit.steps)})" if fit.steps else ""
    return f"{'; '.join(parts)}{steps}. {_advice(tensors, shapes, missing, more, other, classes)}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"


def _advice(
    tensors: Mapping[str, Tensor],
    shapes: Shapes,
    missing: Sequence[str],
    more: Sequence[str],
    other: Sequence[str],
    classes: int | None,
) -> str:
    rows = head_rows(tensors, shapes)
    if not missing and not more and rows is not None:
        if classes is None:
            return f"Its head has {rows} rows, so it goes with a model of as many classes"
        return f"model.num_classes is {classes}, but its head has {rows} rows: set it to {rows}, or leave it out"
    if not missing and not more and (channels := _channels(tensors, shapes, other)):
        return f"It takes images of {channels} channels: set model.kwargs.in_chans and input.channels to {channels}"
    heads = {name.rpartition(".")[0] for name in (*missing, *more)}
    if missing and more and len(missing) + len(more) <= len(shapes) // 4 and len(heads) <= 6:
        here, there = _owners(missing), _owners(more)
        made = ", ".join(f"{name} {list(tensors[name].shape)}" for name in more if name.endswith("weight"))
        return (
            f"The head is {there} there ({made}) and {here} here: replace it as in training with source: python, or "
            "save it under the names that it has here"
        )
    return f"It looks like another architecture: {CHECK}"


def _owners(names: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(name.rpartition(".")[0] for name in names))


def _channels(tensors: Mapping[str, Tensor], shapes: Shapes, other: Sequence[str]) -> int | None:
    """The channels that a first convolution takes, where nothing else differs."""
    if len(other) != 1 or tensors[other[0]].dim() != 4:
        return None
    ours, theirs = tensors[other[0]].shape, shapes[other[0]]
    return ours[1] if ours[0] == theirs[0] and ours[2:] == theirs[2:] else None
