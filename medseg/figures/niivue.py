"""A scan with its labels in ipyniivue: for those who want to turn a volume in space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import nibabel as nib
import numpy as np

from medseg.figures.grey_levels import grey_levels
from medseg.figures.label_colors import label_palette, rgb
from medseg.figures.plane_choice import check_one_shape


def niivue_widget(image: np.ndarray, label_map: np.ndarray, affine: np.ndarray, labels: Mapping[str, int]) -> Any:
    """An `ipyniivue.NiiVue` widget with the scan in the window of `three_planes` and its labels over it.

    Niivue needs WebGL 2 in the browser, which the package's own viewer does not. Label values are renumbered in the
    order of the names, because Niivue takes a colour for every value from 0 to the largest.

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
    """Niivue's colours of the values 0, 1, …: red, green, blue, how opaque, and what they are called."""
    colors = [(0, 0, 0), *(rgb(color) for color in label_palette(len(names)))]
    red, green, blue = (list(part) for part in zip(*colors, strict=True))
    return {"R": red, "G": green, "B": blue, "A": [0] + [255] * len(names), "labels": ["background", *names]}


def _storable(image: np.ndarray) -> np.ndarray:
    """The image in a type that NIfTI has and Niivue reads: half precision and 64 bits become 32-bit numbers."""
    return image if image.dtype in (np.uint8, np.int16, np.uint16, np.int32, np.float32) else image.astype(np.float32)


def _nifti_bytes(array: np.ndarray, affine: np.ndarray) -> bytes:
    return nib.Nifti1Image(array, affine).to_bytes()
