"""Classifiers that a function of the user's builds: `name: my_package.models:build`, or `path: my_model.py`.

The function gets `model.kwargs`, and `num_classes` where the config has it, and returns an nn.Module from images to
logits. It runs only where code is allowed (`code.py`).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ValidationError
from torch import nn

from camcli.config.model import ModelConfig
from camcli.config.schema import InputConfig
from camcli.errors import CamcliError, ConfigError, short
from camcli.images.preprocess import Preprocess
from camcli.models.checkpoint import read_checkpoint
from camcli.models.code import require_permission
from camcli.models.fit import Built, filled
from camcli.models.loaded import Entry
from camcli.models.output import described
from camcli.models.weights import sha256, sha256_of_tensors
from camcli.registry import did_you_mean


def names() -> list[str]:
    """None: whatever can be imported."""
    return []


def entry(name: str, count_parameters: bool) -> Entry:
    """Nothing is known before the code runs."""
    return Entry("python", name, False, False, (224, 224), None)


def check(config: ModelConfig) -> None:
    """Raises ConfigError for a file that is not there; nothing is imported."""
    file, _ = _place(config)
    if isinstance(file, Path) and not file.is_file():
        raise ConfigError(f"{file}: no such file; model.path is a Python file, whose function model.name is called")


def pretrained_file(config: ModelConfig) -> Path | None:
    """None: the module comes with the weights that the function gives it."""
    return None


def build(config: ModelConfig, file: Path | None) -> Built:
    """What the function returns, with the weights of `file` where the config names one."""
    check(config)
    where, function = _place(config)
    require_permission(f"{where} is Python code")
    code = _imported(where)
    source = Path(str(code.__file__))

    head = {} if config.num_classes is None else {"num_classes": config.num_classes}
    module = _module(code, function, {**head, **config.kwargs})
    digest = sha256(source)
    if file is not None:
        found = filled(module, read_checkpoint(file, config.checkpoint_key), config.num_classes, config.name)
        return replace(found, code=source, code_sha256=digest)
    return Built(module, code=source, code_sha256=digest, weights_sha256=sha256_of_tensors(module.state_dict()))


def preprocess(config: ModelConfig, module: nn.Module) -> Preprocess | Mapping[str, Any] | None:
    """What the second function returns: fields of `input`, or a Preprocess; None without one."""
    if config.preprocess is None:
        return None
    name, _, function = config.preprocess.rpartition(":")
    found = _call(_imported(name or _place(config)[0]), function, {})
    if isinstance(found, Preprocess):
        return found
    try:
        return InputConfig.model_validate(found).model_dump(exclude_none=True)
    except ValidationError as error:
        detail = error.errors()[0]
        field = ".".join(map(str, detail["loc"])) or type(found).__name__
        raise ConfigError(f"model.preprocess: {function}() returned {field}: {detail['msg']}") from None


def labels(config: ModelConfig, module: nn.Module | None) -> tuple[str, ...] | None:
    """None: they are in `model.labels`, or beside the weights."""
    return None


def _place(config: ModelConfig) -> tuple[Path | str, str]:
    """The file, or the name of the module, and the name of the function."""
    where, _, function = config.name.rpartition(":")
    if config.path is not None:
        return Path(os.path.expanduser(config.path)), function or config.name
    where, function = (where, function) if where else (config.name, "build")
    return (Path(os.path.expanduser(where)) if where.endswith(".py") else where), function


@contextmanager
def _findable(folder: str) -> Iterator[None]:
    """Inside, modules in `folder` can be imported."""
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _imported(where: Path | str) -> ModuleType:
    """The module of a file, run once as long as it does not change, or of a name; raises ConfigError for its errors."""
    name = f"camcli_code_{sha256(where)}_{where.resolve()}" if isinstance(where, Path) else where
    if name in sys.modules:
        return sys.modules[name]
    with _findable(str(where.parent.resolve()) if isinstance(where, Path) else os.getcwd()):
        try:
            return _run_file(name, where) if isinstance(where, Path) else importlib.import_module(where)
        except Exception as error:
            raise _of_the_user(f"{where} cannot be imported", error, *_files(where)) from None


def _files(where: Path | str) -> tuple[str, ...]:
    """How the paths of a module's file may end."""
    if isinstance(where, Path):
        return (str(where),)
    path = where.replace(".", os.sep)
    return f"{path}.py", os.path.join(path, "__init__.py")


def _run_file(name: str, file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError("no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look there
    try:
        # not by the loader, which may take bytecode of what the file was a moment ago
        exec(compile(file.read_bytes(), str(file), "exec", dont_inherit=True), vars(module))
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _module(code: ModuleType, function: str, kwargs: Mapping[str, Any]) -> nn.Module:
    found = _call(code, function, kwargs)
    if not isinstance(found, nn.Module):
        raise ConfigError(f"{code.__file__}: {function}() returned {described(found)}, but an nn.Module is wanted")
    return found


def _call(code: ModuleType, function: str, kwargs: Mapping[str, Any]) -> Any:
    """What a function of the user's returns; raises ConfigError where it is not there and for what it raises."""
    found: Callable[..., Any] | None = getattr(code, function, None)
    if not callable(found):
        known = [name for name, value in vars(code).items() if callable(value) and not name.startswith("_")]
        raise ConfigError(f"{code.__file__}: has no function {function!r}{did_you_mean(function, known)}")
    with _findable(str(Path(str(code.__file__)).parent)):
        try:
            return found(**kwargs)
        except CamcliError:
            raise
        except Exception as error:
            raise _of_the_user(f"{function}() failed", error, str(code.__file__)) from None


def _of_the_user(what: str, error: Exception, *files: str) -> ConfigError:
    """With the last line of the user's file, whose path ends like one of `files`, that the error went through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(files)]
    place = f"{frames[-1].filename}:{frames[-1].lineno}: " if frames else ""
    return ConfigError(f"{place}{what} ({type(error).__name__}: {short(error)})")
