import numpy as np
import pytest
from scipy import ndimage

from medseg.evaluation.overlap import LabelBoxes, bounding_box, union


@pytest.mark.parametrize("shift", [0, 100_000, -3])
def test_label_boxes_hold_the_region_exactly(shift: int) -> None:
    """A shift beyond the table (or below 0) takes the other path, which must give the same boxes."""
    rng = np.random.default_rng(0)
    label_map = ndimage.zoom(rng.integers(0, 5, (4, 4, 4)), 4, order=0) * 1
    label_map[label_map > 0] += shift
    boxes = LabelBoxes(label_map)
    for values in ([1 + shift], [2 + shift, 4 + shift]):
        where = np.argwhere(np.isin(label_map, values))
        expected = tuple(slice(a, b + 1) for a, b in zip(where.min(0), where.max(0), strict=True))
        assert boxes.region(values) == expected


def test_absent_labels_have_empty_boxes_that_do_not_widen_a_union() -> None:
    label_map = np.zeros((5, 6), np.uint8)
    label_map[2:4, 1] = 3
    boxes = LabelBoxes(label_map)
    assert boxes.region([2]) == boxes.region([200]) == (slice(0, 0), slice(0, 0))
    assert union(2, [boxes.region([2]), boxes.region([3])]) == (slice(2, 4), slice(1, 2))
    assert bounding_box(label_map == 3) == (slice(2, 4), slice(1, 2))
    assert LabelBoxes(np.zeros((3, 3), np.uint8)).region([1]) == (slice(0, 0), slice(0, 0))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.uint16, np.int64])
def test_every_integer_type_is_read(dtype: type) -> None:
    assert LabelBoxes(np.array([[0, 1], [0, 1]], dtype)).region([1]) == (slice(0, 2), slice(1, 2))
