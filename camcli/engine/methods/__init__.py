"""Explanation methods, each one registered function under its formula and its paper."""

from camcli.engine.methods import activation as activation
from camcli.engine.methods import attention as attention
from camcli.engine.methods import gradient as gradient
from camcli.engine.methods import igos as igos
from camcli.engine.methods import perturbation as perturbation
from camcli.engine.methods import pixel as pixel
from camcli.engine.methods import rise as rise
from camcli.engine.methods.table import listed, methods_of
from camcli.engine.methods.view import METHODS, Batch, LayerView, Method, load_plugins
from camcli.engine.methods.view import layer_method as register_method

__all__ = ["METHODS", "Batch", "LayerView", "Method", "listed", "methods_of", "register_method"]

load_plugins()
