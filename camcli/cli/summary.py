"""What `camcli run` says of a run: what is about to happen, how it ended, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from camcli.cli.console import counted, evidence_lines, is_json, one_line, print_json, say, terminal, visible
from camcli.errors import CamcliError

if TYPE_CHECKING:
    from rich.table import Table

    from camcli.config.schema import RunConfig
    from camcli.pipeline.estimate import Estimate
    from camcli.pipeline.repaint import Repainted
    from camcli.records import Failure, RunReport
    from camcli.results.concepts import Concept
    from camcli.results.doubts import Doubt

NAMED = 5
SLOW = 10.0


def announce(config: RunConfig, images: int) -> None:
    """Print how many images a run has, and with which model and layer."""
    model = config.model
    say(f"{counted(images, 'image')}, model {model.source}/{model.name}, layer {', '.join(config.layer)}")
    if model.weights == "none":
        say("warning: model.weights is none, so the weights are random and the heatmaps mean nothing", "warning")


def announce_embedded() -> None:
    """Say what the model that runs where none is named is for."""
    say("note: the embedded model knows only twelve drawn shapes; for photographs name one, such as -m timm/resnet50")


def print_plan(ids: list[str], out: Path, as_json: bool, measured: Estimate | CamcliError) -> None:
    """The images of a dry run, and how long a run would take, or why that cannot be told."""
    told = None if isinstance(measured, CamcliError) else measured
    if as_json:
        seconds = told and {"seconds": round(told.seconds(len(ids)), 1), "seconds_per_image": round(told.each, 3)}
        print_json({"images": ids, "out": str(out), **(seconds or {})})
        return
    for name in ids:
        say(one_line(name))
    plan = f"{counted(len(ids), 'image')} would be explained into {out}"
    if told is None:
        say(f"{plan}; how long that takes cannot be told: {measured}")
    else:
        each = f"{told.each:.2g} s for {one_line(told.image)}"
        say(f"{plan}, in about {lasting(told.seconds(len(ids)))} ({each}, {counted(told.at_once, 'image')} at a time)")


def lasting(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 5 min`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


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


def print_summary(report: RunReport, settled: bool, above: float | None, unsure: Sequence[Doubt] = ()) -> None:
    """How a run ended; settled: there was nothing to do. above: the probability that classes had to reach.

    unsure: the images that the model was least sure of.
    """
    if is_json():
        about = {**asdict(report), "least_sure": [asdict(doubt) for doubt in unsure]}
        say("nothing to do" if settled else "ended", "summary", **about)
        return
    if report.vanished:
        gone = (
            "1 image of an earlier run is"
            if report.vanished == 1
            else f"{report.vanished} images of an earlier run are"
        )
        say(f"{gone} gone, and what was recorded of it; heatmaps stay")
    if report.foreign:
        say(f"warning: {report.foreign} of the records were made with another config")
    if settled:
        all_ = "the only image is" if report.kept == 1 else f"all {report.kept} images are"
        say(f"nothing to do: {all_} recorded")
    if settled and report.failed:
        say(f"{report.failed} of them failed ({_by_kind(report)}); --retry-failed tries them again")
    if not settled:
        _print_counts(report)
    for line in evidence_lines(report.without_evidence, above, report.foreign):
        say(line)
    if report.mended:
        say(f"no longer failing, though --known-failures lists them: {_first(report.mended)}")
    if not settled:
        _print_unsure(unsure)
        say(f"{report.out}: overlays/, reports/, results.jsonl, run.json")


def _first(ids: Sequence[str]) -> str:
    return ", ".join(map(one_line, ids[:NAMED])) + f" and {len(ids) - NAMED} more" * (len(ids) > NAMED)


def print_next(command: str) -> None:
    """The command that may be typed next."""
    if not is_json():
        say(f"next: {one_line(command)}")


def print_skipped(found: Mapping[str, int], asked: bool) -> None:
    """How many files in the folders were passed over for their extension; asked: the user said which to take."""
    from camcli.images.find import in_words

    if found:
        what = "of another extension" if asked else "not an image extension"
        say(f"skipped {counted(sum(found.values()), 'file')}, {what}: {in_words(found)}", "skipped", files=dict(found))


def _by_kind(report: RunReport) -> str:
    kinds = ", ".join(f"{n} {kind}" for kind, n in report.failures.items())
    return f"{kinds}; {report.known} known" if report.known else kinds


def _print_counts(report: RunReport) -> None:
    from rich.text import Text

    table = _columns()

    def row(name: str, value: str, about: str, style: str = "") -> None:
        table.add_row(Text(name, style), Text(value, style), Text(about))

    row("explained", str(report.done), _rate(report), "green" if report.done else "")
    row("failed", str(report.failed), one_line(_by_kind(report)), "bold red" if report.failed else "")
    if report.redone:
        row("in fp32", str(report.redone), "explained again, since 16 bits left their answers in doubt")
    if report.kept:
        row("kept", str(report.kept), "from an earlier run", "dim")
    if report.skipped:
        row("not reached", str(report.skipped), "the same command goes on from here", "yellow")
    row("seconds", f"{report.seconds:.1f}", "")
    terminal().print(table)


def _rate(report: RunReport) -> str:
    """Of the images that this run explained itself."""
    if not (report.explained and report.seconds):
        return ""
    each = report.seconds / report.explained
    return f"{1 / each:.1f} images/s" if each < SLOW else f"{each:.1f} s an image"


def _print_unsure(unsure: Sequence[Doubt]) -> None:
    from rich.text import Text

    if not unsure:
        return
    say("worth a look, for the model was unsure:")
    table = _columns()
    for doubt in unsure:
        table.add_row(Text(one_line(doubt.id)), f"{doubt.probability:.0%}", Text(visible(doubt.label)))
    terminal().print(table)


def _columns() -> Table:
    """A name, a number on the right, and words that are broken between lines where there is no room."""
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def print_concepts(found: Sequence[Concept]) -> None:
    """What all images share: the colour of each concept and the classes that it raises."""
    if is_json():
        return
    for concept in found:
        raised = ", ".join(f"{c.label.split(',')[0]} {c.raised:+.2f}" for c in concept.classes)
        say(f"concept {concept.index}  {concept.colour}  {raised or 'raises no class'}")


def print_profile(profile: Mapping[str, float], whole: float) -> None:
    """Where the time of a run of `whole` seconds went."""
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
    terminal().print(table)
    say(f"{bound} bounds the run (work is summed over threads; the waits are of the thread that connects them)")


def repainted(found: Repainted) -> str:
    """What became of the overlays of a run that was to look different."""
    parts = [f"{counted(found.painted, 'image')} painted anew"]
    parts += [f"{found.kept} looked so already"] * bool(found.kept)
    parts += [f"{found.failed} failed before"] * bool(found.failed)
    parts += [f"{len(found.left)} left as they are"] * bool(found.left)
    return ", ".join(parts)


def left(found: Repainted) -> list[str]:
    """The first images that were left as they are, and why; and how many more there are."""
    lines = [one_line(failure.message) for failure in found.left[:NAMED]]
    return lines + [f"{len(found.left) - NAMED} more"] * (len(found.left) > NAMED)
