"""The command line: the tree of commands, and the entry point that turns every error into a message and an exit code.

A command lives in the file of its family: `run.py`, `folder.py`, `models.py`, `config.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from camcli.cli import config, console, diff, folder, models, page, run, stdio
from camcli.errors import CamcliError
from camcli.images.memory import keep_freed_memory
from camcli.models.code import code_allowed
from camcli.models.offline import no_network
from camcli.pipeline import crash

EXIT_CODES = (
    "Exit codes: 0 all done · 1 finished, but images failed · 2 usage or config · 3 fatal (model, weights, disk) · "
    "5 no images found · 70 camcli itself broke (a log says how) · 75 output folder in use · 130/143 interrupted."
)


def _example(*words: str) -> str:
    """Commands to be typed as they stand, at the end of a help text."""
    lines = "\n".join(f"[b]camcli {command}[/b]" for command in words)
    return f"Example{'s' * (len(words) > 1)}:\n\n{lines}"


class _Root(TyperGroup):
    """Handles Ctrl-C and OSError before click, which would end them with exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that `ctx` names."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except OSError as error:
            raise crash.internal_error(error) from error


class _Command(TyperCommand):
    """Obeys --offline and --allow-code, and logs unexpected errors in the run folder, if it has one."""

    def invoke(self, ctx: Any) -> Any:
        """Run it; raises InternalError for what nobody expected."""
        try:
            with no_network(ctx.params.get("offline", False)), code_allowed(ctx.params.get("allow_code", False)):
                return super().invoke(ctx)
        except (CamcliError, typer.Exit, typer.Abort):
            raise
        except Exception as error:
            raise crash.internal_error(error, ctx.params.get("out")) from error


class _ListByDefault(TyperGroup):
    """`camcli models PATTERN` is `camcli models list PATTERN`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert `list` where no command is named."""
        if not args or (args[0] not in self.commands and args[0] != "--help"):
            args = ["list", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_Root,
    help="Where did the classifier look? Heatmap overlays and top-5 reports for folders of images.",
    epilog=f"{EXIT_CODES}\n\n{_example('run sample_images/shapes --out out')}",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _group(name: str, about: str, example: str, cls: type[TyperGroup] = TyperGroup) -> typer.Typer:
    group = typer.Typer(help=about, epilog=_example(example), no_args_is_help=cls is TyperGroup, cls=cls)
    app.add_typer(group, name=name)
    return group


def _add(
    group: typer.Typer,
    command: Callable[..., None],
    *examples: str,
    name: str | None = None,
    cls: type[TyperCommand] = _Command,
    codes: bool = False,
) -> None:
    """A command whose help ends with examples; codes: after the exit codes."""
    epilog = [EXIT_CODES] * codes + [_example(*examples)]
    group.command(name, cls=cls, epilog="\n\n".join(epilog))(command)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        from camcli import __version__

        typer.echo(__version__)
        raise typer.Exit


_add(
    app,
    run.run,
    "run @list.txt -c configs/vit_base.yaml --shard 3/8 --out out",
    "run photos -m timm/resnet50 --method gradcam,layercam --out out",
    codes=True,
)
_add(app, folder.status, "status out")
_add(app, folder.merge, "merge out")
_add(app, folder.export, "export out results.csv")
_add(app, diff.diff, "diff base.json.gz out --markdown summary.md")
_add(app, diff.baseline, "baseline out base.json.gz")
_add(app, folder.paint, "paint out -s overlay.style=contours -s overlay.caption=true", codes=True)
_add(app, page.report, "report out --open", "report out --single-file unsure.html --only unsure")
_add(app, models.doctor, "doctor", cls=TyperCommand)
_add(app, models.layers, "layers -m torchvision/resnet50")
_add(app, models.labels, "labels cat -m timm/resnet50")
_add(app, models.methods, "methods", cls=TyperCommand)
_add(app, run.dff, "dff photos -m timm/resnet50 --concepts 5 --out concepts", codes=True)
_config = _group("config", "Show, check and describe configs.", "config check configs/vit_base.yaml")
_add(_config, config.show, "config show -c configs/vit_base.yaml --alpha 0.7", name="show", cls=TyperCommand)
_add(_config, config.check, "config check configs/vit_base.yaml --load", name="check")
_add(_config, config.config_schema, "config schema", name="schema", cls=TyperCommand)
_schema = _group("schema", "JSON Schemas of what camcli writes.", "schema report")
_add(_schema, config.report_schema, "schema report", name="report", cls=TyperCommand)
_models = _group("models", "Models that can be explained, or their weights.", "models squeezenet", _ListByDefault)
_add(_models, models.list_models, "models squeezenet", "models 'timm/vit_*'", name="list", cls=TyperCommand)
_add(_models, models.fetch, "models fetch timm/resnet50.a1_in1k", name="fetch")


def main() -> None:
    """Entry point: every error becomes one message and an exit code, and no stream ends the work."""
    console.write_messages()
    keep_freed_memory()
    with stdio.steady() as out, console.library_messages():
        code = _invoke()
        reason = out.loss() if out else None
        if reason:
            console.say(f"camcli: standard output cannot be written: {reason}", "error", exit_code=3)
            code = 3 if code in (0, 1) else code
    sys.exit(code)


def _invoke() -> int:
    """The exit code of what the command line asks for."""
    try:
        app(prog_name="camcli")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0
    except CamcliError as error:
        return _told(error)
    except Exception as error:
        return _told(crash.internal_error(error))
    return 0


def _told(error: CamcliError) -> int:
    """Print the error; its exit code."""
    console.say(f"camcli: {error}", "error", exit_code=error.exit_code)
    return error.exit_code
