"""The two-nearest-instance transform against one SciPy distance transform an instance, and against all pairs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.distance import cdist
from transforms.touching_cells import touching_cells

from medseg.transforms.nearest_instances import two_nearest_distances


def one_transform_per_instance(instances, where, sampling):
    numbers = [k for k in np.unique(instances) if k]
    distances = [ndimage.distance_transform_edt(instances != k, sampling=sampling)[where] for k in numbers]
    ordered = np.sort([*distances, *np.full((2, np.count_nonzero(where)), np.inf)], axis=0)
    return ordered[0], ordered[1]


def all_pairs(instances, where, sampling):
    """Distance from every chosen voxel to every instance voxel, then the minimum an instance."""
    at, occupied = (np.argwhere(mask) * np.asarray(sampling) for mask in (where, instances > 0))
    numbers = instances[instances > 0]
    distances = cdist(at, occupied) if len(occupied) else np.empty((len(at), 0))
    nearest = [distances[:, numbers == k].min(axis=1) for k in np.unique(numbers)]
    ordered = np.sort([*nearest, *np.full((2, len(at)), np.inf)], axis=0)
    return ordered[0], ordered[1]


def assert_exact_within_reach(instances, where, sampling, reach, oracle):
    found = two_nearest_distances(instances, where, sampling, reach)
    expected = oracle(instances, where, sampling)
    reachable = expected[0] + expected[1] <= reach
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(got[reachable], want[reachable], rtol=2e-6, atol=1e-5 * min(sampling))
        assert np.all(got >= want * (1 - 1e-5))  # beyond reach it may be longer, never shorter


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
def test_equals_all_pairs(shape, sampling, reach):
    rng = np.random.default_rng(len(shape))
    instances = np.where(rng.random(shape) < 0.1, rng.integers(1, 6, shape), 0)
    assert_exact_within_reach(instances, np.ones(shape, bool), sampling, reach, all_pairs)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_equals_one_transform_per_instance_whatever_the_volume(data):
    ndim = data.draw(st.integers(1, 4))
    shape = tuple(data.draw(st.lists(st.integers(1, {1: 60, 2: 24, 3: 10, 4: 6}[ndim]), min_size=ndim, max_size=ndim)))
    sampling = data.draw(st.lists(st.sampled_from([1.0, 2.0, 0.7, 0.004]), min_size=ndim, max_size=ndim))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    density = data.draw(st.sampled_from([0.0, 0.02, 0.2, 0.9]))
    numbers = rng.integers(1, data.draw(st.integers(1, 12)) + 1, shape) * data.draw(st.sampled_from([1, 1 << 22]))
    instances = np.where(rng.random(shape) < density, numbers, 0)
    where = rng.random(shape) < 0.6
    reach = data.draw(st.sampled_from([2.0, 7.5, 1000.0])) * min(sampling)
    assert_exact_within_reach(instances, where, sampling, reach, one_transform_per_instance)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("offset", [0, 2**30])
def test_numbers_and_types_do_not_matter(dtype, offset):
    cells = touching_cells((60, 70), 30, radius=5).astype(dtype)
    where = cells == 0
    expected = two_nearest_distances(cells, where, (1, 1), 20)
    found = two_nearest_distances(np.where(cells > 0, cells + offset, 0).astype(dtype), where, (1, 1), 20)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("num_instances", [0, 1])
def test_fewer_than_two_instances_are_infinitely_far(num_instances):
    instances = np.zeros((6, 7), int)
    instances[2:4, 3] = num_instances
    first, second = two_nearest_distances(instances, np.ones((6, 7), bool), (1, 1), 50)
    assert np.isinf(second).all()
    assert np.isinf(first).all() == (num_instances == 0)
