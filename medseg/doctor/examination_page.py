"""Write an examination as one HTML page with a picture of each offender."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from medseg.doctor.examine import Examination
from medseg.doctor.findings import SEVERITIES, Finding, all_rules
from medseg.doctor.offender_pictures import Picture, PictureBook, describe
from medseg.figures.canvas import OKABE_ITO
from medseg.reporting import page_parts
from medseg.versions import installed_version
from medseg.volumes import replacing

# Findings of one rule with a picture; the others are rows of a table.
MAX_PICTURED = 100
DEFAULT_MAX_MB = 15.0
MAX_LEGEND = 20
HEADINGS = {"error": "Errors", "warning": "Warnings", "note": "Notes"}


@dataclass
class Card:
    """One finding on the page.

    Args:
        finding: the finding.
        pictures: pictures with their PNG in base64, caption and alternative text.
    """

    finding: Finding
    pictures: list[dict[str, str]] = field(default_factory=list)


def write_page(
    examination: Examination,
    path: Path | str,
    *,
    with_images: bool = True,
    max_mb: float = DEFAULT_MAX_MB,
    on_finding: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the findings as one self-contained HTML page.

    Args:
        examination: the findings.
        path: file to write, atomically.
        with_images: False leaves out everything drawn from voxels.
        max_mb: size from which on no more pictures are added.
        on_finding: called after each finding with its number and their number.

    Returns:
        The path.

    Raises:
        VolumeError: the page cannot be written.
    """
    book = PictureBook(examination.dataset)
    rules = all_rules()
    groups, num_bytes, number = [], 0, 0
    for (severity, name), findings in examination.grouped().items():
        cards = []
        for position, finding in enumerate(findings):
            card = Card(finding)
            if with_images and position < MAX_PICTURED and num_bytes < max_mb * 1e6:
                card.pictures = [_inline(picture, finding, examination) for picture in book.draw(finding)]
                num_bytes += sum(len(picture["data"]) for picture in card.pictures)
            cards.append(card)
            number += 1
            if on_finding is not None:
                on_finding(number, len(examination.findings))
        groups.append(
            {
                "severity": severity,
                "rule": rules[name],
                "advice": list(dict.fromkeys(finding.advice for finding in findings)),
                "cards": [card for card in cards if card.pictures],
                "rows": [card.finding for card in cards if not card.pictures],
                "count": len(findings),
            }
        )
    page = (
        _environment()
        .get_template("examination.html")
        .render(
            title=f"Data set check: {examination.dataset.manifest.name}",
            version=installed_version("medseg"),
            navigation={severity: HEADINGS[severity] for severity in SEVERITIES if examination.counts[severity]}
            | {"rules": "Rules"},
            headings=HEADINGS,
            style=Markup(f"{page_parts.style()}\n{_part('examination.css')}"),
            script=Markup(page_parts.part("theme.js")),
            examination=examination,
            groups=groups,
            facts=_facts(examination),
            legend=[
                {"name": name, "color": OKABE_ITO[(value - 1) % len(OKABE_ITO)]}
                for value, name in list(examination.dataset.name_of_value.items())[:MAX_LEGEND]
            ],
            rules=[
                {"rule": rule, "count": sum(finding.rule == name for finding in examination.findings)}
                for name, rule in rules.items()
            ],
            has_pictures=any(group["cards"] for group in groups),
        )
    )
    path = Path(path)
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
    return path


def _inline(picture: Picture, finding: Finding, examination: Examination) -> dict[str, str]:
    return {
        "data": base64.b64encode(picture.png).decode("ascii"),
        "caption": picture.caption,
        "alt": f"{picture.caption or 'planes'} of {describe(finding, examination.dataset.cases)}",
    }


def _facts(examination: Examination) -> dict[str, Any]:
    manifest, dataset = examination.dataset.manifest, examination.dataset
    images = dataset.images(0)
    spacings = sorted({" × ".join(f"{step:.3g}" for step in file.grid.spacing) for file in images.values()})
    shapes = [file.shape for file in images.values()]
    return {
        "folder": str(dataset.root),
        "channels": ", ".join(f"{name} ({one.modality})" for name, one in _channels(examination)),
        "labels": ", ".join(f"{value} {name}" for name, value in manifest.labels.items()),
        "voxel size": f"{spacings[0]} mm" if len(spacings) == 1 else f"{len(spacings)} different ones",
        "sizes": f"{_size_ranges(shapes)} voxels" if shapes else "",
        "folds": ", ".join(str(number) for number in manifest.folds) or "none",
    } | ({} if images else {"voxel size": "unknown"})


def _channels(examination: Examination) -> list[tuple[str, Any]]:
    manifest = examination.dataset.manifest
    return list(zip(manifest.channel_names, manifest.channels, strict=True))


def _size_ranges(shapes: Sequence[tuple[int, ...]]) -> str:
    """Return the smallest and the largest size along each axis, for the shapes with as many axes as the first."""
    table = [shape for shape in shapes if len(shape) == len(shapes[0])]
    ranges = [(min(sizes), max(sizes)) for sizes in zip(*table, strict=True)]
    return " × ".join(f"{low}" if low == high else f"{low}–{high}" for low, high in ranges)


@cache
def _environment() -> Environment:
    return page_parts.environment("medseg.doctor", "page")


def _part(name: str) -> str:
    return (files("medseg.doctor") / "page" / name).read_text(encoding="utf-8")
