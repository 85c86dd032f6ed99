"""Runs `camcli` in forked children of one process that has imported torch, so that killing many is cheap.

python -m tests.driver        reads one JSON list of words a line, prints the child's pid and then how it ended
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from types import TracebackType

from tests.conftest import REPO


class Driver:
    """The process, as the tests hold it."""

    def __enter__(self) -> Driver:
        command = [sys.executable, "-m", "tests.driver"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, cwd=REPO, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=60)

    def start(self, *words: object) -> int:
        """Start a command; returns its process id."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps([str(word) for word in words]).encode() + b"\n")
        self._process.stdin.flush()
        return self._read()

    def end(self) -> int:
        """Wait for the command; its exit code, or minus the signal that ended it."""
        return self._read()

    def run(self, *words: object) -> int:
        """Start a command and wait for it."""
        self.start(*words)
        return self.end()

    def run_killed(self, after: float, *words: object) -> int:
        """Start a command and kill it after so many seconds, unless it has ended."""
        pid = self.start(*words)
        time.sleep(after)
        # The driver reaps the child only when told to, so the number cannot have passed to another process.
        os.kill(pid, signal.SIGKILL)
        return self.end()

    def _read(self) -> int:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def _serve() -> None:
    import timm
    import torch

    import camcli.pipeline.run

    torch.set_num_threads(1)
    assert timm
    assert camcli.pipeline.run
    for line in sys.stdin:
        words = json.loads(line)
        sys.stdin.readline()
        pid = os.fork()
        if pid == 0:
            _child(words)
        print(pid, flush=True)
        sys.stdin.readline()
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _child(words: list[str]) -> None:
    from camcli.cli.app import main

    sys.stdin = open(os.devnull)  # noqa: SIM115 - for the life of the child
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.argv = ["camcli", *words]
    code: object = 99
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    finally:
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)


if __name__ == "__main__":
    _serve()
