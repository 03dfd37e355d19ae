"""Every picture of the page within its size: volumes for the viewer and thumbnails, packed case by case."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from medseg.evaluation.pairs import read_pair
from medseg.evaluation.structures import Structures
from medseg.reporting.case_view import MAX_VOXELS, CaseView, case_view
from medseg.reporting.images import Images, read_image
from medseg.reporting.packing import pack_volume
from medseg.reporting.thumbnail import thumbnail
from medseg.volumes import suffix_of

BLOCK = 50
# Longer side of a thumbnail in pixels by the number of cases, and what one takes as text at most.
THUMBNAIL_SIZES = ((100, 160, 30_000), (300, 128, 15_000), (10**9, 96, 9_000))
SMALLEST_VIEW_VOXELS = 50_000
_WITHOUT_PATIENT = (".png", ".tif", ".tiff")


@dataclass
class Pictures:
    """What was drawn, as text for the page.

    Args:
        views: case id → its view as packed, in page order.
        volumes: case id → (image or None, reference, prediction) as packed text.
        thumbnails: case id → PNG in base64.
        problems: case id → why its picture or its image is missing.
    """

    views: dict[str, CaseView] = field(default_factory=dict)
    volumes: dict[str, tuple[str | None, str, str]] = field(default_factory=dict)
    thumbnails: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Size of all of them in the page."""
        return sum(map(len, self.thumbnails.values())) + sum(_size(packed) for packed in self.volumes.values())

    def blocks(self, order: Sequence[str]) -> str:
        """The inert script elements that hold them; thumbnails in blocks of 50 in this order."""
        parts = []
        for number, packed in enumerate(self.volumes.values()):
            for role, text in zip(("image", "reference", "prediction"), packed, strict=True):
                if text is not None:
                    parts.append(f'<script type="text/plain" id="v{number}-{role}">{text}</script>')
        if self.thumbnails:
            for number, start in enumerate(range(0, len(order), BLOCK)):
                block = json.dumps([self.thumbnails.get(case) for case in order[start : start + BLOCK]])
                parts.append(f'<script type="application/json" id="thumbnails-{number}">{block}</script>')
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

    What does not fit is left out in this order: voxels of the viewer's volumes, thumbnails of the best cases, volumes
    of the best cases.

    Args:
        inputs: case, prediction and reference file of each case, worst first.
        images: where the scans are.
        structures: what the label files' values mean.
        label_values: the values of each structure.
        opened: the cases that can be opened in the viewer, the most important first.
        max_bytes: of all pictures together, as text.
        progress: show a progress bar.
    """
    known = sorted({value for values in label_values.values() for value in values if value != 0})
    pixels, reserved = next((size, most) for cases, size, most in THUMBNAIL_SIZES if len(inputs) <= cases)
    volumes_left = max(max_bytes - min(len(inputs) * reserved, max_bytes // 3), 0)
    waiting = len(opened)
    pictures = Pictures()
    console = Console(stderr=True)
    for entry in track(inputs, description="drawing", disable=not progress, transient=True, console=console):
        case = entry["case"]
        view = _read_view(entry, images, structures, known, pictures.problems)
        if view is not None:
            pictures.thumbnails[case] = thumbnail(view, pixels)
        if case not in opened:
            continue
        if view is not None:
            thin, packed = _pack_within(view, volumes_left // max(waiting, 1))
            volumes_left -= _size(packed)
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
    entry: Mapping[str, str], images: Images, structures: Structures, known: Sequence[int], problems: dict[str, str]
) -> CaseView | None:
    case, reference_file = entry["case"], Path(entry["reference"])
    pair, found = read_pair(case, Path(entry["prediction"]), reference_file, structures)
    if pair is None:
        problems[case] = f"no picture: {found[0].rule}, {found[0].found}"
        return None
    prediction, reference, grid = pair
    image, note = None, "no image found for this case" if images.files else ""
    if case in images.files:
        image, note = read_image(images.files[case], grid)
    if note:
        problems[case] = note
    view = case_view(
        prediction,
        reference,
        grid,
        image,
        modality=images.modality,
        has_patient=suffix_of(reference_file) not in _WITHOUT_PATIENT,
        known=known,
    )
    return replace(view, notes=(*view.notes, note)) if note else view


def _pack_within(view: CaseView, max_bytes: int) -> tuple[CaseView, tuple[str | None, str, str]]:
    """The view with as many voxels as fit, and its packed volumes."""
    voxels = MAX_VOXELS
    while True:
        thin = view.thinned(voxels)
        packed = (
            None if thin.image is None else pack_volume(thin.image),
            pack_volume(thin.reference),
            pack_volume(thin.prediction),
        )
        if _size(packed) <= max_bytes or thin.reference.size <= SMALLEST_VIEW_VOXELS:
            return thin, packed
        voxels = min(int(thin.reference.size * 0.9 * max_bytes / _size(packed)), thin.reference.size * 3 // 4)
        voxels = max(voxels, SMALLEST_VIEW_VOXELS)


def _drop_to_fit(pictures: Pictures, order: Sequence[str], opened: Sequence[str], max_bytes: int) -> None:
    best_first = [case for case in reversed(order) if case not in opened] + [*reversed(opened)]
    for held in (pictures.thumbnails, pictures.volumes):
        for case in best_first:
            if pictures.num_bytes <= max_bytes:
                return
            held.pop(case, None)
            if held is pictures.volumes:
                pictures.views.pop(case, None)


def _size(packed: tuple[Any, ...]) -> int:
    return sum(len(text) for text in packed if text is not None)
