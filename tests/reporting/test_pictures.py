import base64
import io

import numpy as np
import pytest
from PIL import Image
from reporting.evaluations import blobs

from medseg.figures.grey_levels import grey_levels
from medseg.figures.planes import cut_planes
from medseg.reporting.pictures import (
    MAX_THUMBNAIL_BYTES,
    PREDICTION_RGB,
    REFERENCE_RGB,
    case_view,
    outline,
    slice_with_most_errors,
    thumbnail,
)
from medseg.volumes import Grid


def decoded(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"))


def test_a_thumbnail_is_a_small_png_in_true_proportions():
    image, reference, prediction = blobs(np.random.default_rng(0), (40, 20, 10), 2)
    view = case_view(prediction, reference, Grid(image.shape, np.diag([1.0, 3.0, 1.0, 1.0])), [("", image)])
    png = thumbnail(view, 120)
    assert len(base64.b64decode(png)) <= MAX_THUMBNAIL_BYTES
    picture = decoded(png)
    assert picture.shape == (120, 80, 3)  # 60 mm high, 40 mm wide
    colours = {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}
    assert {REFERENCE_RGB, PREDICTION_RGB} <= colours


def test_a_thumbnail_shrinks_until_it_fits():
    rng = np.random.default_rng(0)
    image = rng.integers(1, 30_000, (400, 400, 1)).astype(np.uint16)
    labels = np.zeros(image.shape, np.uint8)
    view = case_view(labels, labels, Grid(image.shape, np.eye(4)), [("MR", image)], modalities={"MR": "MR"})
    assert len(base64.b64decode(thumbnail(view, 300))) <= MAX_THUMBNAIL_BYTES


def test_the_slice_with_most_wrong_voxels_is_shown():
    reference = np.zeros((8, 8, 6), np.uint8)
    reference[2:6, 2:6, 1:4] = 1
    prediction = reference.copy()
    grid = Grid(reference.shape, np.eye(4))
    right = case_view(prediction, reference, grid, [])
    assert slice_with_most_errors(right, right.panels[0]) == 1  # the first of the largest
    prediction[2:4, 2:6, 3] = 0
    wrong = case_view(prediction, reference, grid, [])
    assert slice_with_most_errors(wrong, wrong.panels[0]) == 3


@pytest.mark.parametrize("seed", range(3))
def test_an_outline_is_what_erosion_removes(seed):
    from scipy import ndimage

    mask = np.random.default_rng(seed).random((12, 15)) < 0.6
    wanted = mask & ~ndimage.binary_erosion(mask)
    np.testing.assert_array_equal(outline(mask.astype(np.uint8)), wanted)


def test_a_thumbnail_is_the_axial_plane_of_three_planes_in_its_window():
    rng = np.random.default_rng(0)
    image = rng.normal(100, 20, (7, 40, 30))
    affine = np.array(
        [[0.0, 0, -1, 9], [0, 1, 0, 9], [1, 0, 0, 9], [0, 0, 0, 1]]
    )  # i runs along S, j along A, k along L
    labels = np.zeros(image.shape, np.uint8)
    view = case_view(labels, labels, Grid(image.shape, affine), [("", image)])
    axial = next(plane for plane in cut_planes(image, labels, affine) if plane.name == "axial")
    low, high = grey_levels(image).limits
    wanted = 255 * np.clip((axial.image - low) / (high - low), 0, 1)
    picture = decoded(thumbnail(view, 40))
    assert picture.shape == (40, 30, 3)
    assert np.abs(picture[..., 0] - wanted).max() <= 255 / 47 + 1  # 48 greys
