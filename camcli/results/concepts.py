"""concepts.json and concepts.npz: what was learnt of all images, kept for their overlays and for going on."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from camcli.images.find import Check, Item, unchanged
from camcli.records import FileState
from camcli.results import storage
from camcli.results.claim import CONCEPTS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from camcli.results.rundir import RunDir

VECTORS = "concepts.npz"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RaisedClass(_Record):
    """A class and by how much its logit falls, on average, when the concept is taken out of the activations."""

    index: Annotated[int, Field(ge=0)]
    label: str
    raised: float


class Concept(_Record):
    """One of the things that the images of a folder share.

    colour: #rrggbb in the overlays. strongest: the raw value that has the full colour. classes: those that it raises,
    most first.
    """

    index: Annotated[int, Field(ge=0)]
    colour: str
    strongest: float
    classes: tuple[RaisedClass, ...]

    @property
    def label(self) -> str:
        """The classes in few words."""
        return ", ".join(c.label.split(",")[0] for c in self.classes) or "no class"


class SampledImage(_Record):
    """An image that concepts were learnt from; input: its file as it was then, None where there was none."""

    id: str
    input: FileState | None


class Learnt(_Record):
    """The content of concepts.json.

    fingerprint: of the settings, as in run.json. images_sha256: of the ids of all images of the run. vectors_sha256: of
    concepts.npz. sample: the images that the concepts were learnt from, those that could not be read among them.
    """

    schema_version: Literal[1] = 1
    fingerprint: str
    images_sha256: str
    concepts: tuple[Concept, ...]
    sample: tuple[SampledImage, ...]
    vectors_sha256: str

    def holds(self, sample: Sequence[Item], fingerprint: str, check: Check) -> bool:
        """Whether the same settings would find the same in `sample`."""
        if self.fingerprint != fingerprint or [one.id for one in self.sample] != [item.id for item in sample]:
            return False
        return all(unchanged(one.input, item.path, check) for one, item in zip(self.sample, sample, strict=True))


def read_learnt(out: Path) -> Learnt | None:
    """What concepts.json in `out` says; None where there is none that camcli wrote, or not the vectors to it."""
    try:
        found = Learnt.model_validate(json.loads(storage.read_regular(out / CONCEPTS)))
        vectors = storage.read_regular(out / VECTORS)
    except (OSError, ValueError, RecursionError):
        return None
    return found if hashlib.sha256(vectors).hexdigest() == found.vectors_sha256 else None


def read_vectors(out: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """float32 [k,C], the directions of the concepts in the activations, and [k], their strongest weights."""
    import numpy as np

    with np.load(io.BytesIO(storage.read_regular(out / VECTORS)), allow_pickle=False) as arrays:
        return arrays["vectors"], arrays["strongest"]


def write_learnt(
    folder: RunDir,
    fingerprint: str,
    images_sha256: str,
    concepts: Sequence[Concept],
    sample: Sequence[SampledImage],
    vectors: NDArray[np.float32],
) -> None:
    """Keep concepts and their `vectors` [k,C] in place of any earlier ones; raises OutputError."""
    import numpy as np

    buffer = io.BytesIO()
    np.savez(buffer, vectors=vectors, strongest=np.array([one.strongest for one in concepts], np.float32))
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    folder.write_whole(VECTORS, buffer.getvalue())
    about = Learnt(
        fingerprint=fingerprint,
        images_sha256=images_sha256,
        concepts=tuple(concepts),
        sample=tuple(sample),
        vectors_sha256=digest,
    )
    folder.write_json(CONCEPTS, about.model_dump())
