"""The table of a run as CSV, as JSON lines or as Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from camcli.errors import ConfigError
from camcli.results.rows import Cell, Row, columns
from camcli.results.run import open_run
from camcli.results.storage import write_named

AT_ONCE = 10_000
"""Rows of a Parquet row group."""

Cells = Mapping[str, Cell]
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet would take for the beginning of a formula (https://owasp.org/www-community/attacks/CSV_Injection)."""


def export(out: Path, file: Path) -> int:
    """Write the table of the run in `out` to `file` and return how many rows it has; its extension says how.

    Raises ConfigError where `out` is no run or the extension is unknown, OutputError where `file` cannot be written.
    """
    writer = WRITERS.get(file.suffix.lower())
    if writer is None:
        raise ConfigError(f"{file}: name it .csv, .jsonl or .parquet, so that camcli knows what to write")
    count = 0

    def cells(rows: Iterable[Row]) -> Iterator[Cells]:
        nonlocal count
        for row in rows:
            count += 1
            yield row.cells()

    run = open_run(out)
    write_named(file, writer(cells(run.rows())))
    return count


def _csv(rows: Iterable[Cells]) -> Iterator[bytes]:
    """A line for each row below one with the names; what a spreadsheet would run as a formula begins with '."""
    yield _line(columns())
    for row in rows:
        yield _line(map(_harmless, row.values()))


def _line(values: Iterable[object]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(values)
    return buffer.getvalue().encode()


def _harmless(value: Cell) -> Cell:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def _jsonl(rows: Iterable[Cells]) -> Iterator[bytes]:
    for row in rows:
        yield json.dumps(row, allow_nan=False, ensure_ascii=False).encode() + b"\n"


def _parquet(rows: Iterator[Cells]) -> Iterator[bytes]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ConfigError("Parquet needs pyarrow: pip install pyarrow, or write .csv or .jsonl") from None
    kinds: dict[type, Any] = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    schema = pa.schema([(name, kinds[kind]) for name, kind in columns().items()])
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema) as writer:
        for some in iter(lambda: list(islice(rows, AT_ONCE)), []):
            writer.write_table(pa.Table.from_pylist(some, schema))
    yield sink.getvalue().to_pybytes()


WRITERS: Mapping[str, Callable[[Iterator[Cells]], Iterator[bytes]]] = {
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}
