"""Compare the boundary weight map with brute force written from its definition, and with closed forms."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from scipy import ndimage
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from medseg.errors import ShapeError
from medseg.transforms.boundary_weight import (
    BoundaryWeightMap,
    BoundaryWeightMapd,
    boundary_weight_map,
    two_nearest_distances,
)

ONE_PIXEL_GAP = 10 * np.exp(-4 / 50)  # both distances are 1: 9.2312


def touching_cells(shape, num_cells, radius=np.inf, seed=0):
    """Make Voronoi cells of random points, cut off at `radius` voxels; int32 numbers from 1, 0 outside."""
    points = np.random.default_rng(seed).uniform(0, 1, (num_cells, len(shape))) * np.array(shape)
    voxels = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    distance, nearest = cKDTree(points).query(voxels)
    return np.where(distance <= radius, nearest + 1, 0).astype(np.int32)


def by_definition(label_map, instances, sampling, w0, sigma, ignore_label=None):
    """Compute the map by loops over voxels, neighbours and all pairs of voxels, sharing nothing with the package."""
    instances = np.where((label_map == 0) | (label_map == ignore_label), 0, instances)
    ridge = np.zeros(label_map.shape, bool)
    for at in np.argwhere(instances > 0):
        for step in itertools.product((-1, 0, 1), repeat=label_map.ndim):
            beside = at + step
            if np.all(beside >= 0) and np.all(beside < label_map.shape):
                ridge[tuple(at)] |= instances[tuple(beside)] not in (0, instances[tuple(at)])
    target, instances = np.where(ridge, 0, label_map), np.where(ridge, 0, instances)
    labelled = label_map != ignore_label
    weights = np.zeros(label_map.shape)
    classes, counts = np.unique(target[labelled], return_counts=True)
    for value, count in zip(classes, counts, strict=True):
        weights[labelled & (target == value)] = counts.sum() / (len(classes) * count)
    numbers = [k for k in np.unique(instances) if k]
    if len(numbers) > 1:
        for at in np.argwhere(labelled & (target == 0)):
            distances = [
                np.sqrt((((np.argwhere(instances == k) - at) * sampling) ** 2).sum(axis=1)).min() for k in numbers
            ]
            weights[tuple(at)] += w0 * np.exp(-(sum(sorted(distances)[:2]) ** 2) / (2 * sigma**2))
    return weights, target


@pytest.mark.parametrize("cell_radius", [np.inf, 4.0, 2.0])
@pytest.mark.parametrize(
    ("shape", "spacing", "unit"),
    [
        ((25, 31), None, "voxel"),
        ((22, 29), (2.5, 1.0), "voxel"),
        ((22, 29), (0.8, 0.5), "mm"),
        ((9, 12, 13), None, "voxel"),
        ((7, 12, 13), (3.0, 1.0, 0.9), "voxel"),
        ((7, 12, 13), (1.3, 0.6, 0.5), "mm"),
    ],
)
def test_equals_the_definition(shape, spacing, unit, cell_radius):
    instances = touching_cells(shape, 9, radius=cell_radius)
    label_map = np.where(instances > 0, 1 + instances % 2, 0)
    label_map[:3] = np.where(np.arange(shape[-1]) < 4, 7, label_map[:3])
    sampling = np.ones(len(shape)) if spacing is None else np.array(spacing)
    expected_weights, expected_target = by_definition(
        label_map, instances, sampling if unit == "mm" else sampling / sampling.min(), 10, 3, ignore_label=7
    )
    weights, target = boundary_weight_map(
        label_map, spacing, w0=10, sigma=3, sigma_unit=unit, instance_map=instances, ignore_label=7
    )
    np.testing.assert_array_equal(target, expected_target)
    np.testing.assert_allclose(weights, expected_weights, atol=2e-4)  # terms below 1e-5 * w0 are left out
    assert weights.dtype == np.float32


def test_a_gap_one_pixel_wide_weighs_9_2312():
    label_map = np.ones((30, 11), np.uint8)
    label_map[:, 5] = 0
    weights, target = boundary_weight_map(label_map, class_weights=None)
    np.testing.assert_array_equal(target, label_map)
    np.testing.assert_allclose(weights[:, 5] - 1, ONE_PIXEL_GAP, rtol=1e-6)
    assert np.round(ONE_PIXEL_GAP, 4) == 9.2312
    assert np.all(weights[label_map == 1] == 1)  # nothing inside the cells


def test_touching_instances_get_a_ridge_on_both_sides():
    instances = np.repeat([[1] * 6 + [2] * 6], 20, axis=0)
    weights, target = boundary_weight_map(instances > 0, instance_map=instances, class_weights=None)
    assert target.dtype == bool
    np.testing.assert_array_equal(target[0], [True] * 5 + [False] * 2 + [True] * 5)
    np.testing.assert_allclose(weights[:, 5:7] - 1, 10 * np.exp(-9 / 50), rtol=1e-6)  # distances 1 and 2


def test_components_of_a_binary_mask_merge_touching_cells_and_instances_do_not():
    instances = touching_cells((40, 40), 6)
    merged, target = boundary_weight_map(instances > 0, class_weights=None)
    assert np.all(merged == 1)
    assert target.all()
    assert boundary_weight_map(instances > 0, instance_map=instances)[0].max() > 5


def test_touching_cells_of_two_classes_are_two_instances_without_an_instance_map():
    label_map = np.repeat([[1] * 6 + [2] * 6], 20, axis=0)
    _, target = boundary_weight_map(label_map)
    np.testing.assert_array_equal(target[0], [1] * 5 + [0] * 2 + [2] * 5)


@pytest.mark.parametrize(("connectivity", "touching"), [(1, False), (2, True)])
def test_connectivity_decides_whether_a_corner_joins(connectivity, touching):
    label_map = np.zeros((12, 12), int)
    label_map[2:6, 2:6] = label_map[6:10, 6:10] = 1
    _, target = boundary_weight_map(label_map, connectivity=connectivity)
    assert (target == label_map).all() == touching


@given(seed=st.integers(0, 2**16), num_cells=st.integers(0, 12), ignored=st.booleans())
@settings(max_examples=100, deadline=None)
def test_classes_are_balanced_and_no_label_is_added(seed, num_cells, ignored):
    rng = np.random.default_rng(seed)
    instances = touching_cells((24, 20), max(num_cells, 1), radius=rng.uniform(1, 8), seed=seed) * (num_cells > 0)
    label_map = np.where(instances > 0, 1 + instances % 3, 0)
    if ignored:
        label_map[rng.random(label_map.shape) < 0.2] = -1
    weights, target = boundary_weight_map(label_map, instance_map=instances, ignore_label=-1, w0=0)
    assert set(np.unique(target)) <= set(np.unique(label_map)) | {0}
    labelled = label_map != -1
    np.testing.assert_array_equal(weights[~labelled], 0)
    if labelled.any():
        assert weights[labelled].mean() == pytest.approx(1, rel=1e-5)
        totals = [weights[labelled & (target == value)].sum() for value in np.unique(target[labelled])]
        np.testing.assert_allclose(totals, totals[0], rtol=1e-5)  # the weights of every class have the same sum
    higher = boundary_weight_map(label_map, instance_map=instances, ignore_label=-1).weights
    assert np.all(higher >= weights)
    np.testing.assert_array_equal(higher[target != 0], weights[target != 0])


def test_everything_ignored_weighs_nothing():
    weights, target = boundary_weight_map(np.full((5, 6), 9), ignore_label=9)
    assert not weights.any()
    assert np.all(target == 9)


def test_class_weights_can_be_given():
    label_map = np.array([[0, 1, 1, 2, 0]])
    weights, _ = boundary_weight_map(label_map, w0=0, class_weights={0: 0.5, 1: 2.0})
    np.testing.assert_array_equal(weights, [[0.5, 2, 0.5, 0.5, 0.5]])  # the voxels beside the contact become background


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.uint32, np.float32])
def test_target_keeps_the_dtype_and_inputs_stay_as_they_are(dtype):
    instances = touching_cells((30, 30), 8, radius=6).astype(dtype)
    label_map = (instances > 0).astype(dtype)
    copies = instances.copy(), label_map.copy()
    weights, target = boundary_weight_map(label_map, instance_map=instances)
    assert target.dtype == dtype
    reference = boundary_weight_map(label_map.astype(int), instance_map=instances.astype(int))
    np.testing.assert_array_equal(weights, reference.weights)
    np.testing.assert_array_equal(instances, copies[0])
    np.testing.assert_array_equal(label_map, copies[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label_map": np.array([[0.5]])}, "label map"),
        ({"label_map": np.ones((4, 4), int), "instance_map": np.ones((4, 5), int)}, r"\(4, 4\).*\(4, 5\)"),
        ({"label_map": np.ones((4, 4), int), "instance_map": -np.ones((4, 4), int)}, "instance.*-1"),
        ({"label_map": np.ones((4, 4), int), "spacing": (1, 1, 1)}, r"spacing.*\(1, 1, 1\)"),
        ({"label_map": np.ones((4, 4), int), "sigma_unit": "mm"}, "spacing.*None"),
        ({"label_map": np.ones((4, 4), int), "sigma_unit": "cm"}, "sigma_unit.*cm"),
        ({"label_map": np.ones((4, 4), int), "sigma": 0}, "sigma=0"),
        ({"label_map": np.ones((4, 4), int), "w0": -1}, "w0=-1"),
    ],
)
def test_invalid_input_raises_an_error_of_one_line(arguments, message):
    with pytest.raises((ShapeError, ValueError), match=message) as raised:
        boundary_weight_map(**arguments)
    assert "\n" not in str(raised.value)


def phantom():
    instances = touching_cells((24, 20, 12), 20, radius=6)
    return np.where(instances > 0, 1 + instances % 2, 0), instances


@pytest.mark.parametrize("kind", ["array", "tensor", "metatensor"])
def test_dictionary_form_equals_the_function(kind):
    label_map, instances = phantom()
    spacing = (1.0, 1.0, 2.5)
    expected = boundary_weight_map(label_map, spacing, instance_map=instances)
    affine = np.diag([*spacing, 1.0])
    wrap = {
        "array": lambda a: a[None],
        "tensor": lambda a: torch.as_tensor(a)[None],
        "metatensor": lambda a: MetaTensor(torch.as_tensor(a)[None], affine=affine),
    }[kind]
    sample = {"label": wrap(label_map), "cells": wrap(instances), "other": 3}
    transform = BoundaryWeightMapd(instance_key="cells", spacing="affine" if kind == "metatensor" else spacing)
    result = pickle.loads(pickle.dumps(transform))(sample)
    np.testing.assert_array_equal(np.asarray(result["weight"])[0], expected.weights)
    np.testing.assert_array_equal(np.asarray(result["label"])[0], expected.target)
    assert type(result["weight"]) is type(sample["label"])
    assert type(result["label"]) is type(sample["label"])
    assert set(sample) == {"label", "cells", "other"}
    np.testing.assert_array_equal(np.asarray(sample["label"])[0], label_map)
    if kind == "metatensor":
        np.testing.assert_array_equal(result["weight"].affine, affine)


def test_missing_keys():
    assert BoundaryWeightMapd(allow_missing_keys=True)({"image": 1}) == {"image": 1}
    with pytest.raises(KeyError, match="label"):
        BoundaryWeightMapd()({"image": 1})


def test_array_form_refuses_one_hot_and_plain_arrays_with_affine_spacing():
    with pytest.raises(ShapeError, match=r"label map.*\(2, 5, 5\)"):
        BoundaryWeightMap()(np.zeros((2, 5, 5), int))
    with pytest.raises(ShapeError, match="ndarray"):
        BoundaryWeightMap(spacing="affine")(np.zeros((1, 5, 5), int))


def one_transform_per_instance(instances, sampling):
    numbers = [k for k in np.unique(instances) if k]
    distances = [ndimage.distance_transform_edt(instances != k, sampling=sampling) for k in numbers]
    return np.sort([*distances, *np.full((2, *instances.shape), np.inf)], axis=0)[:2]


def all_pairs(instances, sampling):
    """Take the distance from every voxel to every instance voxel, then the minimum per instance."""
    voxels, occupied = (np.argwhere(mask) * np.asarray(sampling) for mask in (instances >= 0, instances > 0))
    numbers = instances[instances > 0]
    distances = cdist(voxels, occupied) if len(occupied) else np.empty((len(voxels), 0))
    nearest = [distances[:, numbers == k].min(axis=1) for k in np.unique(numbers)]
    return np.sort([*nearest, *np.full((2, len(voxels)), np.inf)], axis=0)[:2].reshape(2, *instances.shape)


def assert_exact_within_reach(instances, sampling, reach, oracle):
    for found, expected in zip(
        two_nearest_distances(instances, sampling, reach), oracle(instances, sampling), strict=True
    ):
        reachable = expected <= reach
        np.testing.assert_allclose(found[reachable], expected[reachable], rtol=2e-6, atol=1e-5 * min(sampling))
        assert np.all(found >= expected * (1 - 1e-5))  # beyond the reach it may be longer, never shorter


@pytest.mark.parametrize(
    ("shape", "sampling"),
    [
        ((50,), (1.0,)),
        ((24, 31), (1.0, 1.0)),
        ((20, 27), (2.5, 0.7)),
        ((9, 11, 13), (1, 1, 1)),
        ((7, 12, 11), (3, 1, 0.5)),
    ],
)
@pytest.mark.parametrize("reach", [4.0, 1000.0])
def test_two_nearest_distances_equal_all_pairs(shape, sampling, reach):
    rng = np.random.default_rng(len(shape))
    instances = np.where(rng.random(shape) < 0.1, rng.integers(1, 6, shape), 0)
    assert_exact_within_reach(instances, sampling, reach, all_pairs)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_two_nearest_distances_equal_one_full_transform_per_instance(data):
    ndim = data.draw(st.integers(1, 4))
    shape = tuple(data.draw(st.lists(st.integers(1, {1: 60, 2: 24, 3: 10, 4: 6}[ndim]), min_size=ndim, max_size=ndim)))
    sampling = data.draw(st.lists(st.sampled_from([1.0, 2.0, 0.7, 0.004]), min_size=ndim, max_size=ndim))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    density = data.draw(st.sampled_from([0.0, 0.02, 0.2, 0.9]))
    instances = np.where(rng.random(shape) < density, rng.integers(1, data.draw(st.integers(1, 12)) + 1, shape), 0)
    reach = data.draw(st.sampled_from([2.0, 7.5, 1000.0])) * min(sampling)
    assert_exact_within_reach(instances, sampling, reach, one_transform_per_instance)


@pytest.mark.parametrize("num_instances", [0, 1])
def test_fewer_than_two_instances_add_no_border_term(num_instances):
    instances = np.zeros((6, 7), int)
    instances[2:4, 3] = num_instances
    first, second = two_nearest_distances(instances, (1, 1), 50)
    assert np.isinf(second).all()
    assert np.isinf(first).all() == (num_instances == 0)
    weights, _ = boundary_weight_map(instances, class_weights=None)
    np.testing.assert_array_equal(weights, 1)


@pytest.mark.parametrize(("dtype", "offset"), [(np.int32, 2**30), (np.int64, 2**60), (np.uint64, 2**60)])
def test_instance_numbers_may_be_large(dtype, offset):
    cells = touching_cells((60, 70), 30, radius=5)
    expected = boundary_weight_map(cells > 0, instance_map=cells)
    numbers = np.where(cells > 0, cells.astype(dtype) + dtype(offset), dtype(0))
    found = boundary_weight_map(cells > 0, instance_map=numbers)
    np.testing.assert_array_equal(found.weights, expected.weights)
    np.testing.assert_array_equal(found.target, expected.target)
