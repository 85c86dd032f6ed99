"""The fourth stage: what was found for images to files and records, on threads."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

from camcli.errors import CamcliError, ItemError
from camcli.images.decode import LoadedImage, decode, loading
from camcli.images.find import Item, state_of
from camcli.images.memory import Budget
from camcli.pipeline.flow import Explained, Loaded, Outcome, Stop, failure, in_order
from camcli.pipeline.painter import Painter, top_of
from camcli.records import Failure, FileState, ImageResult


def paint(
    explained: Iterable[Explained], painter: Painter, budget: Budget, threads: int, ahead: int, stop: Stop
) -> Generator[Outcome]:
    """One outcome for each image, in order; what goes wrong fails its image, but OutputError ends all.

    ahead: how many images may be painted before they are asked for, beside two for each thread.
    budget: what decoded images may take; shared with the loading, because memory is one.
    """
    if painter.one_range:
        return _in_one_range(explained, painter, budget, threads, stop)
    waiting = partial(painter.stopwatch.timing, "wait for files")
    return in_order(partial(_painted, painter, budget), explained, threads, lambda: ahead + 2 * threads, waiting)


def _painted(painter: Painter, budget: Budget, one: Explained) -> Outcome:
    found, loaded = one.found, one.loaded
    if loaded is None:
        assert isinstance(found, Failure), "only what failed has no image"
        return found
    try:
        return found if isinstance(found, Failure) else _written(painter, budget, found, loaded)
    finally:
        budget.give_back(loaded.image.bytes)


def _written(painter: Painter, budget: Budget, result: ImageResult, loaded: Loaded) -> Outcome:
    def write() -> Outcome:
        with budget.room(painter.cost(result) + (loaded.image.cost if loaded.without_pixels else 0)):
            return painter.write(result, _whole(loaded), {})

    return _outcome(write, loaded.item, loaded.file)


def _whole(loaded: Loaded) -> LoadedImage:
    """The image as it is to be painted; raises ItemError when the file is no longer what it was."""
    if not loaded.without_pixels:
        return loaded.image
    path, image = loaded.item.path, decode(loaded.item.path)
    if image.size != loaded.image.size or state_of(path, with_hash=False) != _unhashed(loaded.file):
        raise ItemError("read", "Changed", f"{path}: changed while it was being read")
    return replace(loaded.image, image=image)


def _in_one_range(
    explained: Iterable[Explained], painter: Painter, budget: Budget, threads: int, stop: Stop
) -> Generator[Outcome]:
    """Wait for all results, find each method's largest value, then read the images again to paint them."""
    results: list[ImageResult] = []
    for one in explained:
        if one.loaded:
            budget.give_back(one.loaded.image.bytes)
        if isinstance(one.found, Failure):
            yield one.found
        else:
            results.append(one.found)
        del one
    if stop():
        return  # the range of all is not known, so the next run explains all of them again
    work = partial(_painted_again, painter, budget, _tops(results))
    with closing(in_order(work, results, threads, lambda: 2 * threads)) as painted:
        for outcome in painted:
            yield outcome
            if stop():
                return


def _painted_again(painter: Painter, budget: Budget, tops: Mapping[str, float], result: ImageResult) -> Outcome:
    item = Item(result.id, Path(result.source))

    def write() -> Outcome:
        with loading(item.path, painter.preprocess, painter.whole, budget, painter.cost(result)) as image:
            return painter.write(result, image, tops)

    return _outcome(write, item, result.file)


def _tops(results: Iterable[ImageResult]) -> dict[str, float]:
    """Of each method, the largest raw value in all its maps that show something."""
    tops: dict[str, float] = {}
    for heatmap in (heatmap for result in results for heatmap in result.heatmaps if not heatmap.empty):
        tops[heatmap.method] = max(tops.get(heatmap.method, 0.0), top_of(heatmap))
    return tops


def _outcome(write: Callable[[], Outcome], item: Item, file: FileState | None) -> Outcome:
    """What `write` returns, or the failure of its image."""
    try:
        return write()
    except CamcliError:
        raise
    except ItemError as error:
        return failure(item, error, file)
    except Exception as error:  # encoders raise many kinds, for example for an image too long for its format
        return failure(item, ItemError("write", type(error).__name__, str(error)), file)


def _unhashed(file: FileState | None) -> FileState | None:
    return FileState(file.bytes, file.mtime_ns) if file else None
