"""Write predictions.html: the results of `medseg predict` as one page to look at, without any reference."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from medseg.errors import MedsegError, OptionError, one_line
from medseg.evaluation.overlap import bounding_box
from medseg.figures import viewer
from medseg.figures.viewer.packing import pack_json, short, view_data
from medseg.figures.viewer.view import View, cut_out
from medseg.inference import CaseResult
from medseg.inference.plausibility import Fingerprint
from medseg.inference.segmentation import is_dicom_seg, provenance_path
from medseg.plan import Plan
from medseg.reporting import content
from medseg.reporting.html_page import (
    DEFAULT_MAX_MB,
    WrittenReport,
    check_max_mb,
    page_scripts,
    render_page,
    write_page,
)
from medseg.reporting.images import read_image
from medseg.reporting.pictures import SUFFIXES_WITHOUT_PATIENT, Pictures, draw_pictures
from medseg.reporting.structure_sizes import (
    ABSENT,
    SHARE,
    UNUSUAL,
    USUAL,
    VOLUME,
    Quantity,
    Sizes,
    measure_sizes,
)
from medseg.volumes import Grid, read_channels, read_label_map, reorder, suffix_of

SCRIPTS = page_scripts("predictions.js")
# At most so many cases can be opened in the viewer; about as many heads fit into the page at full resolution.
MAX_OPENED = 24
GENERATOR = b'name="generator" content="medseg'


def check_report_file(path: Path) -> None:
    """Refuse to replace a file that is no page of medseg.

    Raises:
        OptionError: another program wrote it.
    """
    if path.is_file() and GENERATOR not in path.read_bytes()[:5000]:
        raise OptionError(f"{path}: exists and was not written by medseg; move it, or choose another output folder")


def write_prediction_report(
    results: Sequence[CaseResult],
    path: str | Path,
    plan: Plan,
    fingerprint: Fingerprint | None = None,
    *,
    title: str = "",
    max_mb: float = DEFAULT_MAX_MB,
    progress: bool = False,
) -> WrittenReport:
    """Write the results of `predict_files` as one self-contained HTML page, suspicious ones first.

    The scans and segmentations are read again, one at a time. What cannot be read is listed on the page.

    Args:
        results: one per case, also those of failed and skipped cases.
        path: file to write, atomically.
        plan: names and values of the labels, and channels of the scans.
        fingerprint: of the training cases, whose ranges are shown beside the results.
        title: heading of the page; by default the bundle's name.
        max_mb: largest size in MB, at most 25; see `write_report` for what is left out first.
        progress: show a progress bar.

    Raises:
        OptionError: `max_mb` is not in (0, 25], or the file at `path` was not written by medseg.
        VolumeError: the page cannot be written.
    """
    check_max_mb(max_mb)
    path = Path(path)
    check_report_file(path)
    has_volumes = plan.spatial_dims == 3 or plan.slice_axis is not None
    quantity, labels = VOLUME if has_volumes else SHARE, list(plan.structures)
    problems: dict[str, str] = {}
    sizes = measure_sizes(results, labels, fingerprint, is_share=not has_volumes, problems=problems)
    order = sorted(range(len(results)), key=lambda i: (_rank(results[i]), -sizes.strangeness(i), i))
    results = [results[i] for i in order]
    sizes = Sizes(sizes.values[order], [sizes.outcomes[i] for i in order], sizes.medians, sizes.training)
    by_case = {result.case: result for result in results}
    cases = list(by_case)

    def read_view(case: str, max_channels: int | None, lines: dict[str, str]) -> View | None:
        try:
            return result_view(by_case[case], plan, max_channels, lines)
        except (MedsegError, OSError) as error:
            lines[case] = f"no picture: {one_line(error)}"
            return None

    reserved = 200_000 + 500 * len(cases) + 40 * sizes.values.size + sum(len(str(each)) for each in results)
    pictures = draw_pictures(
        cases, read_view, cases[:MAX_OPENED], int(max_mb * 1e6) - reserved, progress=progress
    )  # fmt: skip
    for case, problem in problems.items():
        pictures.problems.setdefault(case, problem)
    records = [_record(result) for result in results]
    note = _view_note(pictures, len(cases))
    data = _script_data(results, records, sizes, quantity, plan, pictures)
    remarks = _remarks(pictures, len(cases), note)
    sections = {"first": "First", "volumes": quantity.plural.capitalize(), "cases": "Cases", "viewer": "Viewer"}
    page = render_page(
        title or f"Predictions of {next((record['bundle'] for record in records if record), plan.name)}",
        sections | ({"left-out": "Left out"} if remarks else {}),
        SCRIPTS,
        header="predictions_header.html",
        content="predictions.html",
        remarks=remarks,
        counts=_counts(results),
        badges=content.badges(pictures, True, False),
        has_images=bool(pictures.thumbnails),
        has_views=bool(pictures.views),
        has_training=bool(sizes.training),
        facts=_facts(records),
        flagged=[
            {"number": i, "name": result.case, "status": status_of(result), "reasons": reasons_of(result)}
            for i, result in enumerate(results)
            if status_of(result) != "done"
        ],
        quantity=quantity.plural,
        unit=quantity.unit,
        outliers=list(_outliers(results, sizes, quantity, labels)),
        view_note=note,
        blocks=Markup(
            f"{viewer.block('data', pack_json(data | {'view_note': note}))}\n{pictures.blocks(cases)}"
        ),
    )  # fmt: skip
    return write_page(path, page, tuple(remarks))


def status_of(result: CaseResult) -> str:
    """Return "suspicious", "failed" or "done"; a case that an earlier run has finished is as that run left it."""
    return "failed" if result.status == "failed" else "suspicious" if result.suspicions else "done"


def reasons_of(result: CaseResult) -> list[str]:
    """Return why a case is suspicious or failed, one line per reason."""
    return [result.message] if result.status == "failed" else list(result.suspicions)


def result_view(result: CaseResult, plan: Plan, max_channels: int | None, problems: dict[str, str]) -> View | None:
    """Return what the page shows of a case: the scan with its labels, or a failed scan alone.

    Raises:
        VolumeError, OSError: neither can be read.
    """
    if is_dicom_seg(Path(result.output)):
        problems[result.case] = "no picture: DICOM Segmentations are not read again; another `--format` has pictures"
        return None
    first = Path(result.inputs[0]) if result.inputs else None
    if result.output:
        label_map = read_label_map(result.output)
        labels, grid = np.asarray(label_map.array), label_map.grid
    elif first is not None:
        grid = read_channels(first, allow_non_finite=True, is_quiet=True)[0].grid
        labels = np.broadcast_to(np.zeros((), np.uint8), grid.shape)
    else:
        return None
    lines: list[str] = []
    view = cut_out(
        labels,
        None,
        grid,
        islice(_channels(result, plan, grid, lines), max_channels),
        bounding_box(labels) if result.output else (slice(0, 0),) * grid.spatial_dims,
        modalities={channel["name"]: channel["modality"] for channel in plan.channels},
        has_patient=suffix_of(first or Path(result.output)) not in SUFFIXES_WITHOUT_PATIENT,
        known=[value for value in plan.label_values if value],
    )
    if lines:
        problems[result.case] = "; ".join(lines)
    return view


def _channels(result: CaseResult, plan: Plan, grid: Grid, problems: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    if len(result.inputs) == 1 < plan.in_channels:
        volumes = read_channels(result.inputs[0], allow_non_finite=True, is_quiet=True)
        for channel, volume in zip(plan.channels, volumes, strict=False):
            yield channel["name"], np.nan_to_num(reorder(volume.array, volume.grid, grid)[0])
        return
    for channel, file in zip(plan.channels, result.inputs, strict=False):
        image, problem = read_image(Path(file), grid)
        if image is None:
            problems.append(problem)
        else:
            yield channel["name"], image


def _rank(result: CaseResult) -> int:
    return ("suspicious", "failed", "done").index(status_of(result))


def _counts(results: Sequence[CaseResult]) -> dict[str, int]:
    statuses = [status_of(result) for result in results]
    earlier = sum(result.status == "skipped" for result in results)
    return {"all": len(results), "earlier": earlier} | {
        status: statuses.count(status) for status in ("done", "suspicious", "failed")
    }


def _record(result: CaseResult) -> dict[str, Any]:
    """Return the record beside a segmentation; an empty one for failed cases and unreadable records."""
    if not result.output:
        return {}
    try:
        found = json.loads(provenance_path(result.output).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and "bundle" in found else {}


def _facts(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return what the header says of the model; several values if the cases differ."""

    def all_of(key: str) -> str:
        found = [record[key] for record in records if record.get(key)]
        texts = [", ".join(map(str, each)) if isinstance(each, list) else str(each) for each in found]
        return "; ".join(dict.fromkeys(texts))

    versions: Mapping[str, str] = next((record["versions"] for record in records if record.get("versions")), {})
    backends = dict.fromkeys(
        f"{record.get('backend')} on {record.get('device')}, {record.get('precision')}" for record in records if record
    )
    facts = {
        "bundle": all_of("bundle"),
        "weights": f"SHA-256 {all_of('weights_sha256')}" if any(records) else "",
        "plan": f"SHA-256 {all_of('plan_sha256')}" if any(records) else "",
        "run with": "; ".join(backends),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    return {name: text for name, text in facts.items() if text}


def _script_data(
    results: Sequence[CaseResult],
    records: Sequence[Mapping[str, Any]],
    sizes: Sizes,
    quantity: Quantity,
    plan: Plan,
    pictures: Pictures,
) -> dict[str, Any]:
    """Return the numbers that the page's scripts draw, in the order of the page."""
    labels = list(plan.structures)
    position = {result.case: number for number, result in enumerate(results)}
    view_number = {case: number for number, case in enumerate(pictures.views)}
    relative = 100 * sizes.values / sizes.medians
    bounds = {label: [100 * limit / sizes.medians[k] for limit in sizes.training[label]] for k, label in
              enumerate(labels) if label in sizes.training}  # fmt: skip
    metrics = [
        {"name": "size", "title": quantity.name, "unit": quantity.unit,
         "range": axis_range(sizes.values, sizes.training.values())},
        {"name": "relative", "title": f"{quantity.name} relative to the median", "unit": "%",
         "range": axis_range(relative, bounds.values())},
    ]  # fmt: skip
    present = sizes.medians[np.isfinite(sizes.values).any(axis=0)] if len(results) else sizes.medians
    if len(present) and present.max() > 4 * present.min():
        metrics.reverse()  # one axis in ml would squeeze the small structures
    return {
        "cases": [
            {
                "name": result.case,
                "status": status_of(result),
                "numbers": _numbers(sizes.values[i], quantity, labels),
                "reasons": reasons_of(result),
                "facts": _case_facts(result, record),
                "view": view_number.get(result.case),
            }
            for i, (result, record) in enumerate(zip(results, records, strict=True))
        ],
        "labels": list(labels),
        "metrics": metrics,
        "size": {"title": quantity.name, "unit": quantity.unit},
        "values": {
            name: [[short(value) for value in row] for row in table]
            for name, table in (("size", sizes.values.tolist()), ("relative", relative.tolist()))
        },
        "outcomes": sizes.outcomes,
        "ringed": UNUSUAL,
        "usual": [USUAL, ABSENT],
        "means": {
            label: {
                "size": _center(sizes.medians[k], sizes.training.get(label)),
                "relative": _center(100.0, bounds.get(label)),
            }
            for k, label in enumerate(labels)
            if np.isfinite(sizes.values[:, k]).any()
        },
        "training": {label: [short(limit) for limit in limits] for label, limits in sizes.training.items()},
        "has_training": bool(sizes.training),
        "columns": _confidence_columns(results, labels),
        "done_title": "others" if any(status_of(result) != "done" for result in results) else "least usual first",
        "thumbnail_note": "no picture",
        "views": [
            {"case": position[case]} | view_data(view, case, {name: list(plan.structures[name]) for name in labels})
            for case, view in pictures.views.items()
        ],
    }


def _confidence_columns(results: Sequence[CaseResult], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Return the columns that only calibrated bundles have: title, and a text per case and structure."""
    intervals = [
        [" to ".join(VOLUME.text(end) for end in result.intervals_ml.get(label, ())) for label in labels]
        for result in results
    ]
    dice = [
        ["" if (value := result.predicted_dice.get(label)) is None else f"{value:.2f}" for label in labels]
        for result in results
    ]
    columns = {"90 % interval": intervals, "predicted Dice": dice}
    return [{"title": title, "values": texts} for title, texts in columns.items() if any(any(row) for row in texts)]


def axis_range(values: np.ndarray, limits: Any) -> list[float]:
    """Return low and high end and number of steps of an axis with round ticks that holds all values and limits."""
    finite = [*values[np.isfinite(values)].tolist(), *(limit for pair in limits for limit in pair)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    span = high - low or abs(high) or 1.0
    unit = 10 ** math.floor(math.log10(span / 5))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if span / (unit * factor) <= 5)
    first = math.floor(low / step)
    last = max(math.ceil(high / step), first + 1)
    return [round(first * step, 9), round(last * step, 9), last - first]


def _center(median: float, limits: Sequence[float] | None) -> dict[str, float | None]:
    low, high = limits or (None, None)
    return {"value": short(float(median)), "low": short(low), "high": short(high)}


def _numbers(values: np.ndarray, quantity: Quantity, labels: Sequence[str]) -> str:
    """Return the sizes of up to two structures in words, or the sum of all."""
    if not np.isfinite(values).any():
        return "no result"
    if len(labels) > 2:
        return f"{quantity.text(float(np.nansum(values)))} {quantity.unit} in all"
    return ", ".join(f"{name} {quantity.text(v)} {quantity.unit}" for name, v in zip(labels, values, strict=True))


def _case_facts(result: CaseResult, record: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = [("scan", file) for file in result.inputs]
    if result.output:
        facts.append(("segmentation", result.output))
    if isinstance(found := record.get("regions"), Mapping) and found.get("correlation") is not None:
        scales = " to ".join(f"{scale:.2f}" for scale in (min(found["scales"]), max(found["scales"])))
        facts.append(("location", f"correlation with the template {found['correlation']:.2f}, scale {scales}"))
    if result.seconds:
        facts.append(("time", f"{result.seconds:.1f} s"))
    if result.status == "skipped":
        facts.append(("run", "finished by an earlier run"))
    return [*facts, *(("warning", warning) for warning in result.warnings)]


def _outliers(
    results: Sequence[CaseResult], sizes: Sizes, quantity: Quantity, labels: Sequence[str]
) -> Iterator[dict[str, Any]]:
    for k, label in enumerate(labels):
        limits = sizes.training.get(label)
        for i, result in enumerate(results):
            if sizes.outcomes[i][k] not in UNUSUAL or not np.isfinite(sizes.values[i, k]):
                continue
            usual = f"median {quantity.text(sizes.medians[k])}" if limits is None else (
                f"{quantity.text(limits[0])} to {quantity.text(limits[1])}")  # fmt: skip
            yield {
                "label": label, "number": i, "name": result.case, "value": quantity.text(sizes.values[i, k]),
                "usual": usual, "outcome": sizes.outcomes[i][k],
            }  # fmt: skip


def _view_note(pictures: Pictures, num_cases: int) -> str:
    if len(pictures.views) == num_cases:
        return "Every case can be opened in the viewer."
    return (
        f"The viewer opens {len(pictures.views)} of {num_cases} cases: at most the first {MAX_OPENED}, as far as they "
        "fit and can be read; the others have their numbers and a thumbnail."
    )


def _remarks(pictures: Pictures, num_cases: int, note: str) -> list[str]:
    remarks = [f"{case}: {problem}." for case, problem in list(pictures.problems.items())[:20]]
    if len(pictures.problems) > 20:
        remarks.append(f"{len(pictures.problems) - 20} more cases without a complete picture.")
    if len(pictures.views) < num_cases:
        remarks.append(note)
    thinned = sum(max(view.steps) > 1 for view in pictures.views.values())
    if thinned:
        remarks.append(
            f"Full resolution: {thinned} of {len(pictures.views)} volumes in the viewer are thinned to fit the page; "
            "each says by how much. All numbers were computed from all voxels."
        )
    unreadable = sum("no picture" in problem for problem in pictures.problems.values())
    missing = num_cases - len(pictures.thumbnails) - unreadable
    if missing > 0:
        remarks.append(f"Thumbnails of the last {missing} cases: the page would be too large.")
    return remarks
