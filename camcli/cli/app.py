"""The command line: the tree of commands, and the entry point that turns every error into a message and an exit code.

A command lives in the file of its family: `run.py`, `folder.py`, `models.py`, `config.py`.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from camcli.cli import config, console, folder, models, run, stdio
from camcli.errors import CamcliError
from camcli.images.memory import keep_freed_memory
from camcli.models.code import code_allowed
from camcli.models.offline import no_network
from camcli.pipeline import crash

EXIT_CODES = (
    "Exit codes: 0 all done · 1 finished, but images failed · 2 usage or config · 3 fatal (model, weights, disk) · "
    "5 no images found · 70 camcli itself broke (a log says how) · 75 output folder in use · 130/143 interrupted."
)


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
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
config_app = typer.Typer(help="Show, check and describe configs.", no_args_is_help=True)
schema_app = typer.Typer(help="JSON Schemas of what camcli writes.", no_args_is_help=True)
models_app = typer.Typer(help="Models that can be explained: `camcli models 'resnet*'`.", cls=_ListByDefault)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        from camcli import __version__

        typer.echo(__version__)
        raise typer.Exit


app.command(cls=_Command, epilog=f"{run.RUN_EXAMPLES}\n\n{EXIT_CODES}")(run.run)
app.command(cls=_Command)(folder.status)
app.command(cls=_Command)(folder.merge)
app.command()(models.doctor)
app.command(cls=_Command)(models.layers)
app.command(cls=_Command)(models.labels)
app.command()(models.methods)
app.command(cls=_Command, epilog=f"{run.DFF_EXAMPLE}\n\n{EXIT_CODES}")(run.dff)
app.add_typer(config_app, name="config")
config_app.command("show")(config.show)
config_app.command("check", cls=_Command)(config.check)
config_app.command("schema")(config.config_schema)
app.add_typer(schema_app, name="schema")
schema_app.command("report")(config.report_schema)
app.add_typer(models_app, name="models")
models_app.command("list")(models.list_models)
models_app.command("fetch", cls=_Command)(models.fetch)


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
        app()
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
