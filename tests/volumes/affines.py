"""Affines written by hand, so that the tests do not depend on the library that they check."""

from itertools import permutations, product

import numpy as np

ORIENTATIONS = [
    "".join(pair[sign] for pair, sign in zip(axes, signs, strict=True))
    for axes in permutations(("LR", "PA", "IS"))
    for signs in product((0, 1), repeat=3)
]


def affine_for(code: str, spacing: tuple[float, ...] = (1.0, 2.0, 3.0)) -> np.ndarray:
    """Return an affine with the given orientation code and spacing."""
    affine = np.eye(4)
    for axis, letter in enumerate(code):
        row = next(index for index, pair in enumerate(("LR", "PA", "IS")) if letter in pair)
        affine[:3, axis] = 0
        affine[row, axis] = spacing[axis] * (1 if letter in "RAS" else -1)
    affine[:3, 3] = (-7.0, 11.0, 5.0)
    return affine


def rotation_z(degrees: float) -> np.ndarray:
    """Return a rotation about the patient's head-foot axis."""
    angle = np.deg2rad(degrees)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn
