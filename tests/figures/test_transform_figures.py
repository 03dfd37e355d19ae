"""Deformation grids and weight maps: the lines and numbers that are drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from medseg.errors import GeometryError
from medseg.figures import deformation_grid, weight_map
from medseg.figures.canvas import OKABE_ITO, color_labels
from medseg.figures.planes import fullest_slice
from medseg.figures.transform_figures import outlines

SHAPE = (24, 36)
LINES = 3  # at 6, 12, 18 down and 9, 18, 27 to the right


def identity(shape: tuple[int, ...]) -> np.ndarray:
    return np.moveaxis(np.indices(shape).astype(float), 0, -1)


def grid_points(axes: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the points (x, y) of every line of the grid: lines of constant row, then of constant column."""
    first, second = (
        [path.vertices for path in contours.get_paths() if len(path.vertices)] for contours in axes.collections[:2]
    )
    return first, second


def test_the_grid_before_is_straight_and_even() -> None:
    image = np.random.default_rng(0).random(SHAPE)
    figure = deformation_grid(image, image, identity(SHAPE), num_lines=LINES)
    rows, columns = grid_points(figure.axes[0])
    assert [sorted(set(points[:, 1].round(9))) for points in rows] == [[6], [12], [18]]
    assert [sorted(set(points[:, 0].round(9))) for points in columns] == [[9], [18], [27]]


@pytest.mark.parametrize(("matrix", "shift"), [
    (np.eye(2), (2.0, -3.0)),
    (np.array([[0.9, -0.2], [0.1, 1.1]]), (1.0, 2.0)),
])  # fmt: skip
def test_every_point_of_a_deformed_line_comes_from_the_straight_line(
    matrix: np.ndarray, shift: tuple[float, float]
) -> None:
    image = np.random.default_rng(0).random(SHAPE)
    coordinates = identity(SHAPE) @ matrix.T + shift
    rows, columns = grid_points(deformation_grid(image, image, coordinates, num_lines=LINES).axes[1])
    assert len(rows) == len(columns) == LINES
    for axis, (lines, levels) in enumerate(((rows, (6, 12, 18)), (columns, (9, 18, 27)))):
        for points, level in zip(lines, levels, strict=True):
            sources = points[:, ::-1] @ matrix.T + shift
            np.testing.assert_allclose(sources[:, axis], level, atol=1e-9)


def test_the_middle_slice_of_a_volume_is_drawn() -> None:
    image = np.random.default_rng(0).random((*SHAPE, 5))
    moved, coordinates = image[::-1], identity(image.shape)
    coordinates[..., 2, :2] += 1.0
    figure = deformation_grid(image, moved, coordinates, num_lines=LINES, spacing=(1, 2, 3))
    before, after = figure.axes
    np.testing.assert_array_equal(before.images[0].get_array(), image[..., 2])
    np.testing.assert_array_equal(after.images[0].get_array(), moved[..., 2])
    assert before.get_aspect() == 0.5
    np.testing.assert_allclose(grid_points(after)[0][0][:, 1], 5.0, atol=1e-9)


def test_outlines_lie_between_labels_only() -> None:
    labels = np.zeros((6, 7), int)
    labels[2:4, 3:6] = 2
    expected = np.array([
        [any(labels[i, j] != labels[a, b] for a, b in ((i + 1, j), (i, j + 1)) if a < 6 and b < 7) for j in range(7)]
        for i in range(6)
    ])  # fmt: skip
    np.testing.assert_array_equal(outlines(labels), expected)
    figure = deformation_grid(np.zeros((6, 7)), np.zeros((6, 7)), identity((6, 7)), label_map=labels)
    drawn = np.asarray(figure.axes[0].images[1].get_array())
    np.testing.assert_array_equal(drawn[..., 3] > 0, expected)
    assert len(figure.axes[1].images) == 1


def test_other_shapes_are_refused() -> None:
    with pytest.raises(GeometryError, match=r"\(4, 5, 2\), found \(2, 4, 5\)"):
        deformation_grid(np.zeros((4, 5)), np.zeros((4, 5)), np.zeros((2, 4, 5)))
    with pytest.raises(GeometryError, match=r"moved \(5, 4\)"):
        deformation_grid(np.zeros((4, 5)), np.zeros((5, 4)), np.zeros((4, 5, 2)))


WEIGHT_SHAPE = (12, 10)


def pictures(figure: Any) -> list[np.ndarray]:
    """Return the arrays that imshow drew, from left to right; the colour bar has none."""
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes[:3]]


def test_the_arrays_are_drawn_as_they_are() -> None:
    random = np.random.default_rng(0)
    image, target, weights = (
        random.normal(size=WEIGHT_SHAPE),
        random.integers(0, 9, WEIGHT_SHAPE),
        random.uniform(0, 7, WEIGHT_SHAPE),
    )
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
    image, weights = np.random.default_rng(1).normal(size=(2, *WEIGHT_SHAPE, 6))
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
    assert (
        weight_map(np.zeros(WEIGHT_SHAPE), np.zeros(WEIGHT_SHAPE, int), np.zeros(WEIGHT_SHAPE))
        .axes[2]
        .images[0]
        .get_clim()[0]
        == 0
    )
    with pytest.raises(GeometryError, match=r"weights \(3, 3\)"):
        weight_map(np.zeros(WEIGHT_SHAPE), np.zeros(WEIGHT_SHAPE, int), np.zeros((3, 3)))
    with pytest.raises(GeometryError, match="2D or 3D"):
        weight_map(*np.zeros((3, 5)))
