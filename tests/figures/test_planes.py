"""Orientation against an independent route: where a voxel's own affine puts it in the patient."""

from itertools import permutations, product

import numpy as np
import pytest

from medseg.figures.planes import PATIENT_PANELS, PLAIN_PANEL, PatientFrame
from medseg.volumes import Grid

SIDES = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}


def rotation(degrees: float, axis: int) -> np.ndarray:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    turn = np.eye(3)
    first, second = [a for a in range(3) if a != axis]
    turn[[first, first, second, second], [first, second, first, second]] = c, -s, s, c
    return turn


def orientations() -> list[np.ndarray]:
    affines = []
    for order in permutations(range(3)):
        for signs in product((1, -1), repeat=3):
            affine = np.eye(4)
            affine[:3, :3] = np.eye(3)[list(order)] * signs * (1.5, 2.0, 0.7)
            affine[:3, 3] = 11, -7, 3
            affines.append(affine)
    return affines


@pytest.mark.parametrize("tilt", [0, 20])
@pytest.mark.parametrize("affine", orientations())
def test_each_edge_carries_the_letter_of_the_side_it_shows(affine, tilt):
    affine = affine.copy()
    affine[:3, :3] = rotation(tilt, 0) @ rotation(tilt / 2, 2) @ affine[:3, :3]
    grid = Grid((5, 6, 7), affine)
    index = np.arange(5 * 6 * 7).reshape(5, 6, 7)
    frame = PatientFrame(grid)
    turned = frame.turned(index)
    world = np.stack(np.unravel_index(turned, grid.shape), -1) @ affine[:3, :3].T + affine[:3, 3]
    x, y, z = np.indices(turned.shape)
    np.testing.assert_allclose(np.stack([x, y, z], -1) @ frame.affine[:3, :3].T + frame.affine[:3, 3], world, atol=1e-9)
    assert frame.panels == PATIENT_PANELS
    for panel in frame.panels:
        plane = panel.cut(turned, 2)
        places = world.reshape(-1, 3)[np.argsort(turned.ravel())]
        edges = {0: plane[:, 0], 1: plane[:, -1], 2: plane[0], 3: plane[-1]}
        for edge, opposite in ((0, 1), (1, 0), (2, 3), (3, 2)):
            axis, sign = SIDES[panel.letters[edge]]
            here, there = (places[edges[e]][:, axis].mean() for e in (edge, opposite))
            assert sign * (here - there) > 0
    assert bool(frame.tilt_degrees) == bool(tilt)
    assert frame.tilt_degrees == pytest.approx(np.rad2deg(np.max(_tilts(affine))) if tilt else 0, abs=1e-6)


def _tilts(affine: np.ndarray) -> np.ndarray:
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return np.arccos(np.abs(directions).max(axis=0))


def test_steps_follow_their_axes():
    affine = np.diag([1.0, 1.0, 1.0, 1.0])[:, [2, 0, 1, 3]]  # i runs along S, j along R, k along A
    assert PatientFrame(Grid((4, 5, 6), affine)).turned_steps((7, 8, 9)) == (8, 9, 7)


def test_a_picture_without_patient_is_shown_as_stored():
    frame = PatientFrame(Grid((4, 3), np.eye(4)), has_patient=False)
    picture = np.arange(12).reshape(4, 3)
    assert frame.panels == (PLAIN_PANEL,)
    np.testing.assert_array_equal(PLAIN_PANEL.cut(frame.turned(picture), 0), picture.T)  # i to the right, j down


@pytest.mark.parametrize(("axis", "name"), [(0, "sagittal"), (1, "coronal"), (2, "axial")])
def test_a_single_slice_has_one_plane(axis, name):
    shape = [6, 6, 6]
    shape[axis] = 1
    assert [panel.name for panel in PatientFrame(Grid(tuple(shape), np.eye(4))).panels] == [name]
