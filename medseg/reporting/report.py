"""report.html: an evaluation as one page that opens from disk, without a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from string import Template

from medseg.datasets import Manifest, read_manifest
from medseg.errors import OptionError
from medseg.evaluation import Evaluation
from medseg.evaluation.pairs import Labels, Source, structures_of
from medseg.figures import viewer
from medseg.figures.viewer.packing import pack_json
from medseg.reporting import sections
from medseg.reporting.calibration import calibration_section, measure_calibration
from medseg.reporting.images import Images, find_images
from medseg.reporting.page_data import Names, numbered, page_data, viewer_cases
from medseg.reporting.pictures import Pictures, draw_pictures
from medseg.reporting.sections import Html, header, methods_paragraph, tag, text
from medseg.volumes import replacing

MAX_MB = 15.0
LARGEST_MB = 25.0
SCRIPTS = ("tables.js", "distributions.js", "cases.js", "page.js")


@dataclass(frozen=True)
class WrittenReport:
    """A page on disk.

    Args:
        path: where it is.
        megabytes: its size.
        left_out: what it does not show and why, a sentence each.
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
    max_mb: float = MAX_MB,
    failure: str = "",
    progress: bool = False,
) -> WrittenReport:
    """Write an evaluation as one self-contained HTML page.

    Args:
        evaluation: what `medseg.evaluation.evaluate` returned; None where it could not evaluate anything.
        path: the page, whole or not at all.
        images: the scans: a folder (also one laid out as the manifest says), files, or case id → file. None looks
            beside the references where the manifest says scans lie; without scans the outlines are shown alone.
        labels: what `evaluate` was given; a manifest also says how label files are coded and which modality scans are.
        title: heading of the page.
        with_images: False leaves out everything drawn from voxels: numbers only.
        anonymise_ids: number cases and patients instead of naming them, and leave out file names and their hashes.
        max_mb: largest size, at most 25. What does not fit is left out in this order, and the page says so: resolution
            of the viewer's volumes, their channels beyond the first, thumbnails of the best cases, volumes of the best
            cases.
        failure: why nothing was evaluated, shown on the page.
        progress: show a progress bar.

    Returns:
        The page's path, its size, and what was left out.

    Raises:
        OptionError: ``max_mb`` not in (0, 25].
        EvaluationError: ``images`` names nothing.
        VolumeError: the page cannot be written.
    """
    if not 0 < max_mb <= LARGEST_MB:
        raise OptionError(f"max_mb must be above 0 and at most {LARGEST_MB:g}, found {max_mb:g}")
    if isinstance(labels, str | Path):
        labels = read_manifest(labels)
    if evaluation is None:
        reasons = sections.left_out(["Every case: nothing was evaluated."], [], failure or "no case was given")
        return _write(Path(path), title, header(title, None, [], False), [reasons], "", (failure or "every case",))
    summary = evaluation.summary
    order = [entry["case"] for entry in summary["cases"]]
    names = numbered(order, [entry["patient"] for entry in summary["cases"]]) if anonymise_ids else Names()
    found, pictures = Images({}), Pictures()
    inputs = {entry["case"]: entry for entry in summary["inputs"]}
    measured = measure_calibration(summary["inputs"], structures_of(labels), summary["label_values"])
    if with_images:
        manifest = labels if isinstance(labels, Manifest) else None
        found = find_images(images, {case: Path(entry["reference"]) for case, entry in inputs.items()}, manifest)
        pictures = draw_pictures(
            [inputs[case] for case in order],
            found,
            structures_of(labels),
            summary["label_values"],
            viewer_cases(summary),
            int(max_mb * 1e6) - _reserved(evaluation),
            progress=progress,
        )
    for case, problem in measured.problems.items():
        pictures.problems.setdefault(case, problem)
    if names.are_hidden:
        sections.without_names(pictures)
    view_note = sections.view_note(pictures, len(order), with_images)
    data = page_data(evaluation, names, pictures.views)
    data["thumbnail_note"] = "no picture" if with_images else "numbers only"
    data["view_note"] = view_note
    left_out = sections.omissions(summary, pictures, found, names, with_images)
    parts = [
        sections.left_out(left_out, [] if names.are_hidden else summary["problems"], failure),
        sections.metric_table(summary),
        sections.distributions(),
        sections.cases(f"Cases with missed structures come first, then the lowest Dice. {view_note}"),
        sections.viewer(bool(pictures.views)),
        sections.lesions(summary),
        calibration_section(measured, {entry["case"]: _or_nan(entry["dice"]) for entry in summary["cases"]}),
        sections.manifest(summary, names.are_hidden),
        sections.methods(methods_paragraph(summary)),
    ]
    blocks = f"{viewer.block('data', pack_json(data))}\n{pictures.blocks(order)}"
    head = header(title, summary, sections.badges(pictures, with_images, anonymise_ids), bool(pictures.thumbnails))
    return _write(Path(path), title, head, [part for part in parts if part], blocks, tuple(left_out))


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _reserved(evaluation: Evaluation) -> int:
    """What the page takes without pictures, at most: scripts, tables, and the rows of all cases."""
    return 200_000 + 12 * len(evaluation.rows) * len(evaluation.metrics) + 300 * len(evaluation.summary["inputs"])


def _write(
    path: Path, title: str, head: Html, parts: Sequence[Html], blocks: str, left_out: tuple[str, ...]
) -> WrittenReport:
    folder = files("medseg.reporting") / "page"
    links = [
        tag("a", words, href=f"#{id_}")
        for id_, words in sections.NAVIGATION.items()
        if any(f'id="{id_}"' in part for part in parts)
    ]
    page = Template((folder / "report.html").read_text(encoding="utf-8")).substitute(
        title=text(title),
        version=metadata.version("medseg"),
        style="\n".join([viewer.style(), (folder / "report.css").read_text(encoding="utf-8")]),
        script="\n".join([viewer.script(), *((folder / name).read_text(encoding="utf-8") for name in SCRIPTS)]),
        header=head,
        navigation="".join(links),
        sections="\n".join(parts),
        blocks=blocks,
    )
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return WrittenReport(path, path.stat().st_size / 1e6, left_out)
