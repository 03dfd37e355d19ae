"""Three-plane pictures: which way is up, and what is drawn."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff

from medseg.errors import GeometryError
from medseg.figures import three_planes, three_planes_png
from medseg.figures.canvas import OKABE_ITO
from medseg.figures.planes import cut_planes, labelled_center

ORIENTATIONS = [
    np.column_stack([order, flips])
    for order in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


@pytest.mark.parametrize("ornt", ORIENTATIONS, ids=lambda o: "".join(f"{'+-'[int(f < 0)]}{int(a)}" for a, f in o))
def test_planes_look_the_same_however_the_file_is_stored(ornt: np.ndarray) -> None:
    """Voxel values number the voxels in RAS order, so that the expected planes are slices of that array."""
    shape, spacing = (7, 9, 11), (1.0, 2.0, 3.0)
    ras = np.arange(np.prod(shape)).reshape(shape)
    stored = apply_orientation(ras, ornt)
    affine = np.diag([*spacing, 1.0]) @ inv_ornt_aff(ornt, shape)
    marked = np.zeros(shape, int)
    marked[2, 3, 4] = 1
    planes = {p.name: p for p in cut_planes(stored, apply_orientation(marked, ornt), affine)}
    # Seen from the feet: the patient's right is on the left, the front (or the head) on top.
    np.testing.assert_array_equal(planes["axial"].image, ras[::-1, ::-1, 4].T)
    np.testing.assert_array_equal(planes["coronal"].image, ras[::-1, 3, ::-1].T)
    np.testing.assert_array_equal(planes["sagittal"].image, ras[2, ::-1, ::-1].T)
    assert [planes[n].labels.sum() for n in planes] == [1, 1, 1]
    assert planes["axial"].letters == ("R", "L", "A", "P")
    assert planes["coronal"].letters == ("R", "L", "S", "I")
    assert planes["sagittal"].letters == ("A", "P", "S", "I")
    assert planes["axial"].pixel_mm == (2.0, 1.0)
    assert planes["coronal"].pixel_mm == (3.0, 1.0)
    assert planes["sagittal"].pixel_mm == (3.0, 2.0)


def test_the_middle_is_that_of_the_labels_or_of_the_volume() -> None:
    labels = np.zeros((9, 9, 9), int)
    assert labelled_center(labels) == (4, 4, 4)
    labels[1:4, 6, 8] = 2
    assert labelled_center(labels) == (2, 6, 8)


def colored_pixels(path: Path, color: str) -> int:
    """Count the pixels of a colour."""
    wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    pixels = np.rint(matplotlib.image.imread(path)[..., :3] * 255).astype(int)
    return int((np.abs(pixels - wanted).max(-1) <= 2).sum())


def test_a_saved_picture_shows_each_labels_colour(tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(size=(20, 24, 16))
    labels = np.zeros(image.shape, np.uint8)
    labels[5:15, 5:12, 4:12] = 1
    labels[5:15, 12:20, 4:12] = 3
    path = three_planes(
        image, labels, np.eye(4), {"background": 0, "front": 1, "absent": 2, "back": 3}, path=tmp_path / "a.png"
    )
    assert colored_pixels(path, OKABE_ITO[0]) > 200
    assert colored_pixels(path, OKABE_ITO[2]) > 200
    assert colored_pixels(path, OKABE_ITO[1]) == 0
    assert three_planes_png(image, labels, np.eye(4)).startswith(b"\x89PNG")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    "image",
    [np.zeros((5, 6, 7)), np.full((5, 6, 1), np.nan), np.arange(12).reshape(1, 12, 1), np.zeros((9, 4), np.uint8)],
    ids=["constant", "not a number", "a line", "two-dimensional"],
)
def test_degenerate_images_are_drawn(image: np.ndarray) -> None:
    assert three_planes_png(image, np.zeros(image.shape, int), np.eye(4)).startswith(b"\x89PNG")


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(GeometryError, match=r"\(4, 4, 4\).*\(4, 4, 5\)"):
        three_planes(np.zeros((4, 4, 4)), np.zeros((4, 4, 5), int), np.eye(4))


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"medseg\[figures\]"):
        three_planes(np.zeros((4, 4, 4)), np.zeros((4, 4, 4), int), np.eye(4))
