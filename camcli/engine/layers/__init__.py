"""Which layer to look at, and how to read it as a grid over the image."""

from camcli.engine.layers.cache import resolve_cached
from camcli.engine.layers.layout import Layout, Tap, TargetLayer
from camcli.engine.layers.resolve import Candidate, list_candidates, resolve_layer

__all__ = ["Candidate", "Layout", "Tap", "TargetLayer", "list_candidates", "resolve_cached", "resolve_layer"]
