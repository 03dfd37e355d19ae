"""A segmentation as a piece of HTML, for notebooks."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape

import numpy as np

from medseg.figures.label_colors import label_color
from medseg.figures.slice_viewer import slice_viewer
from medseg.figures.three_planes import three_planes_png

NOTICE = "Research use only."


def segmentation_html(
    image: np.ndarray,
    label_map: np.ndarray,
    affine: np.ndarray,
    labels: Mapping[str, int],
    volumes_ml: Mapping[str, float],
    name: str = "",
) -> str:
    """The three planes, the volumes, and a viewer to leaf through the slices; no network.

    Only the viewer, an iframe of its own, has scripts: where a notebook is not trusted or a page drops iframes, the
    picture and the table stay. Where matplotlib is not installed the picture is left out.

    Args:
        image: (i, j, k) or (i, j).
        label_map: integers of the same shape.
        affine: 4×4, voxel index to mm (RAS+).
        labels: value by name; 0 is background.
        volumes_ml: by name.
        name: of the scan; shown, escaped.
    """
    shown = [label for label, value in labels.items() if value != 0]
    alt = "; ".join([f"{name or 'scan'} in three planes", *(f"{label} {volumes_ml[label]:.2f} ml" for label in shown)])
    try:
        png = base64.b64encode(three_planes_png(image, label_map, affine, labels)).decode("ascii")
        picture = f'<img src="data:image/png;base64,{png}" alt="{escape(alt)}" style="max-width:100%">'
    except ImportError as error:
        picture = f"<p>{escape(str(error))}</p>"
    swatch = '<span style="background:{};display:inline-block;width:0.8em;height:0.8em"></span> '
    rows = "".join(
        f'<tr><th scope="row" style="text-align:left">{swatch.format(label_color(position))}{escape(label)}</th>'
        f"<td>{volumes_ml[label]:.2f}</td></tr>"
        for position, label in enumerate(shown)
    )
    viewer = ""
    if np.ndim(image) == 3:
        viewer = f"<details><summary>slices</summary>{slice_viewer(image, label_map, affine, labels)}</details>"
    return (
        f"<figure>{picture}<figcaption>{escape(name)} {NOTICE}</figcaption></figure>"
        f'<table><thead><tr><th scope="col">label</th><th scope="col">ml</th></tr></thead><tbody>{rows}</tbody></table>'
        f"{viewer}"
    )
