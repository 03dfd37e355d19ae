"""Options that several commands share, and checks of values that no command should start work with."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated

import typer

from medseg.errors import BundleError, OptionError

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Bundle = Annotated[Path, typer.Argument(help="Folder of the bundle.", metavar="BUNDLE")]


def check_bundle(bundle: Path) -> None:
    """Answer a misspelt path at once, before torch is imported to open the bundle.

    Raises:
        BundleError: there is no such folder; its neighbours' nearest name is proposed.
    """
    if not bundle.is_dir():
        beside = [path.name for path in bundle.parent.iterdir() if path.is_dir()] if bundle.parent.is_dir() else []
        close = difflib.get_close_matches(bundle.name, beside, n=1)
        hint = f"did you mean {bundle.parent / close[0]}?" if close else "give the folder that holds configs/plan.json"
        raise BundleError(f"{bundle}: no such bundle folder; {hint}")


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
