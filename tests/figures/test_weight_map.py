"""Weight maps: the numbers that are drawn, and which slice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from medseg.errors import GeometryError
from medseg.figures import weight_map
from medseg.figures.canvas import OKABE_ITO, color_labels
from medseg.figures.planes import fullest_slice

SHAPE = (12, 10)


def pictures(figure: Any) -> list[np.ndarray]:
    """What imshow was given, from left to right; the colour bar has none."""
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes[:3]]


def test_the_arrays_are_drawn_as_they_are() -> None:
    random = np.random.default_rng(0)
    image, target, weights = random.normal(size=SHAPE), random.integers(0, 9, SHAPE), random.uniform(0, 7, SHAPE)
    figure = weight_map(image, target, weights, spacing=(2.0, 0.5))
    drawn_image, drawn_target, drawn_weights = pictures(figure)
    np.testing.assert_array_equal(drawn_image, image)
    np.testing.assert_array_equal(drawn_weights, weights)
    np.testing.assert_array_equal(drawn_target, color_labels(target))
    low, high = figure.axes[2].images[0].get_clim()
    assert (low, high) == (0, weights.max())
    assert {axes.get_aspect() for axes in figure.axes[:3]} == {4.0}


def test_labels_repeat_their_colours_after_seven_and_background_is_black() -> None:
    hexes = ["#{:02X}{:02X}{:02X}".format(*rgb) for rgb in color_labels(np.arange(15))]
    assert hexes == ["#000000", *OKABE_ITO, *OKABE_ITO]


def test_a_volume_is_cut_where_the_weights_are() -> None:
    image, weights = np.random.default_rng(1).normal(size=(2, *SHAPE, 6))
    weights = np.abs(weights)
    weights[..., 4] += 10
    figure = weight_map(image, np.ones(image.shape, int), weights)
    np.testing.assert_array_equal(pictures(figure)[0], image[..., 4])
    assert figure.axes[2].get_title() == "weight (slice 5)"
    np.testing.assert_array_equal(
        pictures(weight_map(image, np.ones(image.shape, int), weights, index=2))[2], weights[..., 2]
    )
    assert fullest_slice(np.ones((3, 3, 5))) == 2


def test_the_saved_picture_holds_the_targets_colours(tmp_path: Path) -> None:
    target = np.kron(np.array([[0, 1], [2, 3]]), np.ones((20, 20), int))
    path = weight_map(np.zeros(target.shape), target, np.ones(target.shape), path=tmp_path / "weights.png")
    pixels = np.rint(matplotlib.image.imread(path)[..., :3] * 255).astype(int)
    areas = {}
    for color in OKABE_ITO[:4]:
        wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        areas[color] = int((np.abs(pixels - wanted).max(-1) <= 1).sum())
    first, second, third, absent = areas.values()
    assert absent == 0
    # three squares of one size
    assert first > 5000
    assert max(first, second, third) - min(first, second, third) < 0.05 * first


def test_all_weights_zero_and_other_shapes() -> None:
    assert weight_map(np.zeros(SHAPE), np.zeros(SHAPE, int), np.zeros(SHAPE)).axes[2].images[0].get_clim()[0] == 0
    with pytest.raises(GeometryError, match=r"weights \(3, 3\)"):
        weight_map(np.zeros(SHAPE), np.zeros(SHAPE, int), np.zeros((3, 3)))
    with pytest.raises(GeometryError, match="2D or 3D"):
        weight_map(*np.zeros((3, 5)))
