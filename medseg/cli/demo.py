"""`medseg demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medseg.cli.options import check_folder


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything the demo makes.")] = Path("demo"),
    epochs: Annotated[int | None, typer.Option(help="Epochs of training; fewer are faster and worse.", min=1)] = None,
) -> None:
    """Generate data, train, predict, evaluate: the whole pipeline on this machine."""
    check_folder(out)
    from medseg.demo import run

    run(out, epochs=epochs)
