"""Deformation grids: the lines that are drawn lie where the map says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medseg.errors import GeometryError
from medseg.figures import deformation_grid
from medseg.figures.transform_figures import outlines

SHAPE = (24, 36)
LINES = 3  # at 6, 12, 18 down and 9, 18, 27 to the right


def identity(shape: tuple[int, ...]) -> np.ndarray:
    return np.moveaxis(np.indices(shape).astype(float), 0, -1)


def grid_points(axes: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Points (x, y) of every line of the grid: those of constant row, those of constant column."""
    first, second = (
        [path.vertices for path in contours.get_paths() if len(path.vertices)] for contours in axes.collections[:2]
    )
    return first, second


def test_before_the_grid_is_straight_and_even() -> None:
    image = np.random.default_rng(0).random(SHAPE)
    figure = deformation_grid(image, image, identity(SHAPE), num_lines=LINES)
    rows, columns = grid_points(figure.axes[0])
    assert [sorted(set(points[:, 1].round(9))) for points in rows] == [[6], [12], [18]]
    assert [sorted(set(points[:, 0].round(9))) for points in columns] == [[9], [18], [27]]


@pytest.mark.parametrize(("matrix", "shift"), [
    (np.eye(2), (2.0, -3.0)),
    (np.array([[0.9, -0.2], [0.1, 1.1]]), (1.0, 2.0)),
])  # fmt: skip
def test_after_every_point_of_a_line_comes_from_the_line(matrix: np.ndarray, shift: tuple[float, float]) -> None:
    image = np.random.default_rng(0).random(SHAPE)
    coordinates = identity(SHAPE) @ matrix.T + shift
    rows, columns = grid_points(deformation_grid(image, image, coordinates, num_lines=LINES).axes[1])
    assert len(rows) == len(columns) == LINES
    for axis, (lines, levels) in enumerate(((rows, (6, 12, 18)), (columns, (9, 18, 27)))):
        for points, level in zip(lines, levels, strict=True):
            sources = points[:, ::-1] @ matrix.T + shift
            np.testing.assert_allclose(sources[:, axis], level, atol=1e-9)


def test_of_a_volume_the_middle_slice_is_drawn() -> None:
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
