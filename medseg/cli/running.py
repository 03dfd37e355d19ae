"""Run a Typer application so that every error of the input is one line on stderr; parameters shared by the commands."""

from __future__ import annotations

import gc
import io
import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from medseg.errors import BundleError, MedsegError, OptionError, did_you_mean, one_line

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Bundle = Annotated[Path, typer.Argument(help="Folder of the bundle.", metavar="BUNDLE")]

INTERRUPTED = 130  # the exit code of shells after Ctrl-C
# Typer contains a copy of click or uses the installed one; the base class of Typer's own exception fits both.
_UsageError: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "UsageError")


class ReportedError(MedsegError):
    """The failure of a command whose result, printed before, reports it as well."""


def print_json(result: Any) -> None:
    """Print the result of a command that was called with --json: the only text on stdout."""
    print(json.dumps(result, indent=2, allow_nan=False))


def run(app: Callable[..., Any], arguments: list[str] | None = None) -> None:
    """Run a Typer application.

    With --json, an error is printed as `{"error": message}` on stdout as well, for programs that read JSON there.

    Args:
        app: the application.
        arguments: the words of the command line; None takes those of this process.

    Raises:
        SystemExit: always, with code 0, 1 after an error of the input, 2 after an error of the command line, or 130
            after Ctrl-C.
        Exception: any other error; and, with --debug, an error of the input as well.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an ASCII terminal prints "?" for "×" and the command continues
    given = sys.argv[1:] if arguments is None else arguments
    is_debug, is_json = "--debug" in given, "--json" in given
    try:
        with _logged_tracebacks() if is_debug else nullcontext():
            code = app([word for word in given if word != "--debug"], prog_name="medseg", standalone_mode=False)
    except _UsageError as error:
        if is_json:
            print_json({"error": _usage_message(error)})
        code = _print_usage_error(error)
    except Exception as error:
        if is_json and not isinstance(error, ReportedError):
            print_json({"error": _message(error)})
        if is_debug or not isinstance(error, MedsegError | OSError):
            raise
        print(f"medseg: {_message(error)}", file=sys.stderr)
        code = 1
    if code == INTERRUPTED:
        reason = "interrupted; finished results are kept"
        if is_json:
            print_json({"error": reason})
        print(f"medseg: {reason}", file=sys.stderr)
    raise SystemExit(code if isinstance(code, int) else 0)


@contextmanager
def _logged_tracebacks() -> Iterator[None]:
    """Show what medseg logs for debugging, such as the traceback of each case that failed."""
    logger, handler = logging.getLogger("medseg"), logging.StreamHandler()
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextmanager
def paused_collector() -> Iterator[None]:
    """Import packages and load a model without the garbage collector.

    It would look through the objects of every package again and again, which takes a tenth of the time of importing
    PyTorch, and all of them stay.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def check_bundle(bundle: Path) -> None:
    """Refuse a bundle folder that does not exist, before torch is imported to open it.

    Raises:
        BundleError: there is no such folder. The message proposes the folder with the most similar name.
    """
    if not bundle.is_dir():
        folders = [path.name for path in bundle.parent.iterdir() if path.is_dir()] if bundle.parent.is_dir() else []
        hint = did_you_mean(bundle.name, folders, prefix=f"{bundle.parent}/")
        raise BundleError(
            f"{bundle}: no such bundle folder{hint or '; give the folder that contains configs/plan.json'}"
        )


def check_out_dir(out_dir: Path) -> None:
    """Refuse an output folder that cannot be written, before any work is done.

    Raises:
        OptionError: it is a file, is below a file, is a broken link, or is not writable.
    """
    from medseg.volumes import check_out_folder

    check_out_folder(out_dir)


def check_out_file(option: str, path: Path) -> None:
    """Refuse an output file that cannot be written, before any work is done.

    Raises:
        OptionError: it is a folder, or its folder cannot be written.
    """
    if path.is_dir():
        raise OptionError(f"{path}: is a folder, but {option} needs a file; add a file name")
    check_out_dir(path.parent)


def _print_usage_error(error: Any) -> int:
    """Print what is wrong with the command line, or the help text if there were no arguments."""
    path = error.ctx.command_path if error.ctx is not None else "medseg"
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.ctx.get_help())
        return 2
    print(f"{path}: {_usage_message(error)} (see {path} --help)", file=sys.stderr)
    return 2


def _usage_message(error: Any) -> str:
    option = getattr(error, "option_name", None)
    if type(error).__name__ == "NoSuchOption" and option:
        return f"no such option {option}{did_you_mean(option, error.possibilities or (), cutoff=0)}"
    message = " ".join(error.format_message().replace("Value error, ", "").split()).removesuffix(".")
    return message[:1].lower() + message[1:]


def _message(error: Exception) -> str:
    is_from_system = isinstance(error, OSError) and not isinstance(error, MedsegError) and error.filename
    return one_line(error) + ("; check the path and its permissions" if is_from_system else "")
