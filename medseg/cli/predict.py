"""`medseg predict`."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from medseg.cli.running import Bundle, Json, check_bundle, check_file, check_folder, errors_as_json
from medseg.errors import MedsegError

if TYPE_CHECKING:
    from medseg.inference import CaseResult, Predictor


def write_volumes(results: Sequence[CaseResult], label_names: Sequence[str], path: Path) -> None:
    """Write a row a case: `case`, `status`, a column `<label>_ml` a structure (empty where the case failed), `output`.

    Args:
        results: what became of the cases.
        label_names: the structures, in the order of the columns; none for pictures, which have no volume.
        path: the CSV file, replaced whole.
    """
    from medseg.volumes import replacing

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "status", *(f"{name}_ml" for name in label_names), "output"])
    for result in results:
        volumes = [result.volumes_ml.get(name, "") for name in label_names]
        writer.writerow([result.case, result.status, *volumes, result.output])
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def predict(
    bundle: Bundle,
    inputs: Annotated[list[str], typer.Argument(help="Scans: files, folders, globs, DICOM series.", metavar="INPUT")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder the segmentations go to.")],
    weights: Annotated[
        list[Path] | None,
        typer.Option(help="Weights to use instead of the bundle's own; repeat the option for an ensemble."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    backend: Annotated[
        Literal["auto", "torch", "openvino"], typer.Option(help="What runs the network; openvino is an extra.")
    ] = "auto",
    precision: Annotated[Literal["auto", "fp32", "bf16"], typer.Option(help="Arithmetic of the network.")] = "fp32",
    max_ram: Annotated[str | None, typer.Option(help="Most memory to use, e.g. 4GB; refused if it cannot be.")] = None,
    tta: Annotated[
        Literal["none", "flip"], typer.Option(help="Average over flips the network was trained on.")
    ] = "none",
    overlap: Annotated[float | None, typer.Option(help="Overlap of tiles in [0, 1); the plan's by default.")] = None,
    format: Annotated[
        Literal["same", "nifti", "nrrd", "mha", "png", "tiff", "dicom-seg"],
        typer.Option(help="Format of the segmentations; dicom-seg is an extra and needs DICOM series."),
    ] = "same",
    save_probabilities: Annotated[
        bool, typer.Option("--save-probabilities", help="Save each class's probability map.")
    ] = False,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Save an entropy map and volume intervals.")
    ] = False,
    volumes: Annotated[
        Path | None, typer.Option(help="CSV file to write with a row a case: the volume of each structure in ml.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Predict again what is finished, and replace files of others.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Segment scans on their own grids."""
    with errors_as_json(as_json):
        check_bundle(bundle)
        if not out.is_dir():  # else it may hold all that is asked for, and need no writing
            check_folder(out)
        if volumes is not None:
            check_file("--volumes", volumes)
        import medseg

        predictor = medseg.load(
            bundle,
            weights=weights or None,
            device=device,
            backend=backend,
            precision=precision,
            max_ram=max_ram,
            tta=tta,
            overlap=overlap,
            save_probabilities=save_probabilities,
            uncertainty=uncertainty,
        )
        # a picture has no thickness, hence no volume; a 2D network that takes volumes in slices has one
        has_volumes = predictor.plan.spatial_dims == 3 or predictor.plan.slice_axis is not None
        on_case = None if as_json else partial(_print_case, has_volumes)
        results = _predict_with_progress(predictor, inputs, on_case, out_dir=out, format=format, overwrite=overwrite)
    if as_json:
        print(json.dumps([result.to_dict() for result in results], indent=2))
    if volumes is not None:
        from medseg.cli.predict import write_volumes

        write_volumes(results, [name for name in predictor.plan.label_names[1:] if has_volumes], volumes)
    failed = sum(result.status == "failed" for result in results)
    if failed:
        rest = f"; the others are in {out}" if failed < len(results) else ""
        raise MedsegError(f"{failed} of {len(results)} scans failed{rest}")


def _predict_with_progress(
    predictor: Predictor, inputs: list[str], on_case: Callable[[CaseResult], None] | None, **options: Any
) -> list[CaseResult]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from medseg.inference import predict_files

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    # In a log the lines of the cases are the progress. Rich would lead stdout to stderr, so only where both are seen.
    both_seen = sys.stdout.isatty()
    with Progress(*columns, console=console, disable=not console.is_terminal, redirect_stdout=both_seen) as bar:
        scans, tiles = bar.add_task("scans", total=None), bar.add_task("tiles", total=None)
        predictor.on_tiles = lambda done, total: bar.update(tiles, completed=done, total=total)

        def show(result: CaseResult, number: int, total: int) -> None:
            bar.update(scans, completed=number + 1, total=total)
            if on_case is not None:
                on_case(result)

        return predict_files(predictor, inputs, on_case=show, **options)


def _print_case(has_volumes: bool, result: CaseResult) -> None:
    name = " ".join(result.case.split())  # a file's name may hold anything, a new line too
    print(_line(replace(result, case=name), has_volumes), flush=True)
    for warning in result.warnings:
        print(f"medseg: {name}: warning: {warning}", file=sys.stderr)


def _line(result: CaseResult, has_volumes: bool) -> str:
    volumes_ml = result.volumes_ml if has_volumes else {}
    volumes = " ".join(f"{name} {volume:.2f} ml" for name, volume in volumes_ml.items())
    note = f" ({result.message})" if volumes and result.message else result.message
    return f"{result.status:8}{result.case}  {volumes}{note}"
