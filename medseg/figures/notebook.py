"""A segmentation as a piece of HTML, for notebooks."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape

import numpy as np

from medseg.figures.label_colors import label_palette
from medseg.figures.three_planes import three_planes_png
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
    """The three planes, the volumes, and the report's viewer to leaf through the slices; no network.

    Only the viewer, an iframe of its own, has scripts: where a notebook is not trusted or a page drops iframes, the
    picture and the table stay. Where matplotlib is not installed the picture is left out.

    Args:
        image: (i, j, k) or (i, j).
        label_map: integers of the same shape.
        affine: 4×4, voxel index to mm (RAS+).
        labels: value by name; 0 is background.
        volumes_ml: by name.
        name: of the scan; shown, escaped.
        has_patient: whether the affine lies in a patient; PNG and TIFF do not.
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
        f'<tr><th scope="row" style="text-align:left">{swatch.format(color)}{escape(label)}</th>'
        f"<td>{volumes_ml[label]:.2f}</td></tr>"
        for label, color in zip(shown, label_palette(len(shown)), strict=True)
    )
    viewer = segmentation_viewer(image, label_map, affine, labels, name, has_patient)._repr_html_()
    return (
        f"<figure>{picture}<figcaption>{escape(name)} {NOTICE}</figcaption></figure>"
        f'<table><thead><tr><th scope="col">label</th><th scope="col">ml</th></tr></thead><tbody>{rows}</tbody></table>'
        f"<details><summary>slices</summary>{viewer}</details>"
    )
