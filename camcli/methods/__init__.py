"""Explanation methods, each one registered function under its formula and its paper."""

from camcli.methods import gradient as gradient
from camcli.methods.view import METHODS, LayerView, Method

__all__ = ["METHODS", "LayerView", "Method"]
