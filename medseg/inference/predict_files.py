"""Segment many scans: the function behind `medseg predict`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

from medseg.errors import MedsegError, VolumeError
from medseg.inference.cases import Case, find_cases
from medseg.inference.predictor import Predictor
from medseg.inference.segmentation import provenance_path
from medseg.volumes import suffix_of

SUFFIX_OF_FORMAT = {"nifti": ".nii.gz", "nrrd": ".nrrd", "mha": ".mha", "png": ".png", "tiff": ".tif"}


@dataclass(frozen=True)
class CaseResult:
    """What became of one case.

    Args:
        case: its name.
        status: "done", "skipped" (finished by an earlier run) or "failed".
        output: the segmentation's file.
        message: for a failure, one line that says why.
        seconds: time it took.
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


def predict_files(
    predictor: Predictor,
    inputs: Iterable[str | Path],
    out_dir: str | Path,
    *,
    format: Literal["same", "nifti", "nrrd", "mha", "png", "tiff"] = "same",
    overwrite: bool = False,
    on_start: Callable[[Case, int, int], None] | None = None,
    on_case: Callable[[CaseResult, int, int], None] | None = None,
) -> list[CaseResult]:
    """Segment every case that the inputs name; one bad scan does not stop the rest.

    Args:
        predictor: the model, loaded once.
        inputs: files, folders, globs, or folders of cases with `_0000`, `_0001`, … channels.
        out_dir: gets `<case><suffix>` and `<case>.json` for each case; created if absent.
        format: "same" keeps each scan's own format.
        overwrite: predict again what an earlier run with the same weights and settings has finished.
        on_start: called with (case, its number from 0, number of cases) before each case.
        on_case: called with (result, its number from 0, number of cases) after each case.

    Returns:
        One result a case, in order; `any(r.status == "failed" for r in results)` means a non-zero exit.

    Raises:
        VolumeError: the inputs cannot be understood, or an output would replace an input.
    """
    cases = find_cases(inputs, predictor.plan.in_channels)
    out = Path(out_dir)
    targets = [out / (case.name + _suffix(case, format)) for case in cases]
    given = {path.resolve() for case in cases for path in case.paths}
    for target in targets:
        if target.resolve() in given:
            raise VolumeError(f"{target}: the output would replace an input; choose another output folder")
    results = []
    for number, (case, target) in enumerate(zip(cases, targets, strict=True)):
        if on_start is not None:
            on_start(case, number, len(cases))
        result = _predict_case(predictor, case, target, overwrite)
        results.append(result)
        if on_case is not None:
            on_case(result, number, len(cases))
    return results


def _suffix(case: Case, wanted: str) -> str:
    if wanted != "same":
        return SUFFIX_OF_FORMAT[wanted]
    return suffix_of(case.paths[0]) or ".nii.gz"


def _predict_case(predictor: Predictor, case: Case, target: Path, overwrite: bool) -> CaseResult:
    started = perf_counter()
    if not overwrite and _is_finished(predictor, case, target):
        return CaseResult(case.name, "skipped", str(target), "finished by an earlier run")
    try:
        segmentation = predictor.predict(list(case.paths))
        segmentation.save(target)
    except (MedsegError, OSError) as error:
        return CaseResult(case.name, "failed", message=_one_line(error), seconds=perf_counter() - started)
    return CaseResult(
        case.name, "done", str(target), seconds=perf_counter() - started, volumes_ml=segmentation.volumes_ml(),
        warnings=list(segmentation.provenance.get("warnings", [])),
    )  # fmt: skip


def _is_finished(predictor: Predictor, case: Case, target: Path) -> bool:
    """Whether the output is there, made of this input by the same weights and settings."""
    beside = provenance_path(target)
    if not (target.is_file() and beside.is_file()):
        return False
    try:
        made = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    wanted = predictor.identity([str(path) for path in case.paths])
    return isinstance(made, dict) and all(made.get(key) == value for key, value in wanted.items())


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
