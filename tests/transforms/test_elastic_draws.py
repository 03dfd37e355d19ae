"""Test what an elastic deformation draws: spline bases, published forms, lengths in mm, the bound on folds, seeds."""

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from scipy.interpolate import BSpline, CubicHermiteSpline
from transforms.deforming import FORMS, transform

from medseg.transforms.elastic.deformation import Lattice, upsampling_matrix
from medseg.transforms.elastic.drawing import gradient_bound
from medseg.transforms.elastic.transform import RandElasticDeformation, RandElasticDeformationd


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
def test_upsampling_equals_scipy(basis, num_samples, step, seed):
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


def dense_gradient(displacements, lattices, basis, samples):
    """Compute du_i/dx_j, (…, ndim, ndim), by central differences on a grid much finer than the control points."""
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
def test_the_fold_bound_holds_everywhere_and_is_tight(basis, ndim):
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


def test_the_fold_bound_of_a_linear_displacement_is_its_slope():
    lattice = Lattice(-4.0, 4.0, 6)
    stretch = np.broadcast_to(0.3 * lattice.positions[:, None], (6, 6))
    displacements = np.stack([stretch, np.zeros((6, 6))])
    for basis in ("bicubic", "bspline"):
        assert gradient_bound(displacements, (lattice, lattice), basis) == pytest.approx(0.3)


def test_the_fold_bound_of_no_displacement_is_zero():
    lattice = Lattice(-4.0, 4.0, 5)
    assert gradient_bound(np.zeros((3, 5, 5, 5)), (lattice,) * 3, "bspline") == 0


def jacobian_determinants(params, refine=4):
    """Compute Jacobian determinants of the map by differences on a grid finer than the voxels."""
    step = 1 / refine
    fine = replace(
        params,
        shape=tuple((n - 1) * refine + 1 for n in params.shape),
        lattices=tuple(replace(a, origin=a.origin * refine, step=a.step * refine) for a in params.lattices),
    )
    controls = np.moveaxis(params.displacements, 0, -1)
    for axis, weights in enumerate(fine.weights):
        controls = np.moveaxis(np.tensordot(weights, controls, axes=(1, axis)), 0, axis)
    axes = tuple(range(len(params.shape)))
    gradient = np.stack([np.stack(np.gradient(controls[..., i], step, axis=axes), -1) for i in axes], -2)
    return np.linalg.det(np.eye(len(axes)) + gradient)


@given(seed=st.integers(0, 2**31 - 1), ndim=st.sampled_from([2, 3]), form=st.sampled_from(FORMS))
@settings(max_examples=60, deadline=None)
def test_fold_free_keeps_the_jacobian_positive(seed, ndim, form):
    shape = (24, 17) if ndim == 2 else (14, 12, 9)
    params = transform(seed, form=form, sigma=40.0, unit="voxel", fold_free=True).randomize(shape)
    assert jacobian_determinants(params).min() > 0
    assert np.abs(params.displacements).max() > 0.1  # smaller, but not zero


def test_without_fold_free_ten_voxels_fold_a_small_patch():
    folded = [
        jacobian_determinants(transform(seed, form="unet_ronneberger2015").randomize((40, 40))).min() <= 0
        for seed in range(20)
    ]
    assert np.mean(folded) > 0.5


@pytest.mark.parametrize("shape", [(256, 256), (48, 64, 48), (128, 128, 128)])
def test_the_default_form_is_seldom_shrunk(shape):
    free, kept = ([transform(seed, fold_free=f).randomize(shape) for seed in range(200)] for f in (False, True))
    shrunk = [not np.array_equal(a.displacements, b.displacements) for a, b in zip(free, kept, strict=True)]
    assert np.mean(shrunk) < 0.1


def test_published_forms_have_their_published_grids_and_deviations():
    unet = [transform(seed, form="unet_ronneberger2015").randomize((512, 512)) for seed in range(300)]
    assert unet[0].displacements[:, 1:-1, 1:-1].shape == (2, 3, 3)
    np.testing.assert_allclose(unet[0].lattices[0].positions[1:-1], [0, 255.5, 511])
    assert np.std([p.displacements[:, 1:-1, 1:-1] for p in unet]) == pytest.approx(10, rel=0.05)
    unet3d = [transform(seed, form="unet3d_cicek2016").randomize((132, 132, 116)) for seed in range(50)]
    assert {lattice.step for lattice in unet3d[0].lattices} == {32.0}
    assert unet3d[0].basis == "bspline"
    assert np.std([p.displacements for p in unet3d]) == pytest.approx(4, rel=0.05)


def test_the_drawn_displacements_are_reached_at_the_control_points():
    params = transform(form="unet_ronneberger2015").randomize((201, 101))
    moved = params.source_coordinates() - np.moveaxis(np.indices((201, 101)), 0, -1)
    np.testing.assert_allclose(moved[::100, ::50], np.moveaxis(params.displacements[:, 1:-1, 1:-1], 0, -1), atol=1e-9)


def test_sigma_in_mm_is_the_same_length_along_every_axis():
    spacing = (0.5, 1.0, 4.0)
    drawn = [
        transform(seed, sigma=3.0, unit="mm", fold_free=False).randomize((40, 30, 20), spacing) for seed in range(300)
    ]
    in_mm = np.std([p.displacements for p in drawn], axis=(0, 2, 3, 4)) * spacing
    np.testing.assert_allclose(in_mm, 3, rtol=0.05)
    per_grid = transform(form="unet3d_cicek2016", sigma=2.0, grid_spacing=16.0, unit="mm").randomize(
        (40, 30, 20), spacing
    )
    np.testing.assert_allclose([lattice.step for lattice in per_grid.lattices], [32, 16, 4])


def test_the_spacing_is_read_from_a_metatensor():
    image = MetaTensor(torch.rand(1, 20, 20, 20), affine=np.diag([0.5, 1.0, 4.0, 1.0]))
    arguments = {"sigma": 3.0, "unit": "mm", "fold_free": False}
    by_affine = transform(1, **arguments)(image)
    deform = transform(1, **arguments)
    torch.testing.assert_close(
        by_affine.as_tensor(), deform.apply(deform.randomize((20, 20, 20), (0.5, 1, 4)), image.as_tensor())
    )


def test_a_skipped_draw_returns_the_input_itself():
    image, label = torch.rand(1, 9, 9), torch.ones(1, 9, 9, dtype=torch.uint8)
    deform = RandElasticDeformationd(("image", "label"), prob=0.0)
    result = deform({"image": image, "label": label})
    assert result["image"] is image
    assert result["label"] is label
    assert RandElasticDeformation(prob=0.0).randomize((9, 9)) is None


def test_the_probability_is_kept():
    deform = RandElasticDeformation(prob=0.3).set_random_state(0)
    assert np.mean([deform.randomize((8, 8)) is not None for _ in range(2000)]) == pytest.approx(0.3, abs=0.04)


def test_the_record_is_frozen():
    params = transform().randomize((8, 8))
    with pytest.raises(FrozenInstanceError):
        params.basis = "bspline"


def test_equal_seeds_draw_alike_and_the_last_draw_can_be_repeated():
    image = torch.rand(1, 16, 16)
    first, second = transform(3), transform(3)
    results = [first(image) for _ in range(3)]
    assert all(torch.equal(a, second(image)) for a in results)
    assert not torch.equal(results[0], results[1])
    assert torch.equal(first(image, randomize=False), results[2])
