"""The cause of a failed `python -m monai.bundle run` as its last line, where MONAI ends with its last symptom."""

from __future__ import annotations

import ast
import inspect
import json
import multiprocessing.dummy
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from traceback import walk_tb
from types import TracebackType
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.scripts import run as run_command
from tqdm.auto import tqdm

from medseg.errors import MedsegError, OptionError, did_you_mean, one_line

# what torch's data loader makes of an exception in a worker: another one, with the traceback as its message
_IN_A_WORKER = re.compile(r"^medseg\.errors\.\w+: (.+)$", re.MULTILINE)
# what torch says of processes and memory, which no line of a config is to blame for
_FROM_OUTSIDE = {
    r"gloo.*by peer": "another process of this training has ended; its own message says why",
    r"DataLoader worker \(pid.*? is killed by signal: \w+": "{0}; often for want of memory: try fewer --num_workers",
    r"(CUDA out of memory|DefaultCPUAllocator: .*?memory)[^.]*": "{0}; lower --batch_size, or the patch in plan.json",
}


def cause_in_words(error: BaseException) -> tuple[str, bool]:
    """One line for what an exception came from, and whether it says all a user needs.

    The outermost error of medseg in the chain is the most complete one; without any, the innermost exception is meant.
    """
    chain = list(_causes(error))
    for link in chain:
        if isinstance(link, MedsegError):
            return one_line(link), True
        if found := _IN_A_WORKER.search(str(link)):
            return found.group(1), True
    innermost = chain[-1]
    if isinstance(innermost, KeyboardInterrupt):
        return "interrupted; a training goes on from its last checkpoint with --resume True", True
    if isinstance(innermost, ConnectionError | EOFError) and "torch.utils.data.dataloader" in _modules(innermost):
        return "a worker process has ended on the way; often for want of memory: try fewer --num_workers", True
    if isinstance(innermost, OSError) and innermost.strerror and not isinstance(innermost, ConnectionError):
        return f"{one_line(innermost)}; check the folder, its permissions and its free space", True
    raised_in = (_modules(innermost) or [""])[-1]
    if isinstance(innermost, ValueError) and raised_in.startswith("medseg."):  # a value it checked and refused
        return one_line(innermost), True
    for said, meant in _FROM_OUTSIDE.items():
        if found := re.search(said, str(innermost), re.IGNORECASE):
            return meant.format(found.group()), True
    return f"the cause: {type(innermost).__name__}: {one_line(innermost)}", False


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _modules(error: BaseException) -> list[str]:
    """The modules of the frames an exception went through; where it was raised comes last."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    return [str(frame.f_globals.get("__name__", "")) for frame in frames]


OWN_OPTIONS = frozenset(
    name for function in (run_command, ConfigWorkflow) for name in inspect.signature(function).parameters
) - {"override"}
_PARTS = ("imports", "train", "validate", "initialize", "run", "finalize")


def refuse_unknown_overrides(arguments: Sequence[str] | None = None) -> None:
    """Leave with one line when an option of the command line names nothing in the configs; for `initialize`.

    `--fodl 2` is refused, `--averaged#decay 0.9` and `--train#trainer#amp True` (an argument of a component that is
    there) are not. Does nothing where a bundle is run in another way than by `python -m monai.bundle run`.

    Args:
        arguments: of the process; None takes its own (`sys.argv`).

    Raises:
        SystemExit: an option is unknown. It leaves MONAI's engine without the hundred lines of a wrapped exception.
    """
    given = list(sys.argv if arguments is None else arguments)
    if not is_bundle_run(given):
        return
    try:
        check_overrides(dict(_options(given[2:])))
    except OptionError as error:
        raise SystemExit(str(error)) from None


def check_overrides(options: Mapping[str, str]) -> None:
    """Compare options with the configs they name in `config_file`.

    Raises:
        OptionError: an option is none of MONAI's and its key, or its parent's, is not in the configs.
    """
    arguments_file = options.get("args_file")
    stored = ConfigParser.load_config_file(arguments_file) if arguments_file else {}
    files = _file_names(options.get("config_file", stored.get("config_file", "")))
    if not files:
        return
    config = ConfigParser.load_config_files(files)
    for name in (*stored, *options):
        key = name.removeprefix("+").replace("::", "#")
        parent, _, last = key.rpartition("#")
        if name in OWN_OPTIONS or key.split("#")[0] == "_meta_" or _is_in(config, parent or last):
            continue
        known = [part for part in config if not part.startswith("_") and part not in _PARTS]
        if parent:
            raise OptionError(f"option --{name}: there is no {parent} in {', '.join(files)}")
        hint = did_you_mean(key, [*known, *OWN_OPTIONS], prefix="--") or f"; the configs have {', '.join(known)}"
        raise OptionError(f"option --{name}: unknown{hint}")


def is_bundle_run(arguments: Sequence[str]) -> bool:
    program = Path(arguments[0]) if arguments else Path()
    return program.parts[-3:] == ("monai", "bundle", "__main__.py") and list(arguments[1:2]) == ["run"]


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Names and values as Fire reads them: `--name value` or `--name=value`; hyphens in a name are underscores."""
    for position, argument in enumerate(arguments):
        if argument.startswith("--") and len(argument) > 2:
            name, is_joined, value = argument[2:].partition("=")
            after = arguments[position + 1] if position + 1 < len(arguments) else ""
            yield name.replace("-", "_"), value if is_joined else after


def _file_names(given: Any) -> list[str]:
    """The config files of one name, a list, or a list in words."""
    if isinstance(given, str):
        try:
            given = ast.literal_eval(given)
        except (ValueError, SyntaxError):
            return [given] if given else []
    return [str(name) for name in given] if isinstance(given, list | tuple) else [str(given)]


def _is_in(config: Any, key: str) -> bool:
    for part in key.split("#"):
        if isinstance(config, list):
            if not part.isdecimal() or int(part) >= len(config):
                return False
            config = config[int(part)]
        elif isinstance(config, Mapping) and part in config:
            config = config[part]
        else:
            return False
    return True


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
