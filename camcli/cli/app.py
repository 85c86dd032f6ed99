"""The command line: parse, call one use-case, print its report, exit."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperGroup

from camcli.cli import console, stdio
from camcli.errors import CamcliError, ConfigError
from camcli.images.memory import keep_freed_memory
from camcli.models.offline import no_network
from camcli.pipeline import crash

if TYPE_CHECKING:
    from camcli.config.file import LoadedConfig
    from camcli.pipeline.job import Job
    from camcli.records import RunReport

EXIT_CODES = (
    "Exit codes: 0 all done · 1 finished, but images failed · 2 usage or config · 3 fatal (model, weights, disk) · "
    "5 no images found · 70 camcli itself broke (a log says how) · 75 output folder in use · 130/143 interrupted."
)


class _Root(TyperGroup):
    """Keeps from click what it would turn into exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that `ctx` names."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except OSError as error:
            raise crash.internal_error(error) from error


class _Command(TyperCommand):
    """A command with a run folder, where the log of what nobody expected goes, or with --offline, which it keeps."""

    def invoke(self, ctx: Any) -> Any:
        """Run it."""
        try:
            with no_network(ctx.params.get("offline", False)):
                return super().invoke(ctx)
        except (CamcliError, typer.Exit, typer.Abort):
            raise
        except Exception as error:
            raise crash.internal_error(error, ctx.params.get("out")) from error


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
app.add_typer(config_app, name="config")
app.add_typer(schema_app, name="schema")


def _folder(name: str) -> Path:
    """The parser of an output folder's name, which an unset variable leaves empty."""
    if not name:
        raise ConfigError("the name of the output folder is empty; name one, such as heatmaps (is a variable not set?)")
    return Path(name)


def _file(name: str) -> Path:
    """The same for a file."""
    if not name:
        raise ConfigError("the name of the JUnit file is empty; name one, such as junit.xml (is a variable not set?)")
    return Path(name)


ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML config; without one: the embedded demo model.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="FIELD=VALUE", help="Override a field, e.g. model.name=resnet18."),
]
ModelOption = Annotated[
    str | None, typer.Option("--model", "-m", help="Short for --set model=…, e.g. timm/resnet50.a1_in1k.")
]
RootOption = Annotated[
    str | None,
    typer.Option("--root", metavar="FOLDER", help="Images are called by their path below FOLDER, whatever is named."),
]
OfflineOption = Annotated[bool, typer.Option("--offline", help="Never touch the network.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


def main() -> None:
    """Entry point: every error becomes one message and an exit code, and no stream ends the work."""
    console.talk_text()
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
    console.say(f"camcli: {error}", "error", exit_code=error.exit_code)
    return error.exit_code


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        from camcli import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.command(
    cls=_Command,
    epilog="Examples: [b]camcli run photos --out out[/b] · [b]camcli run @list.txt -c configs/vit_base.yaml "
    "--out out[/b] · [b]find . -name '*.jpg' | camcli run - --out out -s 'targets=[\"tabby\"]'[/b]\n\n" + EXIT_CODES,
)
def run(
    inputs: Annotated[
        list[str], typer.Argument(help="Files, folders, globs, @list.txt, or - for paths on standard input.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", parser=_folder, metavar="FOLDER", help="Run folder to write.")],
    config: ConfigOption = None,
    model: ModelOption = None,
    overrides: SetOption = None,
    ext: Annotated[
        list[str] | None, typer.Option("--ext", help="File extension to look for in folders; repeat for more.")
    ] = None,
    root: RootOption = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Take only the first N images.")] = None,
    shard: Annotated[
        str | None, typer.Option("--shard", metavar="I/N", help="Only part I of N; /N in a job array.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete the results in --out and start over.")] = False,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Keep results that were made with another config as they are.")
    ] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try failed images again.")] = False,
    check: Annotated[
        Literal["stat", "hash"],
        typer.Option("--check", help="An input is unchanged by its size and time, or by its hash."),
    ] = "stat",
    max_errors: Annotated[
        str | None, typer.Option("--max-errors", metavar="N|P%", help="Stop after more failures than that.")
    ] = None,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop after the first failure.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the images and stop.")] = False,
    offline: OfflineOption = False,
    device: Annotated[
        str | None, typer.Option("--device", help="cpu, cuda:1, or several: cuda:0,cuda:1 or all, a process each.")
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Cores to work on; all by default.")] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Say where the time went and what bounds the run.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing unless something fails.")] = False,
    json_: JsonOption = False,
    log_format: Annotated[
        Literal["text", "json"], typer.Option("--log-format", help="Of messages on standard error.")
    ] = "text",
    junit: Annotated[
        Path | None,
        typer.Option("--junit", parser=_file, metavar="FILE", help="Also write a JUnit file, a test case an image."),
    ] = None,
) -> None:
    """Explain images: overlays, JSON reports and a manifest below --out. A second run does only what is missing."""
    if log_format == "json":
        console.talk_json()
    console.talk_quietly(quiet)
    from camcli.images.find import asked, by_extension, discover
    from camcli.images.formats import EXTENSIONS
    from camcli.pipeline.job import Job
    from camcli.results.resume import Policy
    from camcli.results.shard import shard_of

    loaded = _load(config, model, [*_runtime(device, threads), *(overrides or [])])
    _refuse_no_folder(out)
    others: set[str] = set()
    items = discover(inputs, ext or EXTENSIONS, limit, out, root, others=others)
    skipped = by_extension(others)
    part = shard_of(shard, os.environ)
    job = Job(loaded.config, items, out, offline, Policy(), part, asked(inputs, ext, limit, root), skipped)
    errors = "0" if fail_fast else max_errors
    limit_of_errors = None if errors is None else _max_errors(errors, len(job.mine))
    job = replace(job, policy=Policy(fresh, keep_going, retry_failed, check, limit_of_errors))
    if dry_run:
        console.print_plan([item.id for item in job.mine], out, json_)
        console.print_skipped(skipped, bool(ext))
        return
    if not quiet:
        _announce(job, shard is None)
        _warn_of_mixing(inputs, out)
    raise typer.Exit(_run(job, quiet, json_, junit, profile))


def _refuse_no_folder(out: Path) -> None:
    """Raises ConfigError where a file is in the way of the folder `out`."""
    found = next((place for place in (out, *out.parents) if os.path.lexists(place)), None)
    if found is not None and not found.is_dir():
        raise ConfigError(f"--out {out}: {found} is no folder; name another, such as --out {found}-heatmaps")


def _warn_of_mixing(inputs: list[str], out: Path) -> None:
    if any(os.path.isdir(name) and os.path.realpath(name) == os.path.realpath(out) for name in inputs):
        console.say(
            f"warning: --out {out} is also a folder of inputs, so overlays and reports go beside the images (and are "
            "never taken for inputs); a folder of its own keeps them apart",
            "warning",
        )


def _runtime(device: str | None, threads: int | None) -> list[str]:
    """The overrides that options of their own stand for."""
    given = {"runtime.device": device, "runtime.threads": threads}
    return [f"{field}={value}" for field, value in given.items() if value is not None]


def _max_errors(text: str, images: int) -> int:
    match = re.fullmatch(r"(\d+)(%?)", text)
    if not match:
        raise ConfigError(f"--max-errors {text}: write it as a number, such as 10, or a share, such as 5%")
    return int(match[1]) * images // 100 if match[2] else int(match[1])


def _announce(job: Job, by_default: bool) -> None:
    console.announce(job.config, len(job.mine))
    if job.shard:
        why = ", as SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT say" if by_default else ""
        console.say(f"part {job.shard} of {len(job.items)} images{why}; `camcli merge` joins the parts")


def _run(job: Job, quiet: bool, json_: bool, junit: Path | None, profile: bool) -> int:
    from camcli.pipeline.job import settled

    ended = settled(job)
    report, manifest = ended or _perform(job, quiet)
    if junit:
        from camcli.results.junit import write_junit

        write_junit(junit, [item.id for item in job.mine], job.ledger().entries)
    if json_:
        console.print_json(manifest)
    if not quiet and ended is None:
        console.print_notes(manifest["notes"])
    if not quiet or report.failed:
        console.print_summary(report, ended is not None, job.config.targets.above)
        if not console.is_json():
            console.print_skipped(report.skipped_files, bool((job.asked or {}).get("ext")))
    if profile and ended is None:
        console.print_profile(manifest["profile"], report.seconds)
    return report.exit_code


def _perform(job: Job, quiet: bool) -> tuple[RunReport, dict[str, Any]]:
    from camcli.cli.progress import Progress
    from camcli.pipeline.interrupt import Interrupt

    with (
        Progress(sys.stderr, console.is_json(), quiet) as progress,
        Interrupt(progress.tell_now) as interrupt,
    ):
        from camcli.pipeline.run import perform

        outcome = perform(job, progress, interrupt)
    console.print_failures(progress.first, progress.failed)
    return outcome.report, outcome.manifest


@app.command(cls=_Command)
def status(
    out: Annotated[Path, typer.Argument(parser=_folder, metavar="OUT", help="Run folder.")],
    check: Annotated[
        Literal["stat", "hash"],
        typer.Option("--check", help="An input is unchanged by its size and time, or by its hash."),
    ] = "stat",
    json_: JsonOption = False,
) -> None:
    """Say what is done, failed, missing and out of date in a run folder, and how to go on: exit code 0 or 1."""
    from camcli.results.status import inspect

    found = inspect(out, check)
    if json_:
        console.print_json(found.as_dict())
    else:
        console.print_status(found)
    raise typer.Exit(0 if found.complete else 1)


@app.command(cls=_Command)
def merge(
    out: Annotated[
        Path, typer.Argument(parser=_folder, metavar="OUT", help="Run folder whose parts were made with --shard.")
    ],
    json_: JsonOption = False,
) -> None:
    """Join the parts of a run into results.jsonl and run.json; exit code 1 where parts are missing."""
    from camcli.results.merge import merge as join

    manifest = join(out)
    if json_:
        console.print_json(manifest)
    else:
        counts = manifest["counts"]
        console.say(f"{out}: {counts['done']} images explained, {counts['failed']} failed, in one results.jsonl")
        for line in console.evidence_lines(manifest["without_evidence"], manifest["config"]["targets"]["above"]):
            console.say(line)
    raise typer.Exit(manifest["exit_code"])


@app.command()
def doctor(json_: JsonOption = False) -> None:
    """Print versions, devices and caches, and test the embedded model on drawn scenes: exit code 0 or 1."""
    from camcli.cli.doctor import examine

    found = examine()
    if json_:
        console.print_json(asdict(found))
    else:
        console.print_diagnosis(found)
    raise typer.Exit(0 if found.healthy else 1)


@app.command(cls=_Command)
def layers(
    config: ConfigOption = None,
    model: ModelOption = None,
    overrides: SetOption = None,
    offline: OfflineOption = False,
    json_: JsonOption = False,
) -> None:
    """List the layers that a map can be read from, and mark the one that a run would use."""
    from camcli.pipeline.prepare import candidates

    found = [asdict(candidate) for candidate in candidates(_load(config, model, overrides).config, offline)]
    if json_:
        console.print_json(found)
    else:
        console.print_layers(found)


@app.command()
def methods(json_: JsonOption = False) -> None:
    """List the methods: what each one needs, what it costs beside the forward pass, and its paper."""
    from camcli.engine.methods import listed

    found = listed()
    if json_:
        console.print_json(
            [{k: v for k, v in asdict(method).items() if k not in ("compute", "terms")} for method in found]
        )
    else:
        console.print_methods(found)


@app.command(cls=_Command, epilog="Example: [b]camcli dff photos --out concepts --concepts 5[/b]\n\n" + EXIT_CODES)
def dff(
    inputs: Annotated[list[str], typer.Argument(help="Files, folders, globs, @list.txt, or - for paths on stdin.")],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", parser=_folder, metavar="FOLDER", help="Folder for overlays/ and concepts.json."),
    ],
    concepts: Annotated[int, typer.Option("--concepts", "-k", min=1, max=64, help="How many to look for.")] = 5,
    root: RootOption = None,
    config: ConfigOption = None,
    model: ModelOption = None,
    overrides: SetOption = None,
    offline: OfflineOption = False,
    json_: JsonOption = False,
) -> None:
    """Deep feature factorisation: the concepts that all images share, one colour each, and the classes they raise."""
    from camcli.analysis.concepts import factorise
    from camcli.images.find import by_extension, discover

    loaded = _load(config, model, overrides)
    _refuse_no_folder(out)
    _warn_of_mixing(inputs, out)
    others: set[str] = set()
    items = discover(inputs, out=out, root=root, others=others)
    console.print_skipped(by_extension(others), False)
    found = factorise(loaded.config, items, out, concepts, offline)
    if json_:
        console.print_json(found)
    else:
        console.print_concepts(found, out)
    raise typer.Exit(1 if found["failures"] else 0)


class _ListByDefault(TyperGroup):
    """`camcli models PATTERN` is `camcli models list PATTERN`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default command before what is no command."""
        if not args or (args[0] not in self.commands and args[0] != "--help"):
            args = ["list", *args]
        return super().parse_args(ctx, args)


models_app = typer.Typer(help="Models that can be explained: `camcli models 'resnet*'`.", cls=_ListByDefault)
app.add_typer(models_app, name="models")


@models_app.command("list")
def models_list(
    pattern: Annotated[str | None, typer.Argument(help="Glob such as 'resnet*' or 'timm/vit_*'.")] = None,
    json_: JsonOption = False,
) -> None:
    """List models: published weights, weights in the local cache, input size and parameters (with a PATTERN)."""
    from camcli.models.source import list_models

    entries = list_models(pattern)
    if json_:
        console.print_json([asdict(entry) for entry in entries])
    else:
        console.print_models(entries)


@models_app.command("fetch", cls=_Command)
def models_fetch(
    names: Annotated[list[str], typer.Argument(help="Such as timm/resnet50.a1_in1k.")],
    offline: OfflineOption = False,
) -> None:
    """Download weights ahead of time and print where they are."""
    from camcli.models.source import fetch

    for name in names:
        typer.echo(f"{name}\t{fetch(name, offline)}")


@config_app.command("show")
def config_show(config: ConfigOption = None, model: ModelOption = None, overrides: SetOption = None) -> None:
    """Print the whole config as YAML, and where each value came from."""
    from camcli.config.file import describe

    typer.echo(describe(_load(config, model, overrides)))


@config_app.command("check", cls=_Command)
def config_check(
    file: Annotated[Path, typer.Argument(help="YAML config.")],
    load: Annotated[bool, typer.Option("--load", help="Load the model, too: layer, targets, device.")] = False,
    overrides: SetOption = None,
    offline: OfflineOption = False,
) -> None:
    """Say whether a config is valid and what it names is there: exit code 0, or 2 with the place of every mistake."""
    from camcli.pipeline.preflight import check

    loaded = _load(file, None, overrides)
    check(loaded)
    if load:
        from camcli.pipeline.prepare import rehearse

        rehearse(loaded.config, offline)
    console.say(f"{file}: valid")


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of a config file."""
    from camcli.config.schema import json_schema

    console.print_json(json_schema())


@schema_app.command("report")
def schema_report() -> None:
    """Print the JSON Schema of reports/<id>.json and of each line of results.jsonl."""
    from camcli.results.report import json_schema

    console.print_json(json_schema())


def _load(config: Path | None, model: str | None, overrides: list[str] | None) -> LoadedConfig:
    from camcli.config.file import load_config

    return load_config(config, [*([f"model={model}"] if model else []), *(overrides or [])])
