"""`camcli run` and `camcli dff`: from options to a run, and what is printed about it."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from camcli.cli import console, summary
from camcli.cli.options import (
    AllowCodeOption,
    CheckOption,
    ConfigOptions,
    JsonOption,
    OfflineOption,
    RootOption,
    folder_name,
    from_options,
    junit_name,
)
from camcli.errors import CamcliError, ConfigError

if TYPE_CHECKING:
    from camcli.config.file import LoadedConfig, Override
    from camcli.config.schema import RunConfig
    from camcli.pipeline.estimate import Estimate
    from camcli.pipeline.job import Job
    from camcli.records import RunReport
    from camcli.results.concepts import Concept
    from camcli.results.manifest import Manifest
    from camcli.results.resume import Policy
    from camcli.results.shard import Shard

_FACTORISING = {"methods": "dff", "targets": "top1", "smoothing": "none"}
"""What a config file says for `camcli run` alone, and nobody may say on the command line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(ConfigOptions):
    """What any run is asked; the fields are options in the order of the help."""

    inputs: Annotated[
        list[str], typer.Argument(help="Files, folders, globs, @list.txt, or - for paths on standard input.")
    ]
    out: Annotated[Path, typer.Option("--out", "-o", parser=folder_name, metavar="FOLDER", help="Run folder to write.")]
    ext: Annotated[
        list[str] | None, typer.Option("--ext", help="File extension to look for in folders; repeat for more.")
    ] = None
    root: RootOption = None
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Take only the first N images.")] = None
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete the results in --out and start over.")] = False
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try failed images again.")] = False
    check: CheckOption = "stat"
    max_errors: Annotated[
        str | None, typer.Option("--max-errors", metavar="N|P%", help="Stop after more failures than that.")
    ] = None
    allow_errors: Annotated[
        str | None, typer.Option("--allow-errors", metavar="N|P%", help="Exit code 0 up to so many failures.")
    ] = None
    known_failures: Annotated[
        Path | None,
        typer.Option("--known-failures", metavar="FILE", help="Ids, one a line, whose failure is no news."),
    ] = None
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop after the first failure.")] = False
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the images, say how long a run would take, and stop.")
    ] = False
    offline: OfflineOption = False
    allow_code: AllowCodeOption = False
    device: Annotated[
        str | None, typer.Option("--device", help="cpu, cuda:1, or several: cuda:0,cuda:1 or all, a process each.")
    ] = None
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Cores to work on; all by default.")] = None
    profile: Annotated[bool, typer.Option("--profile", help="Say where the time went and what bounds the run.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing unless something fails.")] = False
    json_: JsonOption = False
    log_format: Annotated[
        Literal["text", "json"], typer.Option("--log-format", help="Of messages on standard error.")
    ] = "text"
    junit: Annotated[
        Path | None,
        typer.Option(
            "--junit", parser=junit_name, metavar="FILE", help="Also write a JUnit file, a test case an image."
        ),
    ] = None
    report: Annotated[bool, typer.Option("--report", help="Then build OUT/index.html, a page of the run.")] = False

    def short(self) -> Iterator[Override]:
        """Those of every command, --device and --threads."""
        yield from ConfigOptions.short(self)
        given = {"--device": ("runtime.device", self.device), "--threads": ("runtime.threads", self.threads)}
        yield from ((option, f"{field}={value}") for option, (field, value) in given.items() if value is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions(Options):
    """What `camcli run` is asked."""

    shard: Annotated[
        str | None, typer.Option("--shard", metavar="I/N", help="Only part I of N; /N in a job array.")
    ] = None
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Keep results that were made with another config as they are.")
    ] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DffOptions(Options):
    """What `camcli dff` is asked."""

    concepts: Annotated[
        int | None, typer.Option("--concepts", "-k", min=1, max=64, help="How many to look for; without: 5.")
    ] = None

    def load(self) -> LoadedConfig:
        """The config, of which what a file says for `camcli run` alone is left out; raises ConfigError."""
        from camcli.cli.options import load
        from camcli.config.file import with_options

        given = with_options([*self.short(), *(self.overrides or [])])
        for option, text in given:
            if text.partition("=")[0].partition(".")[0].strip() in _FACTORISING:
                raise ConfigError(f"{option} {text}: dff has one method, no targets and no smoothing; leave it out")
        count = [] if self.concepts is None else [("--concepts", f"options.dff.concepts={self.concepts}")]
        own = [("--set", f"{field}={value}") for field, value in _FACTORISING.items()]
        return load(self.config, self.model, [*given, *own, *count])


@from_options(RunOptions)
def run(options: RunOptions) -> None:
    """Explain images: overlays, JSON reports and a manifest below --out. A second run does only what is missing."""
    from camcli.results.shard import shard_of

    _write_messages(options)
    loaded = options.load()
    _do(loaded, _job(loaded.config, options, shard_of(options.shard, os.environ), options.keep_going), options)


@from_options(DffOptions)
def dff(options: DffOptions) -> None:
    """Deep feature factorisation: the concepts that all images share, one colour each, and the classes they raise."""
    _write_messages(options)
    loaded = options.load()
    _do(loaded, _job(loaded.config, options), options)


def _write_messages(options: Options) -> None:
    console.write_messages(options.log_format == "json", options.quiet)


def _do(loaded: LoadedConfig, job: Job, options: Options) -> None:
    """Do the job, or say what it would do; exits with the run's exit code."""
    if options.dry_run:
        summary.print_plan([item.id for item in job.mine], options.out, options.json_, _measured(job))
        summary.print_skipped(job.skipped_files, bool(options.ext))
        return
    if not options.quiet:
        _announce(loaded, job, options)
    raise typer.Exit(_run(loaded, job, options))


def _job(config: RunConfig, options: Options, shard: Shard | None = None, keep_going: bool = False) -> Job:
    """The run that the options describe; raises ConfigError or NoInputsError where there can be none."""
    from camcli.images.find import asked, by_extension, discover
    from camcli.images.formats import EXTENSIONS
    from camcli.pipeline.job import Job

    _refuse_no_folder(options.out)
    others: set[str] = set()
    extensions = options.ext or EXTENSIONS
    items = discover(options.inputs, extensions, options.limit, options.out, options.root, others=others)
    job = Job(
        config,
        items,
        options.out,
        options.offline,
        shard=shard,
        asked=asked(options.inputs, options.ext, options.limit, options.root),
        skipped_files=by_extension(others),
    )
    return replace(job, policy=_policy(options, len(job.mine), keep_going))


def _policy(options: Options, images: int, keep_going: bool) -> Policy:
    """What is kept and when to stop, in a part of `images` images."""
    from camcli.results.resume import Policy
    from camcli.results.tolerance import Tolerance, read_ids

    errors = "0" if options.fail_fast else options.max_errors
    most = None if errors is None else _number("--max-errors", errors, images)
    allowed = _number("--allow-errors", options.allow_errors or "0", images)
    known = read_ids(options.known_failures, "--known-failures") if options.known_failures else frozenset[str]()
    kept = options.fresh, keep_going, options.retry_failed, options.check
    return Policy(*kept, most, Tolerance(allowed, known))


def _number(option: str, text: str, images: int) -> int:
    """The number that `10` or `5%` stands for, of `images` images; raises ConfigError for anything else."""
    match = re.fullmatch(r"(\d+)(%?)", text)
    if not match:
        raise ConfigError(f"{option} {text}: write it as a number, such as 10, or a share, such as 5%")
    return int(match[1]) * images // 100 if match[2] else int(match[1])


def _refuse_no_folder(out: Path) -> None:
    """Raises ConfigError where `out`, or what it would be in, exists and is no folder."""
    found = next((place for place in (out, *out.parents) if os.path.lexists(place)), None)
    if found is not None and not found.is_dir():
        raise ConfigError(f"--out {out}: {found} is no folder; name another, such as --out {found}-heatmaps")


def _warn_of_mixing(inputs: list[str], out: Path) -> None:
    """Warn where results would go beside the images."""
    if any(os.path.isdir(name) and os.path.realpath(name) == os.path.realpath(out) for name in inputs):
        console.say(
            f"warning: --out {out} is also a folder of inputs, so overlays and reports go beside the images (and are "
            "never taken for inputs); a folder of its own keeps them apart",
            "warning",
        )


def _measured(job: Job) -> Estimate | CamcliError:
    """How long the run would take, or why that cannot be told; raises ConfigError where it would be refused."""
    from camcli.pipeline.estimate import estimate

    try:
        return estimate(job)
    except ConfigError:
        raise
    except CamcliError as error:
        return error


def _announce(loaded: LoadedConfig, job: Job, options: Options) -> None:
    """Say what is about to happen, and in the first run what the model that nobody chose is for."""
    from camcli.results.manifest import NOTHING

    summary.announce(job.config, len(job.mine))
    if loaded.embedded and job.earlier().manifest == NOTHING:
        summary.announce_embedded()
    if job.shard:
        by_default = not isinstance(options, RunOptions) or options.shard is None
        why = ", as SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT say" if by_default else ""
        console.say(
            f"part {job.shard} of {console.counted(len(job.items), 'image')}{why}; `camcli merge` joins the parts"
        )
    _warn_of_mixing(options.inputs, options.out)


def _run(loaded: LoadedConfig, job: Job, options: Options) -> int:
    """Do what is left to do, print and write what was asked for, and return the exit code."""
    from camcli.pipeline.job import settled
    from camcli.results.doubts import doubts

    if code := _restyled(job, options):
        return code
    earlier = job.earlier()
    ended = settled(job, earlier)
    report, manifest = ended or _perform(loaded, job, options)
    left = earlier if ended else job.earlier()
    if options.junit:
        from camcli.results.junit import write_junit

        write_junit(options.junit, [item.id for item in job.mine], left)
    if options.report:
        _build_page(job)
    concepts = _concepts(job)
    if options.json_:
        shared = {"concepts": [one.model_dump() for one in concepts]} if job.config.finds_concepts else {}
        console.print_json({**manifest.as_json(), "exit_code": report.exit_code, **shared})
    if not options.quiet and ended is None:
        summary.print_notes(manifest.notes)
    if not options.quiet or report.failed:
        unsure = [] if options.quiet else doubts(left, [item.id for item in job.mine])
        summary.print_summary(report, ended is not None, job.config.targets.above, unsure)
        if not console.is_json():
            summary.print_skipped(report.skipped_files, bool(options.ext))
    if not options.quiet:
        summary.print_concepts(concepts)
    if options.profile and ended is None:
        summary.print_profile(manifest.profile, report.seconds)
    if not options.quiet and ended is None:
        summary.print_next(_next(report, job, options))
    return report.exit_code


def _restyled(job: Job, options: Options) -> int:
    """Paint anew what only looks different from what is asked for, and say so; the exit code of a signal, or 0."""
    from camcli.pipeline.job import look_alone_differs

    if not look_alone_differs(job):
        return 0
    from camcli.cli.progress import Progress
    from camcli.pipeline.interrupt import Interrupt
    from camcli.pipeline.repaint import repaint

    with Progress(sys.stderr, quiet=True) as progress, Interrupt(progress.tell_now) as interrupt:
        found = repaint(job.out, job.config.overlay, progress, interrupt, partly=True)
    if not options.quiet:
        console.say(f"another look: {summary.repainted(found)}")
        for line in summary.left(found):
            console.say(f"to be explained again: {line}")
    return interrupt.exit_code


def _next(report: RunReport, job: Job, options: Options) -> str:
    """What to type after a run: to go on, to try again, to join its parts, or to see how it stands."""
    words = "camcli " + shlex.join(word for word in sys.argv[1:] if word != "--fresh")
    if report.skipped:
        return words
    if report.failed > report.known:
        return words if options.retry_failed else f"{words} --retry-failed"
    return f"camcli {'merge' if job.shard else 'status'} {shlex.quote(str(job.out))}"


def _build_page(job: Job) -> None:
    """Show what is in the folder; raises ConfigError for one part of a run, whose others are elsewhere."""
    from camcli.analysis.page.build import build

    if job.shard:
        raise ConfigError("--report: this is one part of a run; `camcli merge OUT`, then `camcli report OUT`")
    build(job.out)


def _concepts(job: Job) -> Sequence[Concept]:
    """What the images were found to share, where that was asked."""
    from camcli.results.concepts import read_learnt

    learnt = read_learnt(job.out) if job.config.finds_concepts else None
    return learnt.concepts if learnt else ()


def _perform(loaded: LoadedConfig, job: Job, options: Options) -> tuple[RunReport, Manifest]:
    """Run with progress on standard error, stopping on signals; returns the report and the manifest."""
    from camcli.cli.progress import Progress
    from camcli.pipeline.interrupt import Interrupt

    with (
        Progress(sys.stderr, console.is_json(), options.quiet) as progress,
        Interrupt(progress.tell_now) as interrupt,
    ):
        from camcli.pipeline.preflight import check_options
        from camcli.pipeline.run import perform

        check_options(loaded)
        outcome = perform(job, progress, interrupt)
    summary.print_failures(progress.first, progress.failed)
    return outcome.report, outcome.manifest
