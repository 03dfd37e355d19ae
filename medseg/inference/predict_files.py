"""Segment many scans: the function behind `medseg predict`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch

from medseg.errors import MedsegError, OptionError, VolumeError, one_line
from medseg.inference.cases import Case, find_cases, resolved
from medseg.inference.predictor import Predictor
from medseg.inference.saving import has_our_record, is_dicom_seg, map_path, provenance_path, save_segmentation
from medseg.inference.scan import Scan, input_digests, load_scan
from medseg.inference.segmentation import Segmentation
from medseg.inference.slice_predictor import scan_plan
from medseg.plan import Plan
from medseg.volumes import (
    DICOM_SEG_SUFFIX,
    WRITTEN_SUFFIX,
    check_grid_fits,
    check_out_folder,
    is_dicom,
    remove_leftovers,
    suffix_of,
)


@dataclass(frozen=True)
class CaseResult:
    """What became of one case.

    Args:
        case: its name.
        status: "done", "skipped" (finished by an earlier run) or "failed".
        output: the segmentation's file.
        message: for a failure, one line that says why.
        seconds: time it took to read, predict and write.
        volumes_ml: volume of each label.
        warnings: what the user should know about this case.
    """

    case: str
    status: Literal["done", "skipped", "failed"]
    output: str = ""
    message: str = ""
    seconds: float = 0.0
    volumes_ml: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data, for `--json`."""
        return asdict(self)


def finished_record(
    target: Path, inputs: Sequence[Path], identity: Mapping[str, Any], maps: Sequence[str] = ()
) -> dict[str, Any] | None:
    """The record of an output that an earlier run has finished; None where it must be made.

    Args:
        target: the segmentation's file.
        inputs: must hold what they held then.
        identity: what the record must say of weights and settings.
        maps: names of the maps that must lie beside it.
    """
    try:
        made = json.loads(provenance_path(target).read_text(encoding="utf-8"))
        if not isinstance(made, dict) or any(made.get(key) != value for key, value in identity.items()):
            return None
        # the record lies beside files of every format of that name
        if made.get("output") != target.name or not set(maps) <= set(made.get("maps", ())):
            return None
        if not all(path.is_file() for path in (target, *(map_path(target, name) for name in maps))):
            return None
        return made if made.get("input_sha256") == input_digests(inputs) else None  # last: it reads the inputs
    except (OSError, ValueError):
        return None


def failure_line(error: Exception) -> str | None:
    """One line about an error that concerns this scan alone; None for a defect, which must not be swallowed."""
    if isinstance(error, MedsegError | OSError):
        return one_line(error)
    if is_out_of_memory(error):
        return "out of memory; close other programs, or set --max-ram to learn how much is needed"
    return None


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed: Python's, a device's, or torch's on the CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


SUFFIX_OF_FORMAT = {
    "nifti": ".nii.gz",
    "mgz": ".mgz",
    "nrrd": ".nrrd",
    "mha": ".mha",
    "png": ".png",
    "tiff": ".tif",
    "dicom-seg": DICOM_SEG_SUFFIX,
}


@dataclass(frozen=True)
class Job:
    """One case and where its segmentation goes."""

    case: Case
    target: Path


def predict_files(
    predictor: Predictor,
    inputs: Iterable[str | Path],
    out_dir: str | Path,
    *,
    format: Literal["same", "nifti", "mgz", "nrrd", "mha", "png", "tiff", "dicom-seg"] = "same",
    overwrite: bool = False,
    on_start: Callable[[Case, int, int], None] | None = None,
    on_case: Callable[[CaseResult, int, int], None] | None = None,
) -> list[CaseResult]:
    """Segment every case that the inputs name; one bad scan does not stop the rest.

    The next scan is read and the last one written while the network runs (in threads of this process). What an earlier
    run has left half-written, because it was killed, is removed.

    Args:
        predictor: the model, loaded once.
        inputs: files, folders, globs, or folders of cases with `_0000`, `_0001`, … channels; never what lies in
            out_dir, unless an input begins with it.
        out_dir: gets `<case><suffix>` and `<case>.json` for each case; created if absent.
        format: "same" keeps each scan's own format, and makes NIfTI of DICOM; "dicom-seg" takes DICOM series alone.
        overwrite: predict again what an earlier run with the same weights and settings has finished, and replace
            files that have no record of medseg's beside them.
        on_start: called with (case, its number from 0, number of cases) before each case.
        on_case: called with (result, its number from 0, number of cases) after each case, in order.

    Returns:
        One result a case, in order; `any(r.status == "failed" for r in results)` means a non-zero exit.

    Raises:
        OptionError: an unknown format, or something is to be predicted and out_dir cannot be written to.
        VolumeError: the inputs cannot be understood, or an output would replace an input, or a file that is not
            medseg's (a `.json` even with overwrite), or DICOM SEG is asked for and cannot be made.
    """
    if format != "same" and format not in SUFFIX_OF_FORMAT:
        raise OptionError(f"format must be one of same, {', '.join(SUFFIX_OF_FORMAT)}; found {format!r}")
    jobs = _jobs(find_cases(inputs, predictor.plan.in_channels, exclude=Path(out_dir)), Path(out_dir), format)
    if format == "dicom-seg":
        _check_dicom(jobs)
    _check_outputs(jobs, predictor.maps, overwrite)
    finished = [
        None if overwrite else finished_record(job.target, job.case.paths, predictor.identity, predictor.maps)
        for job in jobs
    ]
    if None in finished:
        check_out_folder(out_dir)
        remove_leftovers(out_dir)
    results: list[CaseResult] = []
    with ThreadPoolExecutor(1, "medseg-read") as reader, ThreadPoolExecutor(1, "medseg-write") as writer:
        written = _predict(predictor, jobs, finished, reader, writer, on_start)
        try:
            for number, result in enumerate(written):
                results.append(result)
                if on_case is not None:
                    on_case(result, number, len(jobs))
        finally:
            reader.shutdown(wait=False, cancel_futures=True)
    return results


def _jobs(cases: list[Case], out: Path, wanted: str) -> list[Job]:
    return [Job(case, out / (case.name + _suffix(case, wanted))) for case in cases]


def _check_dicom(jobs: list[Job]) -> None:
    """Raise unless a DICOM Segmentation can be made of every input that is there."""
    from medseg.volumes.dicom.seg import check_highdicom

    for job in jobs:
        check_highdicom(job.target)
        source = job.case.paths[0]
        if source.exists() and not is_dicom(source):
            raise VolumeError(f"{source}: DICOM SEG needs a DICOM series as its input; choose another --format")


def _check_outputs(jobs: list[Job], maps: list[str], overwrite: bool) -> None:
    given = {resolved(path) for job in jobs for path in job.case.paths}
    seen: set[Path] = set()
    strange: list[Path] = []
    for job in jobs:
        outputs = [job.target, *(map_path(job.target, name) for name in maps)]
        for output in outputs:
            if resolved(output) in given:
                raise VolumeError(f"{output}: the output would replace an input; choose another output folder")
            if output in seen:
                raise VolumeError(f"{output}: would be written for two cases; predict them into separate folders")
            seen.add(output)
        if not has_our_record(job.target) and not overwrite:
            strange += [output for output in outputs if output.is_file()]
    if strange:
        more = f" ({len(strange) - 1} more files likewise)" if len(strange) > 1 else ""
        raise VolumeError(
            f"{strange[0]}: exists without medseg's record beside it{more}; choose another output folder, or replace "
            "with --overwrite"
        )


def _suffix(case: Case, wanted: str) -> str:
    if wanted != "same":
        return SUFFIX_OF_FORMAT[wanted]
    suffix = suffix_of(case.paths[0])
    return WRITTEN_SUFFIX.get(suffix, suffix) or ".nii.gz"


def _predict(
    predictor: Predictor,
    jobs: list[Job],
    finished: list[dict[str, Any] | None],
    reader: ThreadPoolExecutor,
    writer: ThreadPoolExecutor,
    on_start: Callable[[Case, int, int], None] | None,
) -> Iterator[CaseResult]:
    """Results in order; reading is one case ahead and writing one behind."""
    # Under a memory limit only one scan is held at a time.
    ahead = 0 if predictor.max_ram is not None else 1
    reading: dict[int, Future[tuple[Scan, float]]] = {}
    waiting: Future[CaseResult] | CaseResult | None = None
    for number, job in enumerate(jobs):
        if on_start is not None:
            on_start(job.case, number, len(jobs))
        if ahead == 0 and isinstance(waiting, Future):
            waiting.result()
        for soon in range(number, min(number + 1 + ahead, len(jobs))):
            if finished[soon] is None and soon not in reading:
                reading[soon] = reader.submit(_read, jobs[soon], predictor.plan)
        made = finished[number]
        coming = _segment(predictor, job, reading.pop(number), writer) if made is None else _skipped(job, made)
        if waiting is not None:
            yield waiting.result() if isinstance(waiting, Future) else waiting
        waiting = coming
    if waiting is not None:
        yield waiting.result() if isinstance(waiting, Future) else waiting


def _read(job: Job, plan: Plan) -> tuple[Scan, float]:
    """The scan, and the seconds that took."""
    started = perf_counter()
    return load_scan(list(job.case.paths), scan_plan(plan)), perf_counter() - started


def _skipped(job: Job, made: Mapping[str, Any]) -> CaseResult:
    message, volumes = "finished by an earlier run", dict(made.get("volumes_ml", {}))
    return CaseResult(job.case.name, "skipped", str(job.target), message, volumes_ml=volumes)


def _segment(
    predictor: Predictor, job: Job, reading: Future[tuple[Scan, float]], writer: ThreadPoolExecutor
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


def _write(job: Job, segmentation: Segmentation, started: float) -> CaseResult:
    try:
        record = save_segmentation(segmentation, job.target)
    except Exception as error:
        return _failure(job, error, started)
    return CaseResult(
        job.case.name, "done", str(job.target), seconds=perf_counter() - started, volumes_ml=record["volumes_ml"],
        warnings=record["warnings"],
    )  # fmt: skip


def _failure(job: Job, error: Exception, started: float) -> CaseResult:
    """The result of a case that failed on its own account; a defect is raised again."""
    line = failure_line(error)
    if line is None:
        raise error
    named, *rest = (" ".join(str(path).split()) for path in (*job.case.paths, job.target.parent))
    if not any(path in line for path in (named, *rest)):
        line = f"{named}: {line}"
    return CaseResult(job.case.name, "failed", message=line, seconds=perf_counter() - started)
