"""Where did the classifier look? Heatmaps for folders of images, from the shell or from Python.

    import camcli

    [found] = camcli.explain(["cat.jpg"], model="timm/resnet50", targets=["tabby"])
    found.overlay().save("heat.png")

What `__all__` names is public; the rest may change. torch is loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from camcli.config.file import load_config as load_config
    from camcli.engine.methods import register_method as register_method
    from camcli.errors import CamcliError as CamcliError
    from camcli.errors import ConfigError as ConfigError
    from camcli.errors import ItemError as ItemError
    from camcli.errors import LayerError as LayerError
    from camcli.errors import LockedError as LockedError
    from camcli.errors import MethodError as MethodError
    from camcli.errors import ModelError as ModelError
    from camcli.errors import NoInputsError as NoInputsError
    from camcli.errors import OutputError as OutputError
    from camcli.pipeline.explainer import Explainer as Explainer
    from camcli.pipeline.explainer import Explanation as Explanation
    from camcli.pipeline.explainer import explain as explain
    from camcli.pipeline.folder import run as run
    from camcli.results.run import Run as Run
    from camcli.results.run import open_run as open_run

__version__ = "0.1.0"

_HOME = {
    "explain": "pipeline.explainer",
    "Explainer": "pipeline.explainer",
    "Explanation": "pipeline.explainer",
    "run": "pipeline.folder",
    "Run": "results.run",
    "open_run": "results.run",
    "load_config": "config.file",
    "register_method": "engine.methods",
    **dict.fromkeys(
        (
            *("CamcliError", "ConfigError", "ItemError", "LayerError", "LockedError", "MethodError", "ModelError"),
            *("NoInputsError", "OutputError"),
        ),
        "errors",
    ),
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    """Public names, loaded when they are first asked for."""
    if name not in _HOME:
        raise AttributeError(f"module 'camcli' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"camcli.{_HOME[name]}"), name)
    globals()[name] = value
    return value
