"""A JUnit file: what CI servers show, with a test case for each image."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

from camcli.results.ledger import Entry
from camcli.results.run import Run
from camcli.results.storage import write_named

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_junit(path: Path, ids: Iterable[str], run: Run) -> None:
    """Write how each image ended: passed, failed with its stage and message, or skipped; raises OutputError."""
    cases = [_case(name, run.ledger.entries.get(name)) for name in ids]
    suite = ElementTree.Element("testsuite", name="camcli", tests=str(len(cases)), errors="0")
    suite.set("failures", str(sum(case.find("failure") is not None for case in cases)))
    suite.set("skipped", str(sum(case.find("skipped") is not None for case in cases)))
    suite.extend(cases)
    ElementTree.indent(suite)
    write_named(path, ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True) + b"\n")


def _case(name: str, entry: Entry | None) -> ElementTree.Element:
    case = ElementTree.Element("testcase", classname="camcli", name=clean(name))
    if entry is None:
        ElementTree.SubElement(case, "skipped", message="not reached")
    elif not entry.done:
        failure = ElementTree.SubElement(case, "failure", type=f"{entry.stage}.{entry.kind}")
        failure.set("message", clean(entry.message))
    return case


def clean(text: str) -> str:
    """XML cannot hold control characters and undecodable bytes; they are shown as Python does."""
    return _NOT_XML.sub(lambda match: repr(match.group())[1:-1], text)
