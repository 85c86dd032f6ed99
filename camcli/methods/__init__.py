"""Explanation methods, each one registered function under its formula and its paper."""

from camcli.methods import activation as activation
from camcli.methods import gradient as gradient
from camcli.methods import perturbation as perturbation
from camcli.methods import pixel as pixel
from camcli.methods.table import listed
from camcli.methods.view import METHODS, Batch, LayerView, Method

__all__ = ["METHODS", "Batch", "LayerView", "Method", "listed"]
