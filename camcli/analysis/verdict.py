"""A difference as a table for a terminal, as Markdown and as a JUnit file."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree

from camcli.analysis.diff import Difference, Pair
from camcli.results.junit import clean

_HEAD = ("image", "before", "after", "heat alike")


def lines(found: Difference) -> Iterator[str]:
    """What differs, in words: what is too much, the shares, and the pairs that differ most."""
    yield f"{len(found.pairs)} images of {found.baseline} in {found.candidate}"
    for name, share in found.shares.items():
        limit = getattr(found.limits, name)
        yield f"{name.replace('_', ' '):13} {share:7.1%}  at most {limit:.1%}{'  TOO MUCH' * (name in found.exceeded)}"
    if found.added:
        yield f"{'added':13} {len(found.added):6}   only in {found.candidate}"
    if alone := sum(len(pair.unpaired) for pair in found.pairs):
        yield f"{alone} heatmaps are of a class that only one side explains, so they are not compared"
    if found.without_maps:
        yield "no raw maps on one side, so heat is compared by boxes; keep them with --set maps=npz"
    for pair in found.worst:
        yield "  ".join(_cells(pair))


def markdown(found: Difference) -> str:
    """For a job's summary or a comment on a pull request."""
    rows = [
        f"**camcli diff: {'; '.join(found.tripped) or 'nothing moved more than it may'}**",
        "",
        "| | share | at most |",
        "|---|---|---|",
        *(f"| {n.replace('_', ' ')} | {s:.1%} | {getattr(found.limits, n):.1%} |" for n, s in found.shares.items()),
    ]
    if found.worst:
        rows += ["", f"| {' | '.join(_HEAD)} |", "|---|---|---|---|"]
        rows += [f"| {' | '.join(map(_escaped, _cells(pair)))} |" for pair in found.worst]
    return "\n".join(rows) + "\n"


def junit(found: Difference) -> bytes:
    """A JUnit file with a test case for each limit."""
    suite = ElementTree.Element("testsuite", name="camcli diff", tests=str(len(found.shares)))
    suite.set("failures", str(len(found.exceeded)))
    for name, share in found.shares.items():
        case = ElementTree.SubElement(suite, "testcase", classname="camcli.diff", name=name)
        if name in found.exceeded:
            limit = f"more than {getattr(found.limits, name):.1%}"
            failure = ElementTree.SubElement(case, "failure", message=f"{share:.1%} of the images, {limit}")
            failure.text = clean("\n".join("  ".join(_cells(pair)) for pair in found.worst))
    ElementTree.indent(suite)
    text: bytes = ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


def _cells(pair: Pair) -> tuple[str, ...]:
    sides = (f"{label} {probability:.1%}" for label, probability in (pair.before, pair.after))
    return pair.id, *sides, f"{pair.similarity:.3f}"


def _escaped(text: str) -> str:
    """A name may hold what Markdown would obey, and characters that no encoding has."""
    plain = text.encode("utf-8", "backslashreplace").decode().replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{c}" if c in "\\`*_{}[]()#!|" else " " if c in "\r\n" else c for c in plain)
