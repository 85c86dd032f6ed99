"""What the command line prints: messages on standard error, results on standard output."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

import typer

from camcli.cli.events import event_line

if TYPE_CHECKING:
    from rich.console import Console

    from camcli.cli.doctor import Diagnosis
    from camcli.engine.methods import Method
    from camcli.models.loaded import Entry
    from camcli.results.status import Status

PIPED_COLUMNS = 160
NARROW = 80
_COLOURS = {"failed": "red", "camcli": "red", "warning": "yellow", "next": "green"}
"""Of the word before the colon of a message."""


@dataclass(slots=True)
class _StandardError:
    """How messages are written on standard error, in this process.

    Process-wide, as the stream is: a warning that a library logs on any thread, and the error that ends a command,
    know nothing of the command's options.
    """

    as_json: bool = False
    quiet: bool = False


_STANDARD_ERROR = _StandardError()


class _FromLibraries(logging.Handler):
    """Prints warnings that libraries log as messages of camcli, unless --quiet was given."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record."""
        if not _STANDARD_ERROR.quiet:
            say(record.getMessage(), "log", logger=record.name, level=record.levelname.lower())


@contextmanager
def library_messages() -> Iterator[None]:
    """Within the context, warnings and errors that libraries log are printed as messages of camcli."""
    handler = _FromLibraries(logging.WARNING)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


def write_messages(as_json: bool = False, quiet: bool = False) -> None:
    """Set how messages are written: each a JSON object on a line; quiet: without what libraries log."""
    _STANDARD_ERROR.as_json, _STANDARD_ERROR.quiet = as_json, quiet


def is_json() -> bool:
    """Whether messages are JSON."""
    return _STANDARD_ERROR.as_json


def say(text: str, event: str = "note", **fields: Any) -> None:
    """Print a message on standard error: as text with control characters made visible, or as a JSON event."""
    as_text = _coloured(visible(text)) if coloured(sys.stderr) else visible(text)
    typer.echo(event_line(event, message=text, **fields) if _STANDARD_ERROR.as_json else as_text, err=True)


def coloured(stream: TextIO | None) -> bool:
    """Whether to write colours: on a terminal, unless NO_COLOR (https://no-color.org) is set; None: a closed stream."""
    return _is_terminal(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def terminal(stderr: bool = True) -> Console:
    """Lays out tables, as wide as the terminal; in a pipe as wide as COLUMNS says, or else PIPED_COLUMNS."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if _is_terminal(stream) or os.environ.get("COLUMNS") else PIPED_COLUMNS
    return Console(stderr=stderr, width=width, color_system="auto" if coloured(stream) else None, highlight=False)


def _coloured(text: str) -> str:
    head, colon, rest = text.partition(":")
    return typer.style(head + colon, fg=_COLOURS[head], bold=True) + rest if head in _COLOURS else text


def counted(number: int, noun: str) -> str:
    """`1 image`, `2 images`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def visible(text: str) -> str:
    """`text` with characters that a terminal would obey or hide written as escapes, except line ends."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def one_line(text: str) -> str:
    """`visible`, and on one line: for names of files."""
    return visible(text).replace("\n", "\\n")


def print_json(value: Any) -> None:
    """Print a result on standard output as JSON, ASCII only."""
    typer.echo(json.dumps(value, indent=2))


def print_status(found: Status) -> None:
    """Print what is done and missing in a run folder, and how to go on."""
    typer.echo(visible(f"{found.out}: {found.run}"))
    for name in ("done", "failed", "missing", "changed", "damaged", "vanished"):
        ids = getattr(found, name)
        kinds = ", ".join(f"{n} {kind}" for kind, n in found.failures.items()) if name == "failed" else ""
        examples = "" if name == "done" else ", ".join(one_line(i) for i in ids[:3]) + (", …" if len(ids) > 3 else "")
        typer.echo(f"{name:9} {len(ids):7}  {'  '.join(filter(None, (kinds, examples)))}".rstrip())
    if found.foreign:
        typer.echo(f"{found.foreign} of the records were made with another config than the last run's")
    if len(found.versions) > 1:
        typer.echo(visible(_by_versions(found.versions)))
    for line in evidence_lines(found.without_evidence, found.above, found.foreign):
        typer.echo(line)
    if not found.listed:
        typer.echo(
            f"the inputs cannot be listed again, so {counted(found.unknown, 'image')} without a record stay nameless"
        )
    if found.todo or found.unknown or found.vanished:
        typer.echo("to go on: the same command again" + ("; --retry-failed for the failed" * bool(found.failed)))
    elif found.failed:
        typer.echo("to try the failed ones again: the same command with --retry-failed")


def evidence_lines(found: Mapping[str, int], above: float | None, foreign: int = 0) -> list[str]:
    """What was explained without much to see, in words; foreign: how many had another threshold than `above`."""
    none = "no class above the threshold of its run" if foreign else f"no class above {above}"
    words = {
        "no_heatmap": f"{none}, so no heatmap",
        "no_class": f"{none}, so only maps that need none",
        "below": f"{none}, so the most probable one is shown",
        "empty": "no evidence in any heatmap, so nothing is painted",
    }
    return [f"{counted(found[kind], 'image')}: {what}" for kind, what in words.items() if kind in found]


def _by_versions(found: Sequence[tuple[int, Mapping[str, str]]]) -> str:
    """`120 images were explained with torch 2.14.1, 30 with torch 2.15.0`: only what differs."""
    names = sorted({name for _, versions in found for name in versions})
    differing = [name for name in names if len({versions.get(name) for _, versions in found}) > 1]
    parts = [", ".join(f"{name} {versions[name]}" for name in differing if name in versions) for _, versions in found]
    first, *others = [(count, part or "unknown versions") for (count, _), part in zip(found, parts, strict=True)]
    explained = "1 image was" if first[0] == 1 else f"{first[0]} images were"
    return f"{explained} explained with {first[1]}" + "".join(f"; {n} with {part}" for n, part in others)


def print_diagnosis(found: Diagnosis) -> None:
    """What the doctor found."""
    for name, version in found.versions.items():
        typer.echo(f"{name:12} {version}")
    for name, about in found.devices.items():
        typer.echo(f"{name:12} {about}")
    for name, about in found.backends.items():
        typer.echo(visible(f"{name + ' backend':18} {about}"))
    for name, (folder, size) in found.caches.items():
        typer.echo(visible(f"{name + ' cache':18} {folder}, {size / 2**20:.0f} MiB"))
    for name, value in found.check.items():
        typer.echo(f"{name:12} {value:.1%}" if isinstance(value, float) else f"{name:12} {value}")
    typer.echo("healthy" if found.healthy else "NOT healthy: the embedded model does not see what it should")


def print_layers(found: list[dict[str, Any]]) -> None:
    """The tree of `camcli layers`: modules in modules, in the order of the forward pass."""
    from rich.tree import Tree

    tree = Tree("path, type, shape, layout and grid; [green]the layer that a run reads[/]; [dim]no use: why[/]")
    nodes = {"": tree}
    for candidate in sorted(found, key=lambda c: c["path"].count(".")):
        inside = candidate["path"].rpartition(".")[0]
        while inside not in nodes:
            inside = inside.rpartition(".")[0]
        nodes[candidate["path"]] = nodes[inside].add(_layer_line(candidate))
    terminal(stderr=False).print(tree)


def _layer_line(candidate: Mapping[str, Any]) -> str:
    from rich.markup import escape

    shape, layout = "x".join(map(str, candidate["shape"])), candidate["layout"]
    text = escape(f"{candidate['path']}  {candidate['type']}  {shape}")
    if layout is None:
        return f"[dim]{text}  no layout over the image[/]"
    prefix = f" after {layout['prefix']} prefix tokens" if layout["prefix"] else ""
    text += f"  {layout['kind']} {layout['grid'][0]}x{layout['grid'][1]}{prefix}"
    if candidate["chosen"]:
        return f"[bold green]{text}  <- chosen[/]"
    if candidate["live"]:
        return text
    return (
        f"{text}  gradient at {share:.0%} of the locations"
        if (share := candidate["live_locations"])
        else f"[dim]{text}  no gradient[/]"
    )


def print_labels(found: Sequence[Mapping[str, Any]]) -> None:
    """The classes of `camcli labels`, one a line."""
    width = len(str(found[-1]["index"]))
    for row in found:
        typer.echo(visible("  ".join(filter(None, (f"{row['index']:{width}}", row["wordnet"], row["label"])))))


def print_methods(found: Sequence[Method]) -> None:
    """The table of `camcli methods`."""
    from rich.table import Table

    table = Table("method", "good for", "cost", "paper", box=None, pad_edge=False)
    for method in found:
        table.add_row(method.name, method.good_for, method.cost, method.paper)
    terminal(stderr=False).print(table)


def print_models(entries: Sequence[Entry]) -> None:
    """The table of `camcli models`."""
    from rich.table import Table

    table = Table("model", "cached", "input", "parameters", "weights", box=None, pad_edge=False)
    table.columns[0].no_wrap = terminal(stderr=False).width >= NARROW
    for column in table.columns[1:4]:
        column.no_wrap = True
    for column in (table.columns[0], table.columns[4]):
        column.overflow = "fold"
    for entry in entries:
        parameters = f"{entry.parameters / 1e6:.1f} M" if entry.parameters else ""
        height, width = entry.input_size
        tags = " ".join(entry.tags) if entry.tags else "yes" if entry.pretrained else "-"
        table.add_row(
            f"{entry.source}/{entry.name}", "yes" if entry.cached else "-", f"{height}x{width}", parameters, tags
        )
    terminal(stderr=False).print(table)
