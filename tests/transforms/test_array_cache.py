"""A cached result is found again only when nothing it depends on has changed."""

import statistics
import sys

import numpy as np
import pytest

from medseg.transforms.array_cache import cached_arrays
from medseg.transforms.boundary_weight import BoundaryWeightMap

DEFAULT = np.arange(6)


@pytest.fixture
def counted(tmp_path):
    calls = []

    def run(array=DEFAULT, parameters=None, code=(statistics,), other=None):
        def compute():
            calls.append(1)
            return [array * 2, array[:1]]

        return cached_arrays(tmp_path, {"a": array, "b": other}, parameters or {"w0": 10}, code, compute), len(calls)

    return run


def test_the_second_time_reads_what_the_first_computed(counted):
    (first, calls), (second, calls_after) = counted(), counted()
    assert calls == calls_after == 1
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype


@pytest.mark.parametrize(
    "changed",
    [
        {"array": np.arange(6) + 1},
        {"array": np.arange(6).reshape(2, 3)},
        {"array": np.arange(6, dtype=np.int32)},
        {"other": np.arange(2)},
        {"parameters": {"w0": 11}},
        {"parameters": {"w0": 10, "sigma": 5}},
        {"code": ()},
    ],
)
def test_whatever_changes_is_computed_anew(counted, changed):
    counted()
    assert counted(**changed)[1] == 2


def test_a_damaged_file_is_computed_anew(counted, tmp_path):
    counted()
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:50])
    assert counted()[1] == 2
    assert counted()[1] == 2


def test_modules_without_source_are_refused(counted):
    with pytest.raises(ValueError, match="no source"):
        counted(code=(sys,))


def test_the_transform_caches(tmp_path):
    label = np.zeros((1, 20, 9), np.uint8)
    label[..., :4] = label[..., 5:] = 1
    plain = BoundaryWeightMap()(label)
    for _ in range(2):
        cached = BoundaryWeightMap(cache_dir=tmp_path)(label)
        np.testing.assert_array_equal(cached.weights, plain.weights)
        np.testing.assert_array_equal(cached.target, plain.target)
        assert cached.target.dtype == np.uint8
    assert len(list(tmp_path.iterdir())) == 1
    BoundaryWeightMap(sigma=4, cache_dir=tmp_path, class_weights={0: 1.0, 1: 2.0})(label)
    assert len(list(tmp_path.iterdir())) == 2
