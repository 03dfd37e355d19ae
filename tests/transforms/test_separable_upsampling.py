"""The cubic bases against SciPy's splines."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import BSpline, CubicHermiteSpline

from medseg.transforms.elastic.deformation import Lattice, upsampling_matrix


def spline(basis, lattice, controls):
    positions = lattice.positions
    if basis == "bspline":
        knots = lattice.origin + lattice.step * (np.arange(lattice.count + 4) - 2)
        return BSpline(knots, controls, 3)
    slopes = np.gradient(controls, positions)  # central differences: what Keys' kernel with a = -1/2 amounts to
    return CubicHermiteSpline(positions[1:-1], controls[1:-1], slopes[1:-1])


@pytest.mark.parametrize("basis", ["bicubic", "bspline"])
@given(num_samples=st.integers(1, 80), step=st.floats(0.5, 40), seed=st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_equals_scipy(basis, num_samples, step, seed):
    count = int(np.ceil((num_samples - 1) / step)) + 3
    lattice = Lattice(((num_samples - 1) - step * (count - 1)) / 2, step, max(count, 4))
    controls = np.random.default_rng(seed).normal(size=lattice.count)
    inside = np.arange(num_samples)
    inside = inside[(inside >= lattice.positions[1]) & (inside <= lattice.positions[-2])]
    found = upsampling_matrix(basis, lattice, num_samples) @ controls
    np.testing.assert_allclose(found[inside], spline(basis, lattice, controls)(inside), atol=1e-9)


@pytest.mark.parametrize("basis", ["bicubic", "bspline"])
def test_affine_functions_are_reproduced(basis):
    lattice = Lattice(-7.3, 6.1, 9)
    matrix = upsampling_matrix(basis, lattice, 40)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(matrix @ lattice.positions, np.arange(40), atol=1e-12)


def test_bicubic_passes_through_its_controls_and_bspline_does_not():
    lattice = Lattice(-10.0, 10.0, 5)
    controls = np.array([0.0, 1.0, -2.0, 3.0, 0.0])
    np.testing.assert_allclose((upsampling_matrix("bicubic", lattice, 21) @ controls)[[0, 10, 20]], controls[1:4])
    assert (upsampling_matrix("bspline", lattice, 21) @ controls)[10] == pytest.approx((1 - 8 + 3) / 6)
