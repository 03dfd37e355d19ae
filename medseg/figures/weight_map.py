"""What the loss sees: an image, its target and the weight of every voxel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medseg.figures.canvas import new_figure, save_png
from medseg.figures.label_colors import color_labels
from medseg.figures.plane_choice import check_one_shape, fullest_slice, pixel_aspect, take_slice


def weight_map(
    image: np.ndarray,
    target: np.ndarray,
    weights: np.ndarray,
    path: str | Path | None = None,
    title: str = "weight",
    spacing: Sequence[float] | None = None,
    index: int | None = None,
) -> Any:
    """Draw an image, its target and its weights side by side, with a scale for the weights.

    Args:
        image: (i, j) or (i, j, k), any real type.
        target: integers of the same shape, classes or instances; 0 is background and black. Colours repeat after seven.
        weights: non-negative numbers of the same shape.
        path: where to save a PNG, whole or not at all.
        title: what stands above the weights.
        spacing: mm, so that pixels keep their proportions; square by default.
        index: slice along the third axis; by default the one with the largest sum of weights.

    Returns:
        The matplotlib figure, or the path where one was given.

    Raises:
        ImportError: matplotlib is not installed.
        GeometryError: the shapes differ.
    """
    check_one_shape(image=image, target=target, weights=weights)
    if image.ndim == 3:
        index = fullest_slice(weights) if index is None else index
        image, target, weights = (take_slice(array, index) for array in (image, target, weights))
        title = f"{title} (slice {index + 1})"
    figure = new_figure(13.2, 4.4)
    figure.set_layout_engine("constrained")
    left, middle, right = figure.subplots(1, 3)
    common = {"aspect": pixel_aspect(spacing), "interpolation": "nearest"}
    left.imshow(image, cmap="gray", **common)
    middle.imshow(color_labels(target), **common)
    scale = right.imshow(weights, cmap="magma", vmin=0, vmax=max(float(np.max(weights, initial=0)), 1e-6), **common)
    figure.colorbar(scale, ax=right, fraction=0.046, pad=0.03)
    for axes, text in zip((left, middle, right), ("image", "target", title), strict=True):
        axes.set_title(text, fontsize=10)
        axes.set_axis_off()
    return figure if path is None else save_png(figure, path)
