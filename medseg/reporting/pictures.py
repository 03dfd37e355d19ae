"""Every picture of the page within its size: volumes for the viewer and thumbnails, packed case by case."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.progress import track

from medseg.evaluation.pairs import read_pair
from medseg.evaluation.structures import Structures
from medseg.figures.viewer import block
from medseg.figures.viewer.fitting import fitted, num_bytes
from medseg.figures.viewer.view import View
from medseg.reporting.case_view import case_view
from medseg.reporting.images import Images
from medseg.reporting.thumbnail import thumbnail
from medseg.volumes import suffix_of

BLOCK = 50
# Longer side of a thumbnail in pixels by the number of cases, and what one takes as text at most.
THUMBNAIL_SIZES = ((100, 160, 30_000), (300, 128, 15_000), (10**9, 96, 9_000))
_WITHOUT_PATIENT = (".png", ".tif", ".tiff")


@dataclass
class Pictures:
    """What was drawn, as text for the page.

    Args:
        views: case id → its view as packed, in page order.
        volumes: case id → its packed volumes by the name of their block.
        thumbnails: case id → PNG in base64.
        problems: case id → why its picture or its image is missing.
    """

    views: dict[str, View] = field(default_factory=dict)
    volumes: dict[str, dict[str, str]] = field(default_factory=dict)
    thumbnails: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Size of all of them in the page."""
        return sum(map(len, self.thumbnails.values())) + sum(map(num_bytes, self.volumes.values()))

    def blocks(self, order: Sequence[str]) -> str:
        """The inert script elements that hold them; thumbnails in blocks of 50 in this order."""
        parts = []
        for number, packed in enumerate(self.volumes.values()):
            parts += [block(f"v{number}-{name}", text) for name, text in packed.items()]
        if self.thumbnails:
            for number, start in enumerate(range(0, len(order), BLOCK)):
                listed = json.dumps([self.thumbnails.get(case) for case in order[start : start + BLOCK]])
                parts.append(f'<script type="application/json" id="thumbnails-{number}">{listed}</script>')
        return "\n".join(parts)


def draw_pictures(
    inputs: Sequence[Mapping[str, str]],
    images: Images,
    structures: Structures,
    label_values: Mapping[str, Sequence[int]],
    opened: Sequence[str],
    max_bytes: int,
    *,
    progress: bool = False,
) -> Pictures:
    """Draw the cases, worst first, into at most so many bytes.

    What does not fit is left out in this order: voxels of the viewer's volumes, their channels beyond the first,
    thumbnails of the best cases, volumes of the best cases.

    Args:
        inputs: case, prediction and reference file of each case, worst first.
        images: where the scans are.
        structures: what the label files' values mean.
        label_values: the values of each structure.
        opened: the cases that can be opened in the viewer, the most important first.
        max_bytes: of all pictures together, as text.
        progress: show a progress bar.
    """
    known = list(dict.fromkeys(value for values in label_values.values() for value in values if value != 0))
    pixels, reserved = next((size, most) for cases, size, most in THUMBNAIL_SIZES if len(inputs) <= cases)
    volumes_left = max(max_bytes - min(len(inputs) * reserved, max_bytes // 3), 0)
    waiting = len(opened)
    pictures = Pictures()
    console = Console(stderr=True)
    for entry in track(inputs, description="drawing", disable=not progress, transient=True, console=console):
        case = entry["case"]
        view = _read_view(entry, images, structures, known, pictures.problems, None if case in opened else 1)
        if view is not None:
            pictures.thumbnails[case] = thumbnail(view, pixels)
        if case not in opened:
            continue
        if view is not None:
            thin, packed = fitted(view, volumes_left // max(waiting, 1))
            volumes_left -= num_bytes(packed)
            pictures.views[case] = thin
            pictures.volumes[case] = packed
        waiting -= 1
    order = [entry["case"] for entry in inputs]
    _drop_to_fit(pictures, order, opened, max_bytes)
    # the viewer's order, in which the blocks are numbered
    pictures.views = {case: pictures.views[case] for case in opened if case in pictures.views}
    pictures.volumes = {case: pictures.volumes[case] for case in pictures.views}
    return pictures


def _read_view(
    entry: Mapping[str, str],
    images: Images,
    structures: Structures,
    known: Sequence[int],
    problems: dict[str, str],
    max_channels: int | None,
) -> View | None:
    case, reference_file = entry["case"], Path(entry["reference"])
    pair, found = read_pair(case, Path(entry["prediction"]), reference_file, structures)
    if pair is None:
        problems[case] = f"no picture: {found[0].rule}, {found[0].found}"
        return None
    prediction, reference, grid = pair
    left_out: list[str] = []
    view = case_view(
        prediction,
        reference,
        grid,
        islice(images.read(case, grid, left_out), max_channels),
        modalities=images.modalities,
        has_patient=suffix_of(reference_file) not in _WITHOUT_PATIENT,
        known=known,
    )
    if left_out:
        problems[case] = "; ".join(left_out)
    return replace(view, notes=(*view.notes, *left_out))


def _drop_to_fit(pictures: Pictures, order: Sequence[str], opened: Sequence[str], max_bytes: int) -> None:
    best_first = [case for case in reversed(order) if case not in opened] + [*reversed(opened)]
    for held in (pictures.thumbnails, pictures.volumes):
        for case in best_first:
            if pictures.num_bytes <= max_bytes:
                return
            held.pop(case, None)
            if held is pictures.volumes:
                pictures.views.pop(case, None)
