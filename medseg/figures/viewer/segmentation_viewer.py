"""The viewer of one segmentation: in a notebook cell, or saved as a page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from markupsafe import Markup
from scipy import ndimage

from medseg.figures.planes import check_one_shape, labelled_center
from medseg.figures.viewer import block, script, style, templates
from medseg.figures.viewer.packing import fitted, pack_json, view_data
from medseg.figures.viewer.view import cut_out
from medseg.volumes import Grid, replacing

# A notebook file keeps the output of every cell.
MAX_BYTES = 1_500_000
MAX_VOXELS = 1_000_000
HEIGHT = "36rem"


@dataclass(frozen=True)
class SegmentationViewer:
    """Viewer of one segmentation; notebooks show it as an iframe.

    Args:
        page: a complete HTML page that loads nothing.
        title: title of the iframe.
    """

    page: str
    title: str = "slices"

    def _repr_html_(self) -> str:
        frame = f"width:100%;height:{HEIGHT};border:0;border-radius:8px;background:#0b0d0f"
        attributes = f'title="{escape(self.title)}" loading="lazy" style="{frame}"'
        return f'<iframe sandbox="allow-scripts" {attributes} srcdoc="{escape(self.page)}"></iframe>'

    def save(self, path: str | Path) -> Path:
        """Write the viewer atomically as a page that opens from disk in a browser. The page holds patient images."""
        with replacing(path) as temporary:
            temporary.write_text(self.page, encoding="utf-8", errors="backslashreplace")
        return Path(path)


def segmentation_viewer(
    image: np.ndarray,
    label_map: np.ndarray,
    affine: np.ndarray,
    labels: Mapping[str, int],
    name: str = "",
    has_patient: bool = True,
) -> SegmentationViewer:
    """Crop a scan to its labels with 20 mm around them and show it in the viewer, in at most about 1.5 MB.

    Args:
        image: (i, j, k) or (i, j).
        label_map: integers of the same shape. Without any label the whole image is shown.
        affine: 4×4, voxel index to mm (RAS+).
        labels: value by name; 0 is background. Colours are those of `three_planes`.
        name: name of the scan.
        has_patient: False if the affine says nothing about a patient, as for PNG and TIFF.

    Raises:
        GeometryError: the shapes differ, or the affine is invalid.
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
    # The viewer opens on the slices that `three_planes` draws.
    middle = labelled_center(label_map)
    shown_view["start"] = view.nearest_index((grid.affine @ [*middle, *[0] * (3 - len(middle)), 1])[:3])
    data = {"labels": list(shown), "views": [shown_view]}
    blocks = {"data": pack_json(data)} | {f"v0-{volume}": text for volume, text in packed.items()}
    page = (
        templates()
        .get_template("page.html")
        .render(
            title=name or "slices",
            style=Markup(style()),
            script=Markup(script()),
            blocks=Markup("\n".join(block(id_, text) for id_, text in blocks.items())),
        )
    )
    return SegmentationViewer(page, f"slices of {name}" if name else "slices")
