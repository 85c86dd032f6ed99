"""What `camcli run` says of a run: what is about to happen, how it ended, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from camcli.cli.console import evidence_lines, is_json, one_line, print_json, say

if TYPE_CHECKING:
    from camcli.config.schema import RunConfig
    from camcli.records import Failure, RunReport


def announce(config: RunConfig, images: int) -> None:
    """Print how many images a run has, and with which model and layer."""
    model = config.model
    say(f"{images} images, model {model.source}/{model.name}, layer {', '.join(config.layer)}")
    if model.weights == "none":
        say("warning: model.weights is none, so the weights are random and the heatmaps mean nothing", "warning")


def print_plan(ids: list[str], out: Path, as_json: bool) -> None:
    """The images of a dry run."""
    if as_json:
        print_json({"images": ids, "out": str(out)})
        return
    for name in ids:
        say(one_line(name))
    say(f"{len(ids)} images would be explained into {out}")


def print_notes(notes: Sequence[str]) -> None:
    """Print what a run found out about its layers and settings that a user should know."""
    for note in notes:
        say(f"note: {note}")


def print_failures(first: Sequence[Failure], failed: int) -> None:
    """The first of `failed` images that failed in a run, and why; a JSON log has named all of them."""
    if is_json():
        return
    for failure in first:
        reason = failure.message.removeprefix(f"{failure.source}: ")
        stage = "" if failure.stage in ("read", "decode") else f"{failure.stage}: "
        say(f"failed: {one_line(failure.id)}: {one_line(stage + reason)}")
    if failed > len(first):
        say(f"failed: {failed - len(first)} more, all in results.jsonl")


def print_summary(report: RunReport, settled: bool, above: float | None) -> None:
    """How a run ended; settled: there was nothing to do. above: the probability that classes had to reach."""
    if is_json():
        say("nothing to do" if settled else "ended", "summary", **asdict(report))
        return
    if report.vanished:
        say(f"{report.vanished} images of an earlier run are gone, and their records with them; their heatmaps stay")
    if report.foreign:
        say(f"warning: {report.foreign} of the records were made with another config")
    if settled:
        say(f"nothing to do: all {report.kept} images are recorded")
    if settled and report.failed:
        say(f"{report.failed} of them failed ({_by_kind(report)}); --retry-failed tries them again")
    if not settled:
        _print_counts(report)
    for line in evidence_lines(report.without_evidence, above, report.foreign):
        say(line)


def print_skipped(found: Mapping[str, int], asked: bool) -> None:
    """How many files in the folders were passed over for their extension; asked: the user said which to take."""
    from camcli.images.find import in_words

    if found:
        what = "of another extension" if asked else "not an image extension"
        say(f"skipped {sum(found.values())} files, {what}: {in_words(found)}", "skipped", files=dict(found))


def _by_kind(report: RunReport) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in report.failures.items())


def _print_counts(report: RunReport) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    new = report.done + report.failed - report.kept
    table.add_row("explained", str(report.done), f"{new / report.seconds:.1f} images/s" if report.seconds else "")
    table.add_row("failed", str(report.failed), escape(_by_kind(report)))
    if report.redone:
        table.add_row("in fp32", str(report.redone), "explained again, since 16 bits left their answers in doubt")
    if report.kept:
        table.add_row("kept", str(report.kept), "from an earlier run")
    if report.skipped:
        table.add_row("not reached", str(report.skipped), "the same command goes on from here")
    table.add_row("seconds", f"{report.seconds:.1f}", "")
    Console(stderr=True).print(table)
    say(f"{report.out}: overlays/, reports/, results.jsonl, run.json")


def print_profile(profile: Mapping[str, float], whole: float) -> None:
    """Where the time of a run of `whole` seconds went."""
    from rich.console import Console
    from rich.table import Table

    from camcli.pipeline.stopwatch import STEPS, bottleneck, start

    seconds = {step: profile.get(step, 0.0) for step in STEPS}
    bound = bottleneck(seconds, whole)
    if is_json():
        say(f"{bound} bounds the run", "profile", seconds=seconds, bound=bound)
        return
    table = Table("step", "seconds", "of the run", "", box=None, pad_edge=False)
    rows = [("start", start(seconds, whole), "model, layer, folder")]
    rows += [(step, seconds[step], what) for step, what in STEPS.items()]
    for step, value, what in rows:
        table.add_row(step, f"{value:.2f}", f"{value / max(whole, 1e-9):.0%}", what)
    Console(stderr=True).print(table)
    say(f"{bound} bounds the run (work is summed over threads; the waits are of the thread that connects them)")
