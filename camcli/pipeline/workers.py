"""One process for each of several devices; all write into one run folder, and this process keeps its records."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import torch

from camcli.config.schema import RunConfig
from camcli.engine.precision import Choice
from camcli.errors import CamcliError
from camcli.images.find import Item
from camcli.images.libtiff import quiet_decoders
from camcli.images.memory import budget_size, keep_freed_memory
from camcli.pipeline.crash import internal_error
from camcli.pipeline.flow import Outcome, Record
from camcli.pipeline.interrupt import signals_held
from camcli.pipeline.limits import cores, usable_memory
from camcli.pipeline.prepare import prepare
from camcli.pipeline.stages import through_stages
from camcli.pipeline.stopwatch import Step, Stopwatch
from camcli.results.rundir import RunDir

LOOK_SECONDS = 0.2
READY = "ready"


@dataclass(frozen=True, slots=True)
class Task:
    """What all workers have in common; the batch size of `config` is settled, and so is `precision`."""

    config: RunConfig
    precision: Choice
    out: Path
    suffix: str
    fingerprint: str
    offline: bool

    def on(self, device: torch.device, share: int) -> Task:
        """For one device, with an equal part of the cores and of the memory."""
        threads = max(1, cores(self.config) // share)
        memory = budget_size(self.config.runtime.memory, usable_memory()) // share
        mine = {"device": str(device), "threads": threads, "memory": memory}
        runtime = self.config.runtime.model_copy(update=mine)
        return replace(self, config=self.config.model_copy(update={"runtime": runtime}))


def in_processes(
    task: Task,
    devices: Sequence[torch.device],
    stopwatch: Stopwatch,
    items: Sequence[Item],
    stopped: Callable[[], bool],
    record: Record,
) -> None:
    """Hand `record` one outcome for each of `items` as they come; raises what ended a worker.

    Once `stopped` says so, each worker finishes what its engines are at, and one that is not ready yet ends.
    """
    context = multiprocessing.get_context("spawn")
    halt = context.Event()
    workers: dict[Connection, BaseProcess] = {}
    worker: BaseProcess
    try:
        for index, device in enumerate(devices[: len(items)]):
            receiver, sender = context.Pipe(duplex=False)
            words = task.on(device, len(devices)), items[index :: len(devices)], sender, halt
            worker = context.Process(target=_work, args=words, name=str(device), daemon=True)
            with signals_held():
                worker.start()
            sender.close()
            workers[receiver] = worker
        record(_received(workers, halt, stopped, stopwatch))
    finally:
        halt.set()
        for receiver, worker in workers.items():
            receiver.close()
            worker.join()


def _received(
    workers: dict[Connection, BaseProcess], halt: Event, stopped: Callable[[], bool], stopwatch: Stopwatch
) -> Iterator[Outcome]:
    at_work, starting = dict(workers), set(workers)
    while at_work:
        if stopped():
            halt.set()
            _end(starting, at_work)
        for receiver in wait(list(at_work), LOOK_SECONDS):
            assert isinstance(receiver, Connection), "only connections are waited for"
            message = _message(receiver, at_work[receiver])
            if message == READY:
                starting.discard(receiver)
            elif isinstance(message, dict):
                stopwatch.add(message)
                del at_work[receiver]
            else:
                yield message


def _end(starting: set[Connection], at_work: dict[Connection, BaseProcess]) -> None:
    """Workers that have not begun have nothing to finish."""
    for receiver in starting:
        at_work.pop(receiver).kill()
    starting.clear()


def _message(receiver: Connection, worker: BaseProcess) -> Any:
    """What a worker says; raises the error that it sends, and CamcliError when it is gone without a word."""
    try:
        message = receiver.recv()
    except EOFError:
        worker.join()
        raise CamcliError(
            f"the process on {worker.name} ended with exit code {worker.exitcode}; the same command goes on from there"
        ) from None
    if isinstance(message, CamcliError):
        raise message
    return message


def _work(task: Task, items: Sequence[Item], sender: Connection, halt: Event) -> None:
    """A worker's whole life: signals are for the process that started it; when that is gone, so is the worker."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # held since before this process began
    keep_freed_memory()
    logging.getLogger().addHandler(logging.NullHandler())  # the process that started it has said the same
    with suppress(BrokenPipeError), quiet_decoders():
        try:
            sender.send(_explained(task, items, sender, halt))
        except CamcliError as error:
            sender.send(error)
        except Exception as error:
            sender.send(internal_error(error, task.out))
    sender.close()
    os._exit(0)


def _explained(task: Task, items: Sequence[Item], sender: Connection, halt: Event) -> dict[Step, float]:
    batch_size = task.config.runtime.batch_size
    assert isinstance(batch_size, int), "settled before workers start"
    ready = prepare(task.config, items, task.offline, batch_size=batch_size, precision=task.precision)
    sender.send(READY)
    ready.start_clock()
    folder = RunDir(task.out, task.suffix)

    def send(outcomes: Iterator[Outcome]) -> None:
        for outcome in outcomes:
            sender.send(outcome)

    through_stages(task.config, ready, folder, task.fingerprint, items, halt.is_set, send)
    return ready.stopwatch.seconds
