"""A segmentation in the viewer, by itself: in a notebook's cell, or as a page of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

import numpy as np
from scipy import ndimage

from medseg.figures.planes import check_one_shape, labelled_center
from medseg.figures.viewer import block, script, style
from medseg.figures.viewer.packing import fitted, pack_json, view_data
from medseg.figures.viewer.view import cut_out
from medseg.volumes import Grid, replacing

# A notebook keeps every cell it showed.
MAX_BYTES = 1_500_000
MAX_VOXELS = 1_000_000
HEIGHT = "36rem"


@dataclass(frozen=True)
class SegmentationViewer:
    """The viewer of one segmentation; notebooks show it as an iframe.

    Args:
        page: a whole page that loads nothing.
        title: of the iframe.
    """

    page: str
    title: str = "slices"

    def _repr_html_(self) -> str:
        frame = f"width:100%;height:{HEIGHT};border:0;border-radius:8px;background:#0b0d0f"
        attributes = f'title="{escape(self.title)}" loading="lazy" style="{frame}"'
        return f'<iframe sandbox="allow-scripts" {attributes} srcdoc="{escape(self.page)}"></iframe>'

    def save(self, path: str | Path) -> Path:
        """Write it as a page that opens from disk in a browser, whole or not at all. It holds patient images."""
        with replacing(path) as temporary:
            temporary.write_text(self.page, encoding="utf-8")
        return Path(path)


def segmentation_viewer(
    image: np.ndarray,
    label_map: np.ndarray,
    affine: np.ndarray,
    labels: Mapping[str, int],
    name: str = "",
    has_patient: bool = True,
) -> SegmentationViewer:
    """Cut a scan to its labels with 20 mm around them and put it in the viewer, in about 1.5 MB at most.

    Args:
        image: (i, j, k) or (i, j).
        label_map: integers of the same shape. Without any label the whole image is shown.
        affine: 4×4, voxel index to mm (RAS+).
        labels: value by name; 0 is background. Colours are those of `three_planes`.
        name: of the scan.
        has_patient: whether the affine lies in a patient; PNG and TIFF do not.

    Raises:
        GeometryError: the shapes differ, or the affine is none.
    """
    shown = {label: value for label, value in labels.items() if value != 0}
    check_one_shape(image=image, label_map=label_map)
    grid = Grid(label_map.shape, affine)
    found = ndimage.find_objects((label_map != 0).astype(np.uint8))
    box = found[0] if found else (slice(0, 0),) * grid.spatial_dims
    whole = cut_out(
        label_map, None, grid, [("", np.asarray(image))], box, has_patient=has_patient, known=list(shown.values())
    )
    view, packed = fitted(whole, MAX_BYTES, MAX_VOXELS)
    shown_view = view_data(view, name, {label: [value] for label, value in shown.items()})
    # opens on the slices of the picture
    middle = labelled_center(label_map)
    shown_view["start"] = view.nearest_index((grid.affine @ [*middle, *[0] * (3 - len(middle)), 1])[:3])
    data = {"labels": list(shown), "views": [shown_view]}
    blocks = {"data": pack_json(data)} | {f"v0-{volume}": text for volume, text in packed.items()}
    page = Template((files("medseg.figures.viewer") / "page.html").read_text(encoding="utf-8")).substitute(
        title=escape(name or "slices"),
        style=style(),
        script=script(),
        blocks="\n".join(block(id_, text) for id_, text in blocks.items()),
    )
    return SegmentationViewer(page, f"slices of {name}" if name else "slices")
