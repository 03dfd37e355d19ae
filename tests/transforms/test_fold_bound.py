"""The fold bound against gradients measured on a fine grid."""

import numpy as np
import pytest

from medseg.transforms.elastic.deformation import Lattice, upsampling_matrix
from medseg.transforms.elastic.drawing import gradient_bound


def dense_gradient(displacements, lattices, basis, samples):
    """du_i/dx_j by central differences of the spline on a grid much finer than the controls; (…, ndim, ndim)."""
    field = displacements
    steps = []
    for axis, lattice in enumerate(lattices, start=1):
        fine = lattice.step * (lattice.count - 3) / (samples - 1)
        steps.append(fine)
        scaled = Lattice((lattice.origin - lattice.positions[1]) / fine, lattice.step / fine, lattice.count)
        weights = upsampling_matrix(basis, scaled, samples)
        field = np.moveaxis(np.tensordot(weights, field, axes=(1, axis)), 0, axis)
    gradients = [np.stack(np.gradient(component, *steps), axis=-1) for component in field]
    return np.stack(gradients, axis=-2)


@pytest.mark.parametrize("basis", ["bicubic", "bspline"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_bounds_the_norm_everywhere_and_not_wildly(basis, ndim):
    rng = np.random.default_rng(ndim)
    ratios = []
    for _ in range(20):
        lattices = tuple(
            Lattice(-s, s, int(k)) for s, k in zip(rng.uniform(3, 20, ndim), rng.integers(4, 7, ndim), strict=True)
        )
        displacements = rng.normal(size=(ndim, *[lattice.count for lattice in lattices]))
        bound = gradient_bound(displacements, lattices, basis)
        gradient = dense_gradient(displacements, lattices, basis, 61 if ndim == 2 else 25)
        absolute = np.abs(gradient)
        norms = np.min(
            [
                absolute.sum(axis=-1).max(axis=-1),
                absolute.sum(axis=-2).max(axis=-1),
                np.sqrt((gradient**2).sum(axis=(-1, -2))),
            ],
            axis=0,
        )
        ratios.append(bound / norms.max())
    assert min(ratios) >= 1
    assert np.median(ratios) < 1.5


def test_a_linear_displacement_has_its_slope():
    lattice = Lattice(-4.0, 4.0, 6)
    stretch = np.broadcast_to(0.3 * lattice.positions[:, None], (6, 6))
    displacements = np.stack([stretch, np.zeros((6, 6))])
    for basis in ("bicubic", "bspline"):
        assert gradient_bound(displacements, (lattice, lattice), basis) == pytest.approx(0.3)


def test_no_displacement_has_no_gradient():
    lattice = Lattice(-4.0, 4.0, 5)
    assert gradient_bound(np.zeros((3, 5, 5, 5)), (lattice,) * 3, "bspline") == 0
