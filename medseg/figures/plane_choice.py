"""Which plane of a volume to show where one picture must do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medseg.errors import GeometryError


def check_one_shape(**arrays: np.ndarray) -> None:
    """Refuse arrays that do not lie on one 2D or 3D grid.

    Raises:
        GeometryError: the shapes differ, or are not two- or three-dimensional.
    """
    shapes = {name: np.shape(array) for name, array in arrays.items()}
    first = next(iter(shapes.values()))
    if len(first) not in (2, 3) or set(shapes.values()) != {first}:
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise GeometryError(f"a picture needs arrays of one 2D or 3D shape, found {found}")


def fullest_slice(amount: np.ndarray) -> int:
    """Index along the third axis of the slice with the largest sum; the middle one where all are equal.

    Args:
        amount: (i, j, k).
    """
    sums = np.asarray(amount, dtype=np.float64).sum((0, 1))
    return int(sums.argmax()) if np.ptp(sums) > 0 else len(sums) // 2


def take_slice(array: np.ndarray, index: int) -> np.ndarray:
    """The 2D plane to draw, (i, j): the array itself, or its slice along the third axis."""
    return array if array.ndim == 2 else array[:, :, index]


def pixel_aspect(spacing: Sequence[float] | None) -> float:
    """Height over width of a pixel (i, j); 1 where no spacing is known."""
    return 1.0 if spacing is None else float(spacing[0]) / float(spacing[1])
