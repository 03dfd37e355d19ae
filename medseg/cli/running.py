"""Running an application so that everything a user can get wrong ends in one line on stderr."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from medseg.errors import BundleError, MedsegError, OptionError, did_you_mean, one_line

INTERRUPTED = 130  # what shells report for Ctrl-C
# Typer brings its own copy of click or uses the one installed; the base of its exported class is right for both.
_UsageError: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "UsageError")


def run(app: Callable[..., Any], arguments: list[str] | None = None) -> None:
    """Run a Typer application.

    Raises:
        SystemExit: always; 0, 1 for an error of the input, 2 for one of the command line, 130 after Ctrl-C.
        Exception: as it was raised, with --debug or where it is a defect rather than an error of the input.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an ASCII terminal shows "?" for "×" instead of stopping the command
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    try:
        code = app([a for a in given if a != "--debug"], prog_name="medseg", standalone_mode=False)
    except _UsageError as error:
        code = _say_usage(error)
    except (MedsegError, OSError) as error:
        if debug:
            raise
        print(f"medseg: {_line(error)}", file=sys.stderr)
        code = 1
    if code == INTERRUPTED:
        print("medseg: interrupted; what is finished is kept", file=sys.stderr)
    raise SystemExit(code if isinstance(code, int) else 0)


@contextmanager
def errors_as_json(is_wanted: bool) -> Iterator[None]:
    """Answer an error of the input on stdout as well, `{"error": line}`, so that what reads JSON there finds some."""
    try:
        yield
    except (MedsegError, OSError) as error:
        if is_wanted:
            print(json.dumps({"error": _line(error)}))
        raise


def _say_usage(error: Any) -> int:
    """Print what is wrong with the command line; the help itself where nothing was asked for."""
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


def _line(error: Exception) -> str:
    is_from_system = isinstance(error, OSError) and not isinstance(error, MedsegError) and error.filename
    return one_line(error) + ("; check the path and its permissions" if is_from_system else "")


Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Bundle = Annotated[Path, typer.Argument(help="Folder of the bundle.", metavar="BUNDLE")]


def check_bundle(bundle: Path) -> None:
    """Answer a misspelt path at once, before torch is imported to open the bundle.

    Raises:
        BundleError: there is no such folder; its neighbours' nearest name is proposed.
    """
    if not bundle.is_dir():
        beside = [path.name for path in bundle.parent.iterdir() if path.is_dir()] if bundle.parent.is_dir() else []
        hint = did_you_mean(bundle.name, beside, prefix=f"{bundle.parent}/")
        raise BundleError(f"{bundle}: no such bundle folder{hint or '; give the folder that holds configs/plan.json'}")


def check_folder(out: Path) -> None:
    """Refuse an --out that can be no folder before any work is done for it.

    Raises:
        OptionError: it is, or would lie in, a file, a link to nowhere, or a folder that may not be written to.
    """
    from medseg.volumes import check_out_folder

    check_out_folder(out)


def check_file(option: str, path: Path) -> None:
    """Refuse a file to write that can be none before any work is done for it.

    Raises:
        OptionError: it is a folder, or its folder can be none.
    """
    if path.is_dir():
        raise OptionError(f"{path}: a folder, but {option} names a file; add a file name")
    check_folder(path.parent)
