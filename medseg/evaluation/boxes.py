"""Bounding boxes of masks and of all labels of a label map."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from scipy import ndimage

Box = tuple[slice, ...]
# Above this largest label the list that find_objects returns costs more than it saves.
LARGEST_LABEL = 1 << 16


def bounding_box(mask: np.ndarray) -> Box:
    """The smallest box that holds all true elements; empty slices where there is none."""
    box = []
    for axis in range(mask.ndim):
        occupied = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(occupied[0]), int(occupied[-1]) + 1) if occupied.size else slice(0, 0))
    return tuple(box)


class LabelBoxes:
    """Boxes of all labels of a label map, found in one pass over it.

    Args:
        label_map: integers or bool, any shape.
    """

    def __init__(self, label_map: np.ndarray) -> None:
        label_map = label_map.astype(np.uint8) if label_map.dtype == bool else label_map
        self._label_map = label_map
        largest = int(label_map.max(initial=0))
        is_table = 0 < largest <= LARGEST_LABEL and int(label_map.min(initial=0)) >= 0
        self._boxes = ndimage.find_objects(label_map, largest) if is_table else None

    def region(self, values: Sequence[int]) -> Box:
        """The box of the union of these labels; empty slices where none of them occurs."""
        if self._boxes is None:
            return bounding_box(np.isin(self._label_map, values))
        boxes = [self._boxes[value - 1] for value in values if 0 < value <= len(self._boxes)]
        return union(self._label_map.ndim, (box for box in boxes if box is not None))


def union(ndim: int, boxes: Iterable[Box]) -> Box:
    """The smallest box that holds all of these boxes; empty ones among them do not count."""
    occupied = [box for box in boxes if all(side.stop > side.start for side in box)]
    if not occupied:
        return (slice(0, 0),) * ndim
    return tuple(
        slice(min(box[axis].start for box in occupied), max(box[axis].stop for box in occupied)) for axis in range(ndim)
    )
