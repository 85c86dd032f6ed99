"""Where images are read and what was found for them is written: the work on files at both ends of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from camcli.errors import CamcliError, ItemError
from camcli.images.decode import LoadedImage, loading
from camcli.images.find import Item, root_of
from camcli.images.memory import Budget
from camcli.images.preprocess import Preprocess
from camcli.images.read import Roots, Source, refuse_exhausted
from camcli.pipeline.flow import Explained, Loaded, Outcome, failure
from camcli.pipeline.painter import Painter
from camcli.pipeline.stopwatch import Stopwatch
from camcli.records import Failure, ImageResult


class Reader:
    """Reads items for the model, on any thread, and watches the folders that they are in.

    keep: how many of an image's own pixels stay, as in `loading`. budget: bytes of what is read and decoded.
    """

    def __init__(self, preprocess: Preprocess, keep: int, budget: Budget, stopwatch: Stopwatch) -> None:
        self.preprocess = preprocess
        self.keep = keep
        self.budget = budget
        self.stopwatch = stopwatch
        self._roots = Roots()

    def ahead(self, most: int) -> int:
        """How many images may be read before they are asked for: `most`, or none where memory is scarce."""
        return 0 if self.budget.is_scarce else most

    def read(self, item: Item, use: Callable[[Item, LoadedImage], None] = lambda item, image: None) -> Loaded | Failure:
        """What the model sees of `item`, whose own pixels `use` is given while they are counted as in work.

        Raises InputError when no other image can be read either.
        """
        source, root = Source(item.path), root_of(item.id, str(item.path))
        self._roots.watch(root)
        try:
            with (
                self.stopwatch.timing("decode"),
                loading(source, self.preprocess, self.keep, self.budget) as image,
            ):
                use(item, image)
                return Loaded(item, source.state, replace(image, image=None))
        except ItemError as error:
            self.refuse_gone(error, item.id, str(item.path))
            return failure(item, error, source.state)

    def refuse_gone(self, error: ItemError, name: str, path: str) -> None:
        """Raises InputError where the image could not be read because its whole folder is gone."""
        if error.stage == "read":
            self._roots.refuse_gone(root_of(name, path))


class Files:
    """Reads items for the model and paints what it says of them; may do both on several threads.

    An image's own pixels never leave it: they stay from reading to painting where the budget lets them, and otherwise
    the file is read again. budget: bytes of what is read, decoded and painted, since memory is one.
    """

    def __init__(self, painter: Painter, budget: Budget, stopwatch: Stopwatch) -> None:
        self.painter = painter
        self.budget = budget
        self.reader = Reader(painter.preprocess, painter.keep, budget, stopwatch)
        self._kept: dict[str, LoadedImage] = {}

    def read(self, item: Item) -> Loaded | Failure:
        """What the model sees of `item`; raises InputError when no other image can be read either."""
        return self.reader.read(item, self._keep)

    def _keep(self, item: Item, image: LoadedImage) -> None:
        if not self.painter.one_range and self.budget.keep(image.bytes):
            self._kept[item.id] = image

    def write(self, one: Explained) -> Outcome:
        """The outcome, once its files are there; what goes wrong fails its image, but CamcliError ends the run."""
        kept = self._kept.pop(one.found.id, None)
        try:
            return one.found if isinstance(one.found, Failure) else self._written(one.found, one, kept)
        finally:
            if kept:
                self.budget.give_back(kept.bytes)

    def _written(self, result: ImageResult, one: Explained, kept: LoadedImage | None) -> Outcome:
        try:
            with self._kept_or_again(result, kept) as image:
                return self.painter.write(result, image, one.tops)
        except CamcliError:
            raise
        except ItemError as error:
            self.reader.refuse_gone(error, result.id, result.source)
            found = error
        except Exception as error:  # encoders raise many kinds, for example for an image too long for its format
            if isinstance(error, OSError):
                refuse_exhausted(Path(result.source), error)
            found = ItemError("write", type(error).__name__, str(error))
        return Failure(result.id, result.source, found.stage, found.kind, str(found), result.file)

    @contextmanager
    def _kept_or_again(self, result: ImageResult, kept: LoadedImage | None) -> Iterator[LoadedImage]:
        """The image with room to paint it; raises ItemError when its file is no longer what it was."""
        if kept:
            with self.budget.room(self.painter.cost(result)):
                yield kept
        else:
            with self._again(result) as image:
                yield image

    @contextmanager
    def _again(self, result: ImageResult) -> Iterator[LoadedImage]:
        painter = self.painter
        source = Source(Path(result.source))
        with loading(source, painter.preprocess, painter.keep, self.budget, painter.cost(result)) as image:
            if (image.size, source.state) != (result.size, result.file):
                raise ItemError("read", "Changed", f"{source.path}: changed while it was being read")
            yield image
