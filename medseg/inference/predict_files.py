"""Segment many scans: the function behind `medseg predict`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

from medseg.errors import OptionError, VolumeError, reason_of_failure
from medseg.inference.cases import Case, find_cases, resolved
from medseg.inference.predictor import Predictor
from medseg.inference.scan import Scan, load_scan
from medseg.inference.segmentation import (
    Segmentation,
    has_our_record,
    is_dicom_seg,
    map_path,
    provenance_path,
    save_segmentation,
    was_edited,
)
from medseg.plan import Plan
from medseg.volumes import (
    DICOM_SEG_SUFFIX,
    WRITTEN_SUFFIX,
    check_grid_fits,
    check_out_folder,
    image_sha256,
    is_dicom,
    is_zarr,
    remove_leftovers,
    suffix_of,
)
from medseg.volumes.files import read_json

logger = logging.getLogger(__name__)

SUFFIX_OF_FORMAT = {
    "nifti": ".nii.gz",
    "mgz": ".mgz",
    "nrrd": ".nrrd",
    "mha": ".mha",
    "png": ".png",
    "tiff": ".tif",
    "dicom-seg": DICOM_SEG_SUFFIX,
    "zarr": ".ome.zarr",
}


@dataclass(frozen=True)
class CaseResult:
    """Result of one case.

    Args:
        case: name of the case.
        status: "done", "suspicious" (done, but unlike the training data), "skipped" (an earlier run has finished it) or
            "failed".
        output: file of the segmentation.
        message: reason of a failure, a skip or a suspicion, in one line.
        seconds: time to read, predict and write the case.
        volumes_ml: volume of each label.
        warnings: one line each.
        suspicions: why the segmentation is unlike those of the training data, one line each.
        error: type of the exception of a failed case, such as "VolumeError".
        write_seconds: time to write the files.
        inputs: files of the scan, one per channel.
        intervals_ml: low and high end of the volume of each label, from bundles with a calibration.
        predicted_dice: Dice that the probabilities expect of each label, from bundles with a calibration; None for an
            absent label.
    """

    case: str
    status: Literal["done", "suspicious", "skipped", "failed"]
    output: str = ""
    message: str = ""
    seconds: float = 0.0
    volumes_ml: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    suspicions: list[str] = field(default_factory=list)
    error: str = ""
    write_seconds: float = 0.0
    inputs: list[str] = field(default_factory=list)
    intervals_ml: dict[str, list[float]] = field(default_factory=dict)
    predicted_dice: dict[str, float | None] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data, for `--json`."""
        return asdict(self)


@dataclass(frozen=True)
class _Job:
    """A case and the file of its segmentation."""

    case: Case
    target: Path


def predict_files(
    predictor: Predictor,
    inputs: Iterable[str | Path],
    out_dir: str | Path,
    *,
    format: Literal["same", "nifti", "mgz", "nrrd", "mha", "png", "tiff", "dicom-seg", "zarr"] = "same",
    overwrite: bool = False,
    on_start: Callable[[Case, int, int], None] | None = None,
    on_case: Callable[[CaseResult, int, int], None] | None = None,
) -> list[CaseResult]:
    """Segment every case that the inputs name. A scan that cannot be segmented does not stop the others.

    The next scan is read and the previous one written while the network runs, in threads of this process. Incomplete
    files of an earlier run that was killed are removed.

    Args:
        predictor: the loaded model.
        inputs: files, folders, glob patterns, or folders of cases with `_0000`, `_0001`, … channels. Files in out_dir
            are left out, unless an input names them.
        out_dir: receives `<case><suffix>` and `<case>.json` for each case; it is created if it does not exist.
        format: "same" keeps each scan's format and writes NIfTI for DICOM; "dicom-seg" needs DICOM series.
        overwrite: recompute cases that an earlier run with the same weights and settings has finished, and replace
            files without a record of medseg beside them.
        on_start: called with (case, its number from 0, number of cases) before each case.
        on_case: called with (result, its number from 0, number of cases) after each case, in order.

    Returns:
        One result per case, in order.

    Raises:
        OptionError: the format does not exist, or out_dir cannot be written to.
        VolumeError: the inputs cannot be understood, an output would replace an input or a file that medseg did not
            write (a `.json` even with overwrite), or the scans cannot be written as DICOM SEG.
    """
    if format != "same" and format not in SUFFIX_OF_FORMAT:
        raise OptionError(f"format must be one of same, {', '.join(SUFFIX_OF_FORMAT)}; found {format!r}")
    out_dir = Path(out_dir)
    remove_leftovers(out_dir)
    cases = find_cases(inputs, predictor.plan.in_channels, exclude=out_dir)
    jobs = [_Job(case, out_dir / (case.name + output_suffix(case, format))) for case in cases]
    if format == "dicom-seg":
        _check_dicom(jobs)
    _check_names(jobs, predictor.map_names)
    finished = [
        None
        if overwrite or job.case.problem
        else finished_record(job.target, job.case.paths, predictor.identity, predictor.map_names)
        for job in jobs
    ]
    if not overwrite:
        _check_earlier_files([job for job, record in zip(jobs, finished, strict=True) if record is None], predictor)
    if None in finished:
        check_out_folder(out_dir)
    results: list[CaseResult] = []
    with ThreadPoolExecutor(1, "medseg-read") as reader, ThreadPoolExecutor(1, "medseg-write") as writer:
        try:
            for number, result in enumerate(_predict(predictor, jobs, finished, reader, writer, on_start)):
                results.append(result)
                if on_case is not None:
                    on_case(result, number, len(jobs))
        finally:
            reader.shutdown(wait=False, cancel_futures=True)
    return results


def predict_case(
    predictor: Predictor,
    case: Case,
    target: Path,
    *,
    overwrite: bool = False,
    exclusive: AbstractContextManager[Any] | None = None,
) -> CaseResult:
    """Segment one case; whatever is wrong with it is in the result.

    Args:
        predictor: the loaded model.
        case: the case.
        target: file of the segmentation; its suffix chooses the format.
        overwrite: as of `predict_files`.
        exclusive: entered while the network runs, so that threads can read and write beside it.
    """
    job, started = _Job(case, target), perf_counter()
    try:
        if is_dicom_seg(target):
            _check_dicom([job])
        _check_names([job], predictor.map_names)
        if not overwrite and not case.problem:
            record = finished_record(target, case.paths, predictor.identity, predictor.map_names)
            if record is not None:
                return _skipped(job, record)
        if not overwrite:
            _check_earlier_files([job], predictor)
        if _is_chunked(predictor, job):
            with exclusive or nullcontext():
                return _segment_chunks(predictor, job)
        scan, read_seconds = _read(job, predictor.scan_plan)
        if not is_dicom_seg(target):
            check_grid_fits(target, scan.reference)
        with exclusive or nullcontext():
            segmentation = predictor.predict_scan(scan, read_seconds)
    except Exception as error:
        return _failure(job, error, started)
    return _write(job, segmentation, started)


def output_suffix(case: Case, format: str) -> str:
    """Return the suffix of a case's segmentation, for a format of `predict_files`."""
    if format != "same":
        return SUFFIX_OF_FORMAT[format]
    suffix = suffix_of(case.paths[0])
    return WRITTEN_SUFFIX.get(suffix, suffix) or ".nii.gz"


def _check_dicom(jobs: Sequence[_Job]) -> None:
    """Raise an error if an existing input cannot be written as a DICOM Segmentation."""
    from medseg.volumes.dicom.seg import check_highdicom

    for job in jobs:
        check_highdicom(job.target)
        source = job.case.paths[0]
        if source.exists() and not is_dicom(source):
            raise VolumeError(f"{source}: DICOM SEG needs a DICOM series as its input; choose another --format")


def _check_names(jobs: Sequence[_Job], map_names: Sequence[str]) -> None:
    """Raise an error if an output would replace an input, another output, or a `.json` of another program."""
    inputs = {resolved(path) for job in jobs for path in job.case.paths}
    planned: set[Path] = set()
    for job in jobs:
        for output in _outputs(job, map_names):
            if resolved(output) in inputs:
                raise VolumeError(f"{output}: the output would replace an input; choose another output folder")
            if output in planned:
                raise VolumeError(f"{output}: would be written for two cases; predict them into separate folders")
            planned.add(output)
        has_our_record(job.target)


def _check_earlier_files(jobs: Sequence[_Job], predictor: Predictor) -> None:
    """Raise an error if an output would replace a file that medseg did not write, or that was edited afterwards."""
    foreign: list[str] = []
    for job in jobs:
        if not has_our_record(job.target):
            outputs = [
                path
                for path in _outputs(job, predictor.map_names)
                if path.is_file() or (path.is_dir() and is_zarr(path))
            ]
            foreign += [f"{output}: exists without medseg's record beside it" for output in outputs]
        elif was_edited(job.target):
            foreign.append(f"{job.target}: was changed after medseg wrote it")
    if foreign:
        more = f" (and {len(foreign) - 1} more files)" if len(foreign) > 1 else ""
        raise VolumeError(f"{foreign[0]}{more}; choose another output folder, or replace with --overwrite")


def _outputs(job: _Job, map_names: Sequence[str]) -> list[Path]:
    return [job.target, *(map_path(job.target, name) for name in map_names)]


def finished_record(
    target: Path, inputs: Sequence[Path], identity: Mapping[str, Any], map_names: Sequence[str] = ()
) -> dict[str, Any] | None:
    """Return the record of an output that an earlier run has finished; None if the case must be predicted.

    Args:
        target: file of the segmentation.
        inputs: files of the case, whose content must be as recorded.
        identity: entries of the record (weights and settings) that must be equal.
        map_names: maps that must exist beside the segmentation.
    """
    try:
        record = read_json(provenance_path(target), VolumeError)
        if not isinstance(record, dict) or any(record.get(key) != value for key, value in identity.items()):
            return None
        # Segmentations of one name in several formats share one record.
        if record.get("output") != target.name or not set(map_names) <= set(record.get("maps", ())):
            return None
        if not all(path.exists() for path in (target, *(map_path(target, name) for name in map_names))):
            return None
        # Compare the digests last, because that reads the inputs.
        return record if record.get("input_sha256") == [image_sha256(path) for path in inputs] else None
    except OSError:
        return None


def _predict(
    predictor: Predictor,
    jobs: Sequence[_Job],
    finished: Sequence[dict[str, Any] | None],
    reader: ThreadPoolExecutor,
    writer: ThreadPoolExecutor,
    on_start: Callable[[Case, int, int], None] | None,
) -> Iterator[CaseResult]:
    """Yield the results in order. Reading is one case ahead of the network, and writing one case behind."""
    # Under a memory limit, hold only one scan at a time.
    ahead = 0 if predictor.max_ram is not None else 1
    reading: dict[int, Future[tuple[Scan, float]]] = {}
    previous: Future[CaseResult] | CaseResult | None = None
    for number, job in enumerate(jobs):
        if on_start is not None:
            on_start(job.case, number, len(jobs))
        if ahead == 0 and isinstance(previous, Future):
            previous.result()
        for soon in range(number, min(number + 1 + ahead, len(jobs))):
            if finished[soon] is None and soon not in reading and not _is_chunked(predictor, jobs[soon]):
                reading[soon] = reader.submit(_read, jobs[soon], predictor.scan_plan)
        record = finished[number]
        current: Future[CaseResult] | CaseResult
        if record is not None:
            current = _skipped(job, record)
        elif _is_chunked(predictor, job):
            if isinstance(previous, Future):
                previous.result()
            current = _segment_chunks(predictor, job)
        else:
            current = _segment(predictor, job, reading.pop(number), writer)
        if previous is not None:
            yield previous.result() if isinstance(previous, Future) else previous
        previous = current
    if previous is not None:
        yield previous.result() if isinstance(previous, Future) else previous


def _read(job: _Job, plan: Plan) -> tuple[Scan, float]:
    """Return the scan, and the seconds it took to read it."""
    started = perf_counter()
    if job.case.problem:
        raise VolumeError(job.case.problem)
    return load_scan(list(job.case.paths), plan), perf_counter() - started


def _skipped(job: _Job, record: Mapping[str, Any]) -> CaseResult:
    volumes, suspicions = dict(record.get("volumes_ml", {})), [str(line) for line in record.get("suspicions", ())]
    message = "; ".join(["finished by an earlier run", *(f"suspicious: {line}" for line in suspicions)])
    return CaseResult(
        job.case.name, "skipped", str(job.target), message, volumes_ml=volumes, suspicions=suspicions,
        inputs=_inputs(job), **_confidence(record),
    )  # fmt: skip


def _confidence(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return calibrated intervals and predicted Dice of a record; nothing without a calibration."""
    if "confidence" not in record:
        return {}
    return {
        "intervals_ml": dict(record.get("volume_intervals_ml", {})),
        "predicted_dice": dict(record.get("predicted_dice", {})),
    }


def _inputs(job: _Job) -> list[str]:
    return [str(path) for path in job.case.paths]


def _segment(
    predictor: Predictor, job: _Job, reading: Future[tuple[Scan, float]], writer: ThreadPoolExecutor
) -> Future[CaseResult] | CaseResult:
    started = perf_counter()
    try:
        scan, read_seconds = reading.result()
        if not is_dicom_seg(job.target):
            check_grid_fits(job.target, scan.reference)
        segmentation = predictor.predict_scan(scan, read_seconds)
    except Exception as error:
        return _failure(job, error, started)
    return writer.submit(_write, job, segmentation, started)


def _is_chunked(predictor: Predictor, job: _Job) -> bool:
    """Return True if a case is predicted from chunks to chunks, because it may be larger than memory."""
    stores = [*job.case.paths, job.target]
    return predictor.can_predict_chunks and not job.case.problem and all(is_zarr(path) for path in stores)


def _segment_chunks(predictor: Predictor, job: _Job) -> CaseResult:
    from medseg.inference.chunked.prediction import ChunkedPrediction

    started = perf_counter()
    try:
        record = ChunkedPrediction(predictor, job.case.paths, job.target).run()
    except Exception as error:
        return _failure(job, error, started)
    return CaseResult(
        job.case.name, "done", str(job.target), seconds=perf_counter() - started, volumes_ml=record["volumes_ml"],
        warnings=record["warnings"],
    )  # fmt: skip


def _write(job: _Job, segmentation: Segmentation, started: float) -> CaseResult:
    begun = perf_counter()
    try:
        record = save_segmentation(segmentation, job.target)
    except Exception as error:
        return _failure(job, error, started)
    return CaseResult(
        job.case.name, segmentation.status, str(job.target), "; ".join(segmentation.suspicions),
        perf_counter() - started, record["volumes_ml"], record["warnings"], segmentation.suspicions,
        write_seconds=perf_counter() - begun, inputs=_inputs(job), **_confidence(record),
    )  # fmt: skip


def _failure(job: _Job, error: Exception, started: float) -> CaseResult:
    """Return the result of a case that failed, whatever was raised, so that the other cases are done."""
    message = reason_of_failure(error)
    logger.debug("%s failed", job.case.name, exc_info=error)
    paths = [" ".join(str(path).split()) for path in (*job.case.paths, job.target.parent)]
    if not any(path in message for path in paths):
        message = f"{paths[0]}: {message}"
    return CaseResult(
        job.case.name, "failed", message=message, seconds=perf_counter() - started, error=type(error).__name__,
        inputs=_inputs(job),
    )  # fmt: skip
