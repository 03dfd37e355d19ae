"""Write report.html: an evaluation as one page that opens from disk, without a network."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from markupsafe import Markup

from medseg.datasets import Manifest, read_manifest
from medseg.evaluation import Evaluation
from medseg.evaluation.pairs import Labels, Source, structures_of
from medseg.figures import viewer
from medseg.figures.viewer.packing import pack_json
from medseg.reporting import content
from medseg.reporting.calibration import REGION_MM, draw_diagram, measure_calibration, rank_correlation, risk_coverage
from medseg.reporting.html_page import (
    DEFAULT_MAX_MB,
    WrittenReport,
    check_max_mb,
    fixed,
    page_scripts,
    render_page,
    write_page,
)
from medseg.reporting.images import Images, find_images
from medseg.reporting.pictures import Pictures, draw_pictures, evaluated_views

SCRIPTS = page_scripts("evaluation.js")
# Sections of a page with an evaluation, by id, in their order.
SECTIONS = {
    "metrics": "Metrics",
    "distributions": "Distributions",
    "cases": "Cases",
    "viewer": "Viewer",
    "lesions": "Lesions",
    "calibration": "Calibration",
    "manifest": "Manifest",
    "methods": "Methods",
}


def write_report(
    evaluation: Evaluation | None,
    path: Path | str,
    *,
    images: Source | None = None,
    labels: Labels | Manifest | str | Path | None = None,
    title: str = "Segmentation report",
    with_images: bool = True,
    anonymise_ids: bool = False,
    max_mb: float = DEFAULT_MAX_MB,
    failure: str = "",
    progress: bool = False,
) -> WrittenReport:
    """Write an evaluation as one self-contained HTML page.

    Args:
        evaluation: result of `medseg.evaluation.evaluate`; None if nothing could be evaluated.
        path: file to write, atomically.
        images: the scans: a folder (also one laid out as the manifest says), files, or case id → file. None looks
            beside the references where the manifest says scans lie. Without scans the outlines are shown alone.
        labels: the same as for `evaluate`. A manifest also says how label files are coded and which modality scans are.
        title: heading of the page.
        with_images: False leaves out everything drawn from voxels, so that the page holds numbers only.
        anonymise_ids: number cases and patients instead of naming them, and leave out file names and their hashes.
        max_mb: largest size in MB, at most 25. What does not fit is left out in this order, and the page says so:
            resolution of the viewer's volumes, their channels beyond the first, thumbnails of the best cases, volumes
            of the best cases.
        failure: why nothing was evaluated; shown on the page.
        progress: show a progress bar.

    Returns:
        The page's path, its size, and what was left out.

    Raises:
        OptionError: `max_mb` is not in (0, 25].
        EvaluationError: there are no files at `images`.
        VolumeError: the page cannot be written.
    """
    check_max_mb(max_mb)
    if isinstance(labels, str | Path):
        labels = read_manifest(labels)
    if evaluation is None:
        failure = failure or "no case was given"
        page = _render(title, None, {}, remarks=["Every case: nothing was evaluated."], failure=failure)
        return write_page(Path(path), page, (failure,))
    summary = evaluation.summary
    order = [entry["case"] for entry in summary["cases"]]
    patients = [entry["patient"] for entry in summary["cases"]]
    names = content.numbered_names(order, patients) if anonymise_ids else content.Names()
    inputs = {entry["case"]: entry for entry in summary["inputs"]}
    structures = structures_of(labels)
    calibration = measure_calibration(summary["inputs"], structures, summary["label_values"])
    found, pictures = Images({}), Pictures()
    if with_images:
        manifest = labels if isinstance(labels, Manifest) else None
        found = find_images(images, {case: Path(entry["reference"]) for case, entry in inputs.items()}, manifest)
        pictures = draw_pictures(
            order,
            evaluated_views([inputs[case] for case in order], found, structures, summary["label_values"]),
            content.viewer_cases(summary),
            int(max_mb * 1e6) - _reserved_bytes(evaluation),
            progress=progress,
        )
    for case, problem in calibration.problems.items():
        pictures.problems.setdefault(case, problem)
    if names.are_hidden:
        content.remove_file_names(pictures)
    view_note = content.view_note(pictures, len(order), with_images)
    data = content.script_data(evaluation, names, pictures.views)
    data |= {"thumbnail_note": "no picture" if with_images else "numbers only", "view_note": view_note}
    remarks = content.omissions(summary, pictures, found, names, with_images)
    dice = {entry["case"]: math.nan if entry["dice"] is None else entry["dice"] for entry in summary["cases"]}
    correlation = rank_correlation(calibration.uncertainty, dice)
    page = _render(
        title,
        summary,
        SECTIONS,
        remarks=remarks,
        problems=[] if names.are_hidden else summary["problems"],
        failure=failure,
        badges=content.badges(pictures, with_images, anonymise_ids),
        has_images=bool(pictures.thumbnails),
        has_views=bool(pictures.views),
        view_note=view_note,
        columns=content.estimate_columns(summary, of_objects=False),
        object_columns=content.estimate_columns(summary, of_objects=True),
        has_sizes=any(b["n"] for entry in summary["labels"].values() for b in entry.get("sensitivity_by_size", [])),
        calibration=calibration,
        region_mm=REGION_MM,
        diagram=draw_diagram(calibration),
        risk_coverage=risk_coverage(calibration.uncertainty, dice),
        correlation_note=""
        if math.isnan(correlation)
        else f"; Spearman's ρ of entropy and Dice {fixed(correlation, 2)}",
        ids_hidden=names.are_hidden,
        methods=content.methods_paragraph(summary),
        blocks=Markup(f"{viewer.block('data', pack_json(data))}\n{pictures.blocks(order)}"),
    )
    return write_page(Path(path), page, tuple(remarks))


def _render(title: str, summary: dict[str, Any] | None, sections: dict[str, str], **values: Any) -> str:
    has_remarks = bool(values["remarks"] or values.get("problems") or values["failure"])
    return render_page(
        title,
        ({"left-out": "Left out"} if has_remarks else {}) | ({} if summary is None else sections),
        SCRIPTS,
        header="" if summary is None else "header.html",
        content="sections.html",
        **{"problems": [], "summary": summary} | values,
    )


def _reserved_bytes(evaluation: Evaluation) -> int:
    """Estimate an upper bound of the page's size without pictures: scripts, tables, and the rows of all cases."""
    return 200_000 + 12 * len(evaluation.rows) * len(evaluation.metrics) + 300 * len(evaluation.summary["inputs"])
