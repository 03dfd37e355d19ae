"""The cause of a failed `python -m monai.bundle run` as its last line, where MONAI ends with its last symptom."""

from __future__ import annotations

import json
import multiprocessing.dummy
import os
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm.auto import tqdm

from medseg.training.failure_cause import cause_in_words
from medseg.training.overrides import is_bundle_run

_SECONDS_FOR_A_CASE = 30


def one_line_errors(arguments: Sequence[str] | None = None) -> None:
    """From now on a run that fails says why in one line, the last; for `initialize`.

    MONAI wraps an exception once for every level of the config, a hundred lines that end in "Failed to instantiate
    component". Where the cause is something the user can mend (an error of medseg, a file that cannot be read or
    written) that line is all, unless MEDSEG_DEBUG is set; any other exception keeps its traceback and gets the line
    behind it. Warnings come in one line as well, without the line of source they came from. Does nothing where a bundle
    is run in another way than by `python -m monai.bundle run`.

    Args:
        arguments: of the process; None takes its own (`sys.argv`).
    """
    if is_bundle_run(list(sys.argv if arguments is None else arguments)):
        sys.excepthook = _say
        if not _wants_all():
            warnings.formatwarning = _warning_in_one_line


def _tell_torchrun(line: str) -> None:
    """Have torchrun's summary, which comes last where there are many processes, hold the line."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        extra = {"py_callstack": line, "timestamp": str(int(time.time()))}
        with suppress(OSError):
            Path(file).write_text(json.dumps({"message": {"message": line, "extraInfo": extra}}), encoding="utf-8")


def _wants_all() -> bool:
    return bool(os.environ.get("MEDSEG_DEBUG"))


def _warning_in_one_line(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> str:
    return f"{category.__name__}: {message}\n"


def _say(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()  # or the line would stand behind the bar
    line, is_enough = cause_in_words(error)
    if not is_enough or _wants_all():
        sys.__excepthook__(kind, error, traceback)
    print(f"medseg: {line}", file=sys.stderr, flush=True)
    _tell_torchrun(line)
    # CacheDataset's threads are still at the next case; the interpreter must not end under them, or it aborts
    for thread in threading.enumerate():
        if isinstance(thread, multiprocessing.dummy.DummyProcess):
            thread.join(_SECONDS_FOR_A_CASE)
