"""A segmentation in a notebook cell: as HTML with the package's own viewer, or as a NiiVue widget."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import nibabel as nib
import numpy as np

from medseg.figures.canvas import label_palette, rgb
from medseg.figures.grey_levels import grey_levels
from medseg.figures.planes import check_one_shape
from medseg.figures.three_planes import three_planes_png
from medseg.figures.viewer import templates
from medseg.figures.viewer.segmentation_viewer import segmentation_viewer

NOTICE = "Research use only."


def segmentation_html(
    image: np.ndarray,
    label_map: np.ndarray,
    affine: np.ndarray,
    labels: Mapping[str, int],
    volumes_ml: Mapping[str, float],
    name: str = "",
    has_patient: bool = True,
) -> str:
    """Show the three middle planes, the volumes, and the viewer for all slices, without a network.

    Only the viewer, in an iframe of its own, has scripts. If a notebook is not trusted or a page drops iframes, the
    picture and the table remain. Without matplotlib the picture is left out.

    Args:
        image: (i, j, k) or (i, j).
        label_map: integers of the same shape.
        affine: 4×4, voxel index to mm (RAS+).
        labels: value by name; 0 is background.
        volumes_ml: volume in ml by name.
        name: name of the scan, to show.
        has_patient: False if the affine says nothing about a patient, as for PNG and TIFF.
    """
    shown = [label for label, value in labels.items() if value != 0]
    png, problem = "", ""
    try:
        png = base64.b64encode(three_planes_png(image, label_map, affine, labels)).decode("ascii")
    except ImportError as error:
        problem = str(error)
    return (
        templates()
        .get_template("cell.html")
        .render(
            png=png,
            problem=problem,
            alt="; ".join(
                [f"{name or 'scan'} in three planes", *(f"{label} {volumes_ml[label]:.2f} ml" for label in shown)]
            ),
            name=name,
            notice=NOTICE,
            rows=[
                {"label": label, "color": color, "ml": volumes_ml[label]}
                for label, color in zip(shown, label_palette(len(shown)), strict=True)
            ],
            viewer=segmentation_viewer(image, label_map, affine, labels, name, has_patient)._repr_html_(),
        )
    )


def niivue_widget(image: np.ndarray, label_map: np.ndarray, affine: np.ndarray, labels: Mapping[str, int]) -> Any:
    """Return an `ipyniivue.NiiVue` widget with the scan in the window of `three_planes` and its labels over it.

    NiiVue needs WebGL 2 in the browser, which the package's own viewer does not. Label values are renumbered in the
    order of the names, because NiiVue needs a colour for every value from 0 to the largest.

    Args:
        image: (i, j, k) or (i, j).
        label_map: integers of the same shape.
        affine: 4×4, voxel index to mm (RAS+).
        labels: value by name; 0 is background. Colours are those of `three_planes`.

    Raises:
        ImportError: ipyniivue is not installed.
        GeometryError: the shapes differ.
    """
    try:
        from ipyniivue import NiiVue, Volume
    except ImportError as error:
        raise ImportError("view(backend='niivue') needs ipyniivue; install it: pip install 'medseg[niivue]'") from error
    check_one_shape(image=image, label_map=label_map)
    shown = {name: value for name, value in labels.items() if value != 0}
    numbered = np.zeros(label_map.shape, np.uint8 if len(shown) < 256 else np.uint16)
    for number, value in enumerate(shown.values(), start=1):
        numbered[label_map == value] = number
    low, high = grey_levels(image).limits
    overlay = Volume(data=_nifti_bytes(numbered, affine), name="labels.nii", opacity=0.4, colorbar_visible=False)
    overlay.set_colormap_label(_color_table(list(shown)))
    widget = NiiVue(height=480)
    widget.load_volumes(
        [
            Volume(
                data=_nifti_bytes(_storable(image), affine),
                name="scan.nii",
                cal_min=low,
                cal_max=high,
                colormap="gray",
                colorbar_visible=False,
            ),
            overlay,
        ]
    )
    return widget


def _color_table(names: list[str]) -> dict[str, list[Any]]:
    """Return NiiVue's table of colours of the values 0, 1, …: red, green, blue, opacity and names."""
    colors = [(0, 0, 0), *(rgb(color) for color in label_palette(len(names)))]
    red, green, blue = (list(part) for part in zip(*colors, strict=True))
    return {"R": red, "G": green, "B": blue, "A": [0] + [255] * len(names), "labels": ["background", *names]}


def _storable(image: np.ndarray) -> np.ndarray:
    """Convert half precision and 64-bit numbers to float32, because NIfTI or NiiVue lack these types."""
    return image if image.dtype in (np.uint8, np.int16, np.uint16, np.int32, np.float32) else image.astype(np.float32)


def _nifti_bytes(array: np.ndarray, affine: np.ndarray) -> bytes:
    return nib.Nifti1Image(array, affine).to_bytes()
