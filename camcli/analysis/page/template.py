"""The page's own files: HTML from a template, scripts and the style sheet as they are."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from camcli.analysis.page.store import FOLDER

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = ("base.js", "data.js", "pixels.js", "overview.js", "gallery.js", "image.js", "classes.js", "app.js")
STYLE = "style.css"


def asset(name: str) -> str:
    """The text of a script or of the style sheet."""
    return (ASSETS / name).read_text(encoding="utf-8")


def assets(title: str) -> dict[str, bytes]:
    """The files of a page that loads its data when it is needed, by their names below the run folder."""
    page = _page(title, scripts=[f"{FOLDER}/{name}" for name in SCRIPTS], style=f"{FOLDER}/{STYLE}", policy="'self'")
    return {"index.html": page, **{f"{FOLDER}/{name}": asset(name).encode() for name in (*SCRIPTS, STYLE)}}


def single(title: str, data: Sequence[str]) -> bytes:
    """A page with everything in it; data: scripts that bring it."""
    texts, style = [*map(asset, SCRIPTS[:2]), *data, *map(asset, SCRIPTS[2:])], asset(STYLE)
    policy = " ".join(map(_hash, [*texts, style]))
    return _page(title, texts=texts, style_text=style, policy=policy)


def _hash(text: str) -> str:
    """What allows just this script or style sheet to stand in the page."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _page(title: str, **parts: object) -> bytes:
    from jinja2 import Environment, FileSystemLoader

    templates = Environment(loader=FileSystemLoader(ASSETS), autoescape=True, trim_blocks=True)
    shown = title.encode(errors="backslashreplace").decode()
    return templates.get_template("index.html").render(title=shown, **parts).encode()
