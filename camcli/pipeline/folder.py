"""A run for Python callers: the same folder that `camcli run` writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from camcli.config.file import LoadedConfig, config_of, load_config
from camcli.config.schema import RunConfig
from camcli.images.find import asked, by_extension, discover
from camcli.models.code import code_allowed
from camcli.pipeline.job import Job, look_alone_differs
from camcli.pipeline.progress import Bar, Progress, Silent
from camcli.pipeline.repaint import repaint
from camcli.pipeline.run import perform
from camcli.results.run import Run, open_run


def run(
    config: RunConfig | LoadedConfig | str | Path,
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    progress: Progress | bool = False,
    allow_code: bool = False,
) -> Run:
    """Explain images into the run folder `out`, as `camcli run` does; what is there already is kept.

    config: what `load_config` returns, a RunConfig, a YAML file, or the name of a model. inputs: files, folders, globs.
    progress: True for a bar, or who is told of each image. allow_code: whether the config may run the Python function
    that it names (`source: python`).
    Raises CamcliError when the run as a whole cannot go on; an image that fails is among the run's failures.
    """
    names = [str(name) for name in ([inputs] if isinstance(inputs, (str, Path)) else inputs)]
    others: set[str] = set()
    items = discover(names, out=Path(out), others=others)
    words = asked(names, None, None, None)
    job = Job(_config(config), items, Path(out), asked=words, skipped_files=by_extension(others))
    if look_alone_differs(job):
        repaint(job.out, job.config.overlay, partly=True)
    with code_allowed(allow_code):
        perform(job, (Bar() if progress else Silent()) if isinstance(progress, bool) else progress)
    return open_run(out)


def _config(config: RunConfig | LoadedConfig | str | Path) -> RunConfig:
    if isinstance(config, LoadedConfig):
        return config.config
    if isinstance(config, RunConfig):
        return config
    if isinstance(config, str) and not config.endswith((".yaml", ".yml")):
        return config_of({"model": config})
    return load_config(Path(config)).config
