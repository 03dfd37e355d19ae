"""Run workloads in forked processes, which share the imports of their parent, and kill them at chosen moments."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The modules that the commands import when they run.
import matplotlib.pyplot  # noqa: F401
import torch
import torch.utils.tensorboard

torch.set_num_threads(1)  # threads do not survive a fork

WAIT_SECONDS = 120
# Operations on files that Python reports to audit hooks.
OPERATIONS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate")


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Args:
        code: exit code; negative for a signal.
        output: of stdout and stderr.
        seconds: from the fork to the end.
        operations: number of its operations on files, if they were counted.
        window: seconds from the fork to the first and to the last of them.
    """

    code: int
    output: str
    seconds: float
    operations: int = 0
    window: tuple[float, float] = (0.0, 0.0)

    @property
    def last_line(self) -> str:
        """The last line of the output; "" if there is none."""
        return (self.output.strip().splitlines() or [""])[-1]


@dataclass
class Process:
    """A forked process.

    Args:
        pid: its id.
        log: receives its output.
        started: when it was forked, by `time.monotonic`.
    """

    pid: int
    log: Path
    started: float

    def kill(self) -> None:
        """Send SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)

    def poll(self) -> bool:
        """Return True if it still runs."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def wait(self) -> Ended:
        """Wait for the end; a process that hangs is killed, and an error is raised."""
        while self.poll():
            if time.monotonic() - self.started > WAIT_SECONDS:
                self.kill()
                os.waitpid(self.pid, 0)
                raise TimeoutError(f"more than {WAIT_SECONDS} s: {self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.002)
        seconds = time.monotonic() - self.started
        _, status = os.waitpid(self.pid, 0)
        text = self.log.read_text(errors="replace")
        output, _, counted = text.partition("\noperations: ")
        count, first, last = map(float, counted.split() or (0, 0, 0))
        return Ended(os.waitstatus_to_exitcode(status), output, seconds, int(count), (first, last))


def start(work: Callable[[], Any], log: Path, folder: Path | None = None, kill_before: int | None = None) -> Process:
    """Fork a process that does some work and ends as a Python program does.

    Args:
        work: called in the process; may raise SystemExit.
        log: file for stdout and stderr.
        folder: count the operations on files in this folder.
        kill_before: number of the operation from 1 before which the process kills itself; None for never.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    started = time.monotonic()
    pid = os.fork()
    if pid:
        return Process(pid, log, started)
    try:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        counter = None if folder is None else _Counter(folder, kill_before)
        if counter is not None:
            sys.addaudithook(counter)
        code = _run(work)
        sys.stdout.flush()
        sys.stderr.flush()
        if counter is not None:
            window = [moment - started for moment in counter.window]
            os.write(1, f"\noperations: {counter.count} {window[0]} {window[-1]}".encode())
        os._exit(code)
    finally:
        os._exit(99)


def run(work: Callable[[], Any], log: Path, **options: Any) -> Ended:
    """Fork a process, wait for its end and return how it ended."""
    return start(work, log, **options).wait()


def run_and_kill(work: Callable[[], Any], log: Path, after_seconds: float) -> Ended:
    """Fork a process and kill it after a time, unless it has ended by then."""
    process = start(work, log)
    while process.poll() and time.monotonic() - process.started < after_seconds:
        time.sleep(0.0005)
    if process.poll():
        process.kill()
    return process.wait()


def _run(work: Callable[[], Any]) -> int:
    try:
        work()
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    except BaseException:
        kind, error, trace = sys.exc_info()
        try:
            sys.excepthook(kind, error, trace)
        except BaseException:
            traceback.print_exc()
        return 1
    return 0


class _Counter:
    """Audit hook that counts the operations on files of a folder and kills the process before one of them."""

    def __init__(self, folder: Path, kill_before: int | None) -> None:
        self.folder = str(folder)
        self.kill_before = kill_before
        self.count = 0
        self.window: list[float] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._is_counted(event, arguments):
            return
        self.count += 1
        self.window = [*self.window[:1], time.monotonic()]
        if self.count == self.kill_before:
            os.kill(os.getpid(), signal.SIGKILL)

    def _is_counted(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event == "open":
            path, _, flags = arguments
            is_written = isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))
            return is_written and isinstance(path, str | os.PathLike) and str(path).startswith(self.folder)
        if event not in OPERATIONS:
            return False
        # rmtree names files relative to a descriptor of their folder
        return str(arguments[0]).startswith(self.folder) or not str(arguments[0]).startswith("/")
