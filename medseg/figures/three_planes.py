"""Draw a scan and its label map in three planes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medseg.errors import GeometryError
from medseg.figures.canvas import label_palette, new_figure, png_bytes, rgb, save_png
from medseg.figures.grey_levels import grey_levels
from medseg.figures.planes import Plane, cut_planes

LEGEND_LABELS = 18
LEGEND_COLUMNS = 6


def three_planes(
    image: np.ndarray,
    label_map: np.ndarray,
    affine: np.ndarray,
    labels: Mapping[str, int] | None = None,
    path: str | Path | None = None,
    title: str = "",
    center: tuple[int, ...] | None = None,
) -> Any:
    """Draw axial, coronal and sagittal slices with the label map laid over them.

    Slices follow the radiological convention (the patient's right on the left) for any axis order of the file, and
    pixels keep their true proportions. A 2D image gives one picture.

    Args:
        image: (i, j, k) or (i, j), any real type; shown through the default window of `grey_levels` as in the report:
            soft tissue for CT, else percentiles 0.5 to 99.5 of the non-zero voxels.
        label_map: integers of the same shape, 0 is background.
        affine: 4×4, voxel index to mm (RAS+).
        labels: value by name, for the legend; by default the values found.
        path: PNG file to write atomically.
        title: title above the planes.
        center: voxel that the planes go through; by default the middle of the labels.

    Returns:
        The matplotlib figure, or the path if one was given.

    Raises:
        ImportError: matplotlib is not installed.
        GeometryError: the shapes differ.
    """
    figure = draw_three_planes(image, label_map, affine, labels, title, center)
    return figure if path is None else save_png(figure, path)


def three_planes_png(
    image: np.ndarray, label_map: np.ndarray, affine: np.ndarray, labels: Mapping[str, int] | None = None
) -> bytes:
    """Return the picture of `three_planes` as PNG bytes, for notebooks."""
    return png_bytes(draw_three_planes(image, label_map, affine, labels), dpi=80)


def draw_three_planes(
    image: np.ndarray,
    label_map: np.ndarray,
    affine: np.ndarray,
    labels: Mapping[str, int] | None = None,
    title: str = "",
    center: tuple[int, ...] | None = None,
) -> Any:
    """Return the figure of `three_planes`."""
    if image.shape != label_map.shape or image.ndim not in (2, 3):
        raise GeometryError(
            f"image and label map must have one 2D or 3D shape, found {image.shape} and {label_map.shape}"
        )
    if labels is None:
        labels = {str(int(v)): int(v) for v in np.unique(label_map)}
    shown = {name: value for name, value in labels.items() if value != 0}
    planes = cut_planes(image, label_map, affine, center) if image.ndim == 3 else [_flat(image, label_map)]
    low, high = grey_levels(image).limits
    widths = [plane.image.shape[1] * plane.pixel_mm[1] for plane in planes]
    heights = [plane.image.shape[0] * plane.pixel_mm[0] for plane in planes]
    present = _present(shown, label_map)
    legend_inches = 0.15 + 0.22 * -(-min(len(present), LEGEND_LABELS) // LEGEND_COLUMNS) if present else 0.1
    title_inches = 0.65 if title else 0.35
    width = 3.6 * len(planes) + 0.3
    height = min(max(width * 0.94 * max(heights) / sum(widths), 1.5), 8.0) + legend_inches + title_inches
    figure = new_figure(width, height)
    figure.set_facecolor("black")
    axes = figure.subplots(1, len(planes), squeeze=False, width_ratios=widths)[0]
    figure.subplots_adjust(
        left=0.02, right=0.98, top=1 - title_inches / height, bottom=legend_inches / height, wspace=0.04
    )
    for ax, plane in zip(axes, planes, strict=True):
        _draw_plane(ax, plane, shown, low, high)
    figure.suptitle(title, color="white", fontsize=11, y=1 - 0.1 / height, va="top")
    _legend(figure, shown, present)
    return figure


def _flat(image: np.ndarray, label_map: np.ndarray) -> Plane:
    return Plane("", image.T, label_map.T, (1.0, 1.0), ("", "", "", ""), (0, 1))


def _draw_plane(ax: Any, plane: Plane, shown: Mapping[str, int], low: float, high: float) -> None:
    from matplotlib.patheffects import withStroke

    rows, columns = plane.image.shape
    aspect = plane.pixel_mm[0] / plane.pixel_mm[1]
    ax.imshow(plane.image, cmap="gray", vmin=low, vmax=high, aspect=aspect, interpolation="nearest")
    overlay = np.zeros((rows, columns, 4), dtype=np.float32)
    for color, value in zip(label_palette(len(shown)), shown.values(), strict=True):
        mask = plane.labels == value
        if not mask.any():
            continue
        overlay[mask] = (*(part / 255 for part in rgb(color)), 0.28)
        # Pad by one pixel, so that the outline of a label that touches the border is closed.
        padded = np.pad(mask, 1).astype(np.float32)
        grid_x, grid_y = np.arange(-1, columns + 1), np.arange(-1, rows + 1)
        ax.contour(grid_x, grid_y, padded, levels=[0.5], colors=[color], linewidths=1.3)
    ax.imshow(overlay, aspect=aspect, interpolation="nearest")
    ax.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5), xticks=[], yticks=[], facecolor="black")
    for spine in ax.spines.values():
        spine.set_visible(False)
    if plane.name:
        ax.set_title(f"{plane.name} {plane.index[0] + 1}/{plane.index[1]}", color="#cccccc", fontsize=9)
    places = ((0.02, 0.5, "left", "center"), (0.98, 0.5, "right", "center"), (0.5, 0.98, "center", "top"),
              (0.5, 0.02, "center", "bottom"))  # fmt: skip
    for letter, (x, y, horizontal, vertical) in zip(plane.letters, places, strict=True):
        text = ax.text(x, y, letter, transform=ax.transAxes, color="white", fontsize=10, ha=horizontal, va=vertical)
        text.set_path_effects([withStroke(linewidth=2.5, foreground="black")])  # legible on white and on black


def _present(shown: Mapping[str, int], label_map: np.ndarray) -> list[str]:
    """Return the names of the labels that occur."""
    found = set(np.unique(label_map).tolist())
    return [name for name, value in shown.items() if value in found]


def _legend(figure: Any, shown: Mapping[str, int], present: list[str]) -> None:
    from matplotlib.patches import Patch

    if not present:
        return
    colors = dict(zip(shown, label_palette(len(shown)), strict=True))
    handles = [Patch(facecolor=colors[name], label=name) for name in present[:LEGEND_LABELS]]
    if len(present) > LEGEND_LABELS:
        handles[-1] = Patch(facecolor="none", label=f"and {len(present) - LEGEND_LABELS + 1} more")
    figure.legend(
        handles=handles, loc="lower center", ncols=min(len(handles), LEGEND_COLUMNS), frameon=False,
        labelcolor="white", fontsize=9, borderaxespad=0.2,
    )  # fmt: skip
