"""Write report.html: an evaluation as one page that opens from disk, without a network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from medseg.datasets import Manifest, read_manifest
from medseg.errors import OptionError
from medseg.evaluation import Evaluation
from medseg.evaluation.pairs import Labels, Source, structures_of
from medseg.figures import viewer
from medseg.figures.viewer.packing import pack_json
from medseg.reporting import content, page_parts
from medseg.reporting.calibration import REGION_MM, draw_diagram, measure_calibration, rank_correlation, risk_coverage
from medseg.reporting.images import Images, find_images
from medseg.reporting.pictures import Pictures, draw_pictures
from medseg.versions import installed_version
from medseg.volumes import replacing

DEFAULT_MAX_MB = 15.0
LARGEST_MAX_MB = 25.0
# Of this folder, in the order the page must hold them.
SCRIPTS = ("tables.js", "distributions.js", "cases.js", "page.js")
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


@dataclass(frozen=True)
class WrittenReport:
    """A page on disk.

    Args:
        path: path of the page.
        megabytes: size of the page.
        left_out: what the page does not show and why, one sentence each.
    """

    path: Path
    megabytes: float
    left_out: tuple[str, ...]


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
    if not 0 < max_mb <= LARGEST_MAX_MB:
        raise OptionError(f"max_mb must be above 0 and at most {LARGEST_MAX_MB:g}, found {max_mb:g}; choose another")
    if isinstance(labels, str | Path):
        labels = read_manifest(labels)
    if evaluation is None:
        failure = failure or "no case was given"
        page = _render(title, None, {}, remarks=["Every case: nothing was evaluated."], failure=failure)
        return _write(Path(path), page, (failure,))
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
            [inputs[case] for case in order],
            found,
            structures,
            summary["label_values"],
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
    return _write(Path(path), page, tuple(remarks))


def fixed(value: float, digits: int) -> str:
    """Format a number with a true minus sign."""
    return f"{value:.{digits}f}".replace("-", "−")


@cache
def _environment() -> Environment:
    """Return the report's templates with its filters."""
    environment = page_parts.environment()
    environment.filters |= {"fixed": fixed, "thousands": "{:,}".format}
    return environment


def _render(title: str, summary: dict[str, Any] | None, sections: dict[str, str], **values: Any) -> str:
    environment = _environment()
    values = {"problems": [], "blocks": ""} | values
    has_remarks = bool(values["remarks"] or values["problems"] or values["failure"])
    scripts = [viewer.script(), *(page_parts.part(name) for name in SCRIPTS), page_parts.part("theme.js")]
    return environment.get_template("report.html").render(
        title=title,
        version=installed_version("medseg"),
        summary=summary,
        navigation=({"left-out": "Left out"} if has_remarks else {}) | sections,
        style=Markup(page_parts.style()),
        script=Markup("\n".join(scripts)),
        **values,
    )


def _reserved_bytes(evaluation: Evaluation) -> int:
    """Estimate an upper bound of the page's size without pictures: scripts, tables, and the rows of all cases."""
    return 200_000 + 12 * len(evaluation.rows) * len(evaluation.metrics) + 300 * len(evaluation.summary["inputs"])


def _write(path: Path, page: str, left_out: tuple[str, ...]) -> WrittenReport:
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return WrittenReport(path, path.stat().st_size / 1e6, left_out)
