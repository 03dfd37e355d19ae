"""Commands of `medseg data`, and `medseg demo`."""

from __future__ import annotations

import shutil
import textwrap
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from medseg.cli.running import Json, ReportedError, check_out_dir, check_out_file, print_json


class Folds(StrEnum):
    """Ways to make folds."""

    PATIENTS = "patients"
    NNUNET = "nnunet"


def prepare(
    name: Annotated[
        str,
        typer.Argument(help="A shipped manifest, a manifest file, or a raw nnU-Net folder.", metavar="NAME"),
    ],
    root: Annotated[
        Path | None, typer.Option(help="Folder for the dataset; a raw nnU-Net folder is verified in place.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="Take the files from this folder instead of downloading them.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Download, adopt or generate a dataset and verify every case."""
    from medseg.datasets import prepare as prepare_dataset

    report = prepare_dataset(name, root, source=source)
    if as_json:
        print_json(report.to_dict())
    else:
        print("\n".join(report.lines()))
    if not report.is_usable:
        reason = f"{len(report.problems)} problems" if report.problems else "no case is present"
        raise ReportedError(f"{name}: {reason}; {len(report.present)} cases are verified under {report.root}")


def describe(
    path: Annotated[Path, typer.Argument(help="Folder of the dataset, a manifest, or a dataset.json.", metavar="PATH")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the manifest to this new file.")] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Table that names the values or colours of the label maps.")
    ] = None,
    ignored: Annotated[
        int | None, typer.Option("--ignore", help="Value in the label maps of voxels that do not count.")
    ] = None,
    modality: Annotated[str | None, typer.Option(help="Modality of all channels, such as MR.")] = None,
    patients: Annotated[
        str | None,
        typer.Option(help="Regular expression with a group for the patient in a case id, or FILE.csv:COLUMN."),
    ] = None,
    folds: Annotated[
        Folds | None, typer.Option(help="Make folds by patient with even labels, or nnU-Net's default folds.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Recognise the layout of a dataset and print or write its manifest."""
    if out is not None:
        check_out_file("--out", out)
    from medseg.datasets import describe_dataset, write_manifest
    from medseg.datasets.manifest_content import manifest_content, to_yaml

    manifest = describe_dataset(
        path,
        labels=labels,
        ignored=ignored,
        modality=modality,
        patients=patients,
        folds=None if folds is None else folds.value,
    )
    if out is not None:
        write_manifest(manifest, out)
    if as_json:
        print_json(manifest_content(manifest))
    else:
        print(f"{manifest.name}: {len(manifest.cases)} cases, manifest written to {out}" if out else to_yaml(manifest))


def list_data(as_json: Json = False) -> None:
    """List the shipped manifests."""
    from medseg.datasets import list_manifests, read_manifest

    manifests = [read_manifest(name) for name in list_manifests()]
    if as_json:
        rows = [
            {"name": m.name, "description": m.description, "num_cases": len(m.cases), "labels": dict(m.labels)}
            for m in manifests
        ]
        print_json(rows)
        return
    width = shutil.get_terminal_size().columns
    for manifest in manifests:
        head = f"{manifest.name:16}{len(manifest.cases):4} cases  "
        print(textwrap.fill(head + manifest.description, width, subsequent_indent=" " * len(head)))


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for all results of the demo.")] = Path("demo"),
    epochs: Annotated[int | None, typer.Option(help="Epochs of training; fewer are faster and worse.", min=1)] = None,
) -> None:
    """Generate data, train, predict and evaluate on this machine."""
    check_out_dir(out)
    from medseg.demo import run

    run(out, epochs=epochs)
