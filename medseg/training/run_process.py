"""Run one command of a training: it ends with this process, tells its error in one line, and has its folder alone."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from medseg.errors import TrainingError
from medseg.training.monai_run import ERROR_FILE, OF_ANOTHER_PROCESS

# A training that was killed may leave worker processes for some seconds.
_LOCK_SECONDS = 30.0
_LOCK_NAME = ".run.lock"
_INTERRUPT_SECONDS = 2.0
_END_SECONDS = 30.0
_PR_SET_PDEATHSIG = 1
_UNEXPECTED = "the cause: "
# MONAI's advice to run only configs that one trusts, which a person who trains the bundle has decided already
_IGNORED_WARNING = "ignore:parsing config_file:UserWarning"


class LostProcessError(TrainingError):
    """A process of a training was ended from outside."""


@contextlib.contextmanager
def sole_run(out_dir: Path) -> Iterator[None]:
    """Create the folder of a run if necessary, and keep other runs out of it.

    The system releases the lock when the last process that holds it has ended, however it ended.

    Raises:
        TrainingError: another training runs in this folder.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":  # has no locks for folders
        yield
        return
    descriptor = _lock(out_dir)
    try:
        yield
    finally:
        _release(out_dir / _LOCK_NAME, descriptor)
        with contextlib.suppress(OSError):
            out_dir.rmdir()  # unless something was written


def _lock(out_dir: Path) -> int | None:
    """Open and lock the file that stands for a run, so that child processes keep the lock; None without locks."""
    import fcntl

    path, end = out_dir / _LOCK_NAME, time.monotonic() + _LOCK_SECONDS
    while True:
        # Not the folder itself: writing files that belong together locks that for a moment (see `staged`).
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_same_file(descriptor, path):
                os.set_inheritable(descriptor, True)
                return descriptor
            os.close(descriptor)  # another run ended, and removed it meanwhile
            continue
        except BlockingIOError:
            os.close(descriptor)
        except OSError:  # a file system without locks
            os.close(descriptor)
            path.unlink(missing_ok=True)
            return None
        if time.monotonic() > end:
            raise TrainingError(
                f"{out_dir}: another training is running in this folder; wait for its end, or give another folder with "
                "--out"
            )
        time.sleep(0.2)


def _release(path: Path, descriptor: int | None) -> None:
    """Give up the lock, and remove its file unless a process of the run still holds it."""
    if descriptor is None:
        return
    import fcntl

    os.close(descriptor)
    with contextlib.suppress(OSError), path.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_same_file(stream.fileno(), path):
            path.unlink()


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def run_process(command: Sequence[str], environment: Mapping[str, str], is_quiet: bool = False) -> None:
    """Run a command and wait for its end.

    Args:
        command: its words.
        environment: variables to add.
        is_quiet: show its output only after a failure without a known cause. Otherwise all output goes to stderr,
            where progress belongs.

    Raises:
        TrainingError: the command failed; the message is its cause, in one line.
        KeyboardInterrupt: this process or the command was interrupted.
    """
    with tempfile.TemporaryDirectory(prefix="medseg-") as folder:
        errors, output = Path(folder, "errors"), Path(folder, "output")
        warnings = ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), _IGNORED_WARNING]))
        variables = {**os.environ, **environment, ERROR_FILE: str(errors), "PYTHONWARNINGS": warnings}
        with output.open("wb") as stream:
            target = stream.fileno() if is_quiet else 2
            process = subprocess.Popen(
                command, env=variables, stdout=target, stderr=target, close_fds=False, preexec_fn=_end_with_parent()
            )
            code = _wait(process)
        if code == 0:
            return
        lines = errors.read_text(encoding="utf-8").splitlines() if errors.is_file() else []
        own = [line for line in lines if line != OF_ANOTHER_PROCESS]
        if is_quiet and (not own or own[0].startswith(_UNEXPECTED)):
            sys.stderr.write(output.read_text(encoding="utf-8", errors="replace"))
        if own:
            raise TrainingError(own[0])
        if code < 0:
            name = signal.Signals(-code).name
            cause = "; often for want of memory" if -code == signal.SIGKILL else ""
            raise LostProcessError(f"the process of the training was ended by {name}{cause}")
        raise LostProcessError(f"the training failed with exit code {code}; its message is above")


def _wait(process: subprocess.Popen) -> int:
    try:
        return process.wait()
    except KeyboardInterrupt:
        # a terminal interrupts both processes; another sender may have meant only this one
        for number, seconds in ((signal.SIGINT, _INTERRUPT_SECONDS), (signal.SIGTERM, _END_SECONDS)):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_INTERRUPT_SECONDS)
                raise
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
                raise
        process.kill()
        process.wait()
        raise


def _end_with_parent() -> Callable[[], None] | None:
    """Return a function for a new process that lets the system end it when its parent ends; None elsewhere than Linux.

    Otherwise a training whose parent was killed would go on unseen, and the same command would meet its files.
    """
    if not sys.platform.startswith("linux"):
        return None
    prctl, number = ctypes.CDLL(None).prctl, int(signal.SIGTERM)
    return lambda: prctl(_PR_SET_PDEATHSIG, number)
