"""`medseg data …`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from medseg.cli.running import Json, check_folder, errors_as_json
from medseg.errors import MedsegError


def prepare(
    name: Annotated[
        str,
        typer.Argument(help="Name of a shipped manifest, a manifest file, or a raw nnU-Net folder.", metavar="NAME"),
    ],
    root: Annotated[
        Path | None, typer.Option(help="Folder the dataset goes to; a raw nnU-Net folder is verified where it lies.")
    ] = None,
    source: Annotated[Path | None, typer.Option("--from", help="Adopt this folder instead of downloading.")] = None,
    as_json: Json = False,
) -> None:
    """Download, adopt or generate a dataset and verify every case."""
    from medseg.datasets import prepare as run

    with errors_as_json(as_json):
        report = run(name, root, source=source)
    print(json.dumps(report.to_dict(), indent=2) if as_json else "\n".join(report.lines()))
    if not report.is_usable:
        broken = f"{len(report.problems)} problems above" if report.problems else "no case is there"
        raise MedsegError(f"{name}: {broken}; {len(report.present)} cases are in place under {report.root}")


def list_data(as_json: Json = False) -> None:
    """List the shipped manifests."""
    from medseg.datasets import list_manifests, read_manifest

    manifests = [read_manifest(name) for name in list_manifests()]
    if as_json:
        rows = [
            {"name": m.name, "description": m.description, "num_cases": len(m.cases), "labels": dict(m.labels)}
            for m in manifests
        ]
        print(json.dumps(rows, indent=2))
        return
    for manifest in manifests:
        print(f"{manifest.name:16}{len(manifest.cases):5} cases  {manifest.description}")


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything the demo makes.")] = Path("demo"),
    epochs: Annotated[int | None, typer.Option(help="Epochs of training; fewer are faster and worse.", min=1)] = None,
) -> None:
    """Generate data, train, predict, evaluate: the whole pipeline on this machine."""
    check_folder(out)
    from medseg.demo import run

    run(out, epochs=epochs)
