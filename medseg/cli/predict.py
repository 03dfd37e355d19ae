"""The command `medseg predict`."""

from __future__ import annotations

import csv
import io
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from medseg.cli.running import (
    Bundle,
    Json,
    ReportedError,
    check_bundle,
    check_out_dir,
    check_out_file,
    paused_collector,
    print_json,
)
from medseg.errors import OptionError

if TYPE_CHECKING:
    from medseg.cohort import CohortProgress
    from medseg.inference import CaseResult, Predictor
    from medseg.plan import Plan

REPORT = "predictions.html"
SECONDS_PER_LINE = 30.0
Format = Literal["same", "nifti", "mgz", "nrrd", "mha", "png", "tiff", "dicom-seg", "zarr"]


def predict(
    bundle: Bundle,
    inputs: Annotated[
        list[str], typer.Argument(help="Scans: files, folders, patterns or DICOM series.", metavar="INPUT")
    ],
    out: Annotated[str, typer.Option("--out", "-o", help="Folder for the segmentations; with --ray also a URL.")],
    weights: Annotated[
        list[Path] | None,
        typer.Option(help="Weights file to use instead of the bundle's; repeat the option for an ensemble."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    backend: Annotated[
        Literal["auto", "torch", "openvino"],
        typer.Option(help="Software that runs the network; openvino needs the extra of this name."),
    ] = "auto",
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16", "int8"],
        typer.Option(help="Precision of the network; auto takes the fastest that gives the bundle's golden result."),
    ] = "auto",
    max_ram: Annotated[
        str | None,
        typer.Option(help="Memory limit, e.g. 4GB; the command exits before starting if it cannot be met."),
    ] = None,
    tta: Annotated[
        Literal["none", "flip"],
        typer.Option(help="Test-time augmentation: average over the flips used in training."),
    ] = "none",
    overlap: Annotated[
        float | None, typer.Option(help="Overlap of the tiles in [0, 1). Default: the value of the plan.")
    ] = None,
    format: Annotated[
        Format,
        typer.Option(help="Format of the segmentations; dicom-seg needs the dicom extra and DICOM series."),
    ] = "same",
    save_probabilities: Annotated[
        bool, typer.Option("--save-probabilities", help="Save one probability map per class.")
    ] = False,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Save an entropy map and intervals of the volumes.")
    ] = False,
    volumes: Annotated[
        Path | None, typer.Option(help="CSV file to write: one row per case with the volume of each label in ml.")
    ] = None,
    region_centre: Annotated[
        list[str] | None,
        typer.Option(
            help="Centre of a region in mm (RAS) as NAME=X,Y,Z, for bundles that find regions in scans. It replaces "
            "the search; repeat the option per region.",
            metavar="NAME=X,Y,Z",
        ),
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Write predictions.html into the folder: a page to look at all results.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with an error if a result is suspicious.")] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Predict whole scans with a network that was trained on crops, and scans with very large voxels.",
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Recompute finished cases and overwrite existing files.")
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            help="Segment the scans on a Ray cluster: auto (the one of this machine), local (start one) or HOST:PORT. "
            "Scans may then also be CSV files, manifests and URLs.",
            metavar="auto|local|HOST:PORT",
        ),
    ] = None,
    cpus_per_worker: Annotated[int, typer.Option(help="With --ray: CPU cores of each worker.")] = 1,
    gpus_per_worker: Annotated[float, typer.Option(help="With --ray: GPUs of each worker, e.g. 0.5.")] = 0.0,
    as_json: Json = False,
) -> None:
    """Segment scans; each segmentation has the grid of its scan."""
    check_bundle(bundle)
    if "://" in out and ray is None:
        raise OptionError(f"{out}: a URL as the output folder needs --ray; --ray local works on this machine")
    if report and ray is not None:
        raise OptionError("--report: needs the predictions on this machine; give it to a second run without --ray")
    # An existing folder may contain all results already, so that nothing is written.
    if "://" not in out and not Path(out).is_dir():
        check_out_dir(Path(out))
    if volumes is not None:
        check_out_file("--volumes", volumes)
    options: dict[str, Any] = {
        "weights": weights or None,
        "device": device,
        "backend": backend,
        "precision": precision,
        "max_ram": max_ram,
        "tta": tta,
        "overlap": overlap,
        "save_probabilities": save_probabilities,
        "uncertainty": uncertainty,
        "region_centers_mm": _region_centers(region_centre or ()),
        "force": force,
    }
    if report:
        from medseg.reporting import check_report_file

        check_report_file(Path(out) / REPORT)
    import medseg

    if ray is None:
        with paused_collector():
            predictor = medseg.load(bundle, **options)
        plan = predictor.plan
        on_case = None if as_json else partial(_print_case, _has_volumes(plan))
        results = _predict_with_progress(predictor, inputs, Path(out), format, overwrite, on_case)
        with_intervals = [] if predictor.calibration is None else list(predictor.calibration.thresholds)
    else:
        plan = medseg.read_plan(bundle / "configs" / "plan.json")
        on_case = None if as_json else partial(_print_case, _has_volumes(plan))
        results = medseg.cohort.predict(
            bundle, inputs, out, address=ray, cpus_per_worker=cpus_per_worker, gpus_per_worker=gpus_per_worker,
            format=format, overwrite=overwrite, on_case=on_case, on_progress=_ProgressLines(), **options,
        )  # fmt: skip
        with_intervals = list(dict.fromkeys(name for result in results for name in result.intervals_ml))
    if volumes is not None:
        has_volumes = _has_volumes(plan)
        write_volumes(
            results, list(plan.structures) if has_volumes else [], volumes, with_intervals if has_volumes else []
        )
    if report:
        _write_report(results, predictor, Path(out) / REPORT, is_verbose=not as_json)
    if as_json:
        print_json([result.to_dict() for result in results])
    failed = sum(result.status == "failed" for result in results)
    if failed:
        rest = f"; the others are in {out}" if failed < len(results) else ""
        raise ReportedError(f"{failed} of {len(results)} scans failed{rest}")
    suspicious = sum(bool(result.suspicions) for result in results)
    if suspicious and strict:
        raise ReportedError(f"{suspicious} of {len(results)} results are suspicious (--strict)")


def _write_report(results: Sequence[CaseResult], predictor: Predictor, path: Path, *, is_verbose: bool) -> None:
    from medseg.reporting import write_prediction_report

    written = write_prediction_report(results, path, predictor.plan, predictor.fingerprint, progress=is_verbose)
    if is_verbose:
        print(f"{written.path}  {written.megabytes:.1f} MB")
        for sentence in written.left_out:
            print(f"medseg: report: {sentence}", file=sys.stderr)


def _has_volumes(plan: Plan) -> bool:
    """Return False for 2D images, which have no thickness and therefore no volume, unless they are slices of a scan."""
    return plan.spatial_dims == 3 or plan.slice_axis is not None


class _ProgressLines:
    """Print the progress of a cohort on stderr, a line every half minute and one per worker that is given up."""

    def __init__(self) -> None:
        self.printed = time.monotonic()
        self.problems = 0

    def __call__(self, progress: CohortProgress) -> None:
        for problem in progress.problems[self.problems :]:
            print(f"medseg: {problem}; the other workers go on", file=sys.stderr, flush=True)
        self.problems = len(progress.problems)
        if time.monotonic() - self.printed < SECONDS_PER_LINE:
            return
        self.printed = time.monotonic()
        if not progress.workers:
            print("medseg: waiting for a worker to load the model", file=sys.stderr, flush=True)
            return
        left = "" if progress.seconds_left is None else f", {_duration(progress.seconds_left)} left"
        aside = f", {progress.set_aside} set aside" if progress.set_aside else ""
        rate = f", {progress.per_hour:.0f} per hour" if progress.per_hour else ""
        print(
            f"medseg: {progress.done} of {progress.total} scans on {progress.workers} workers{aside}"
            f"{rate}{left}", file=sys.stderr, flush=True,
        )  # fmt: skip


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"


def _region_centers(given: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Parse the values of `--region-centre`.

    Raises:
        OptionError: a value is not of the form NAME=X,Y,Z.
    """
    centers: dict[str, tuple[float, ...]] = {}
    for text in given:
        name, _, numbers = text.partition("=")
        try:
            center = tuple(float(number) for number in numbers.split(","))
        except ValueError:
            center = ()
        if not name or len(center) != 3 or not all(map(isfinite, center)):
            raise OptionError(f"--region-centre: expected NAME=X,Y,Z in mm, e.g. left=-26,-21,-14; found {text!r}")
        centers[name] = center
    return centers


def write_volumes(
    results: Sequence[CaseResult], label_names: Sequence[str], path: Path, with_intervals: Sequence[str] = ()
) -> None:
    """Write a CSV file with one row per case: `case`, `status`, `<label>_ml` per label, `output` and `suspicions`.

    Labels with an interval have the columns `<label>_ml_low` and `<label>_ml_high` behind their volume.

    Args:
        results: results of the cases. The volumes of a failed case are empty.
        label_names: names of the labels, in the order of the columns; none for images without volumes.
        path: the file. It is replaced atomically.
        with_intervals: labels whose bundle has a calibration.
    """
    from medseg.volumes import replacing

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    ends = {name: ("_ml", "_ml_low", "_ml_high") if name in with_intervals else ("_ml",) for name in label_names}
    writer.writerow(
        ["case", "status", *(name + end for name in label_names for end in ends[name]), "output", "suspicions"]
    )
    for result in results:
        volumes = [
            value
            for name in label_names
            for value in (result.volumes_ml.get(name, ""), *result.intervals_ml.get(name, ("", "")))[: len(ends[name])]
        ]
        writer.writerow([result.case, result.status, *volumes, result.output, "; ".join(result.suspicions)])
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", errors="backslashreplace")  # names that are not Unicode


def _predict_with_progress(
    predictor: Predictor,
    inputs: list[str],
    out_dir: Path,
    format: Format,
    overwrite: bool,
    on_case: Callable[[CaseResult], None] | None,
) -> list[CaseResult]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from medseg.inference import predict_files

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    # Rich would redirect stdout to the terminal, which is wrong if stdout goes to a file.
    is_terminal = sys.stdout.isatty()
    with Progress(*columns, console=console, disable=not console.is_terminal, redirect_stdout=is_terminal) as bar:
        scans, tiles = bar.add_task("scans", total=None), bar.add_task("tiles", total=None)
        predictor.on_tiles = lambda done, total: bar.update(tiles, completed=done, total=total)

        def show(result: CaseResult, number: int, total: int) -> None:
            bar.update(scans, completed=number + 1, total=total)
            if on_case is not None:
                on_case(result)

        return predict_files(predictor, inputs, out_dir, format=format, overwrite=overwrite, on_case=show)


def _print_case(has_volumes: bool, result: CaseResult) -> None:
    name = " ".join(result.case.split())  # the name of a file may contain a line break
    print(_line(replace(result, case=name), has_volumes), flush=True)
    for warning in result.warnings:
        print(f"medseg: {name}: warning: {warning}", file=sys.stderr)


def _line(result: CaseResult, has_volumes: bool) -> str:
    volumes_ml = result.volumes_ml if has_volumes else {}
    volumes = " ".join(f"{name} {volume:.2f} ml" for name, volume in volumes_ml.items())
    note = f" ({result.message})" if volumes and result.message else result.message
    return f"{result.status:7} {result.case}  {volumes}{note}"
