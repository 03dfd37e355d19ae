"""Make `python -m monai.bundle run` friendly: check options and folders first, and end with one clear line."""

from __future__ import annotations

import json
import multiprocessing.dummy
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from traceback import walk_tb
from types import TracebackType
from typing import Any

import ignite.distributed as idist
from monai.utils import set_determinism

from medseg.errors import MedsegError, one_line
from medseg.training.distributed import start_processes
from medseg.training.run_options import refuse_wrong_options
from medseg.volumes.files import check_out_folder

_SECONDS_PER_CASE = 30
# environment variable with the file that gets the cause of a failure
ERROR_FILE = "MEDSEG_ERROR_FILE"
# the line of a process that ended because another one had failed
OF_ANOTHER_PROCESS = "another process of this training has ended; its own message says why"
# torch's data loader raises another exception in place of a worker's, with the worker's traceback as its message
_IN_A_WORKER = re.compile(r"^medseg\.errors\.\w+: (.+)$", re.MULTILINE)
# errors of the machine, for which no line of a config is to blame, and what to do about them
_MACHINE_ERRORS = {
    r"gloo.*by peer": OF_ANOTHER_PROCESS,
    r"DataLoader worker \(pid.*? is killed by signal: \w+": "{0}; often for want of memory: try fewer --num_workers",
    r"(CUDA out of memory|DefaultCPUAllocator: .*?memory)[^.]*": "{0}; lower --batch_size, or the patch in plan.json",
}


def prepare_run(output_dir: str | Path | None = None, seed: int | None = None, distributed: bool = False) -> None:
    """Prepare a bundle's run: the one entry that a config's `initialize` needs.

    In a run of `python -m monai.bundle run`, wrong options are refused, a failure ends in one line (see
    `show_one_line_errors`), and so does each warning. In any run the output folder is checked, the process group is
    joined and the random generators are seeded.

    Args:
        output_dir: folder that must be writable; None checks nothing.
        seed: seed of the global generators; each process of a group adds its rank. None seeds nothing.
        distributed: join the process group of torchrun (see `start_processes`).

    Raises:
        SystemExit: an option of the command is unknown or has a wrong value.
        OptionError: the output folder cannot be written.
    """
    if is_bundle_run(sys.argv):
        show_one_line_errors()
        refuse_wrong_options(sys.argv)
    if output_dir is not None:
        check_out_folder(output_dir)
    if distributed:
        start_processes()
    if seed is not None:
        set_determinism(seed + idist.get_rank())


def is_bundle_run(arguments: Sequence[str]) -> bool:
    """Return True if these are the arguments of a process that was started as `python -m monai.bundle run`."""
    program = Path(arguments[0]) if arguments else Path()
    return program.parts[-3:] == ("monai", "bundle", "__main__.py") and list(arguments[1:2]) == ["run"]


def show_one_line_errors() -> None:
    """From now on, let an exception that ends this process say its cause in one last line.

    MONAI wraps an exception once per level of the config: a hundred lines that end in "Failed to instantiate
    component". If the user can mend the cause (an error of medseg, a file that cannot be read or written), that line is
    all, unless MEDSEG_DEBUG is set. Any other exception keeps its traceback, and the line follows it. Warnings come in
    one line as well, without their line of source.
    """
    # MONAI's runner resolves the config and builds the trainer outside of our code, so no `try` or handler of ours
    # surrounds the place where most mistakes show
    sys.excepthook = _print_cause
    if not _is_debugging():
        warnings.formatwarning = _format_warning


def cause_in_words(error: BaseException) -> tuple[str, bool]:
    """Find the cause of an exception.

    The outermost error of medseg in the chain is the most complete one; without any, the innermost exception is the
    cause.

    Returns:
        The cause in one line, and whether this line says all that a user needs.
    """
    chain = list(_causes(error))
    for link in chain:
        if isinstance(link, MedsegError):
            return one_line(link), True
        if found := _IN_A_WORKER.search(str(link)):
            return found.group(1), True
    innermost = chain[-1]
    if isinstance(innermost, KeyboardInterrupt):
        return "interrupted; continue the training from its last checkpoint with --resume True", True
    if isinstance(innermost, ConnectionError | EOFError) and "torch.utils.data.dataloader" in _modules(innermost):
        return "a worker process has ended unexpectedly; often for want of memory: try fewer --num_workers", True
    if isinstance(innermost, OSError) and innermost.strerror and not isinstance(innermost, ConnectionError):
        return f"{one_line(innermost)}; check the folder, its permissions and its free space", True
    raised_in = (_modules(innermost) or [""])[-1]
    if isinstance(innermost, ValueError) and raised_in.startswith("medseg."):  # medseg refused a value
        return one_line(innermost), True
    for pattern, meaning in _MACHINE_ERRORS.items():
        if found := re.search(pattern, str(innermost), re.IGNORECASE):
            return meaning.format(found.group()), True
    return f"the cause: {type(innermost).__name__}: {one_line(innermost)}", False


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _modules(error: BaseException) -> list[str]:
    """List the modules of the frames that an exception passed; the one that raised it comes last."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    return [str(frame.f_globals.get("__name__", "")) for frame in frames]


def _is_debugging() -> bool:
    return bool(os.environ.get("MEDSEG_DEBUG"))


def _format_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> str:
    return f"{category.__name__}: {message}\n"


def _print_cause(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    line, is_enough = cause_in_words(error)
    if not is_enough or _is_debugging():
        sys.__excepthook__(kind, error, traceback)
    if not _report_to_parent(line):
        print(f"medseg: {line}", file=sys.stderr, flush=True)
    _report_to_torchrun(line)
    # CacheDataset's threads may still work on the next case; the interpreter aborts if it ends before them
    for thread in threading.enumerate():
        if isinstance(thread, multiprocessing.dummy.DummyProcess):
            thread.join(_SECONDS_PER_CASE)


def _report_to_parent(line: str) -> bool:
    """Leave the line to `medseg.training.train`, if it started this process, and return whether it did.

    Several processes may fail; each adds its line.
    """
    if not (file := os.environ.get(ERROR_FILE)):
        return False
    try:
        with Path(file).open("a", encoding="utf-8") as stream:
            stream.write(f"{line}\n")
    except OSError:
        return False
    return True


def _report_to_torchrun(line: str) -> None:
    """Put the line into torchrun's summary, which is the last output of a run with several processes."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        extra = {"py_callstack": line, "timestamp": str(int(time.time()))}
        with suppress(OSError):
            Path(file).write_text(json.dumps({"message": {"message": line, "extraInfo": extra}}), encoding="utf-8")
