import numpy as np
import pytest
from scipy import ndimage

from medseg.evaluation import surface
from medseg.evaluation.surface import nearest_distances_mm


def random_points(shape: tuple[int, ...], share: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < share


@pytest.mark.parametrize("voxel_ns", [0.0, np.inf], ids=["transform", "tree"])
@pytest.mark.parametrize(("shape", "spacing"), [((20, 31), (0.7, 2.0)), ((13, 20, 9), (1.0, 0.5, 3.0))])
@pytest.mark.parametrize(("few", "many"), [(0.002, 0.3), (0.05, 0.05), (0.3, 0.01)])
def test_both_ways_equal_scipy(
    monkeypatch: pytest.MonkeyPatch,
    voxel_ns: float,
    shape: tuple[int, ...],
    spacing: tuple[float, ...],
    few: float,
    many: float,
) -> None:
    monkeypatch.setattr(surface, "VOXEL_NS", voxel_ns)
    queries, targets = random_points(shape, many, 0), random_points(shape, few, 1)
    targets[tuple(size // 2 for size in shape)] = True
    expected = ndimage.distance_transform_edt(~targets, sampling=spacing)[queries]
    np.testing.assert_allclose(nearest_distances_mm(queries, targets, spacing), expected, rtol=1e-14)


def test_no_targets_are_infinitely_far_and_no_queries_are_no_distances() -> None:
    queries, none = random_points((6, 6), 0.5, 0), np.zeros((6, 6), bool)
    assert np.isinf(nearest_distances_mm(queries, none, (1, 1))).all()
    assert nearest_distances_mm(none, queries, (1, 1)).size == 0
    assert not nearest_distances_mm(queries, queries, (1, 1)).any()


def test_a_far_surface_takes_the_transform_and_a_near_one_the_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice is for speed only; here it is watched through the function that only one of the two calls."""
    calls = []
    transform = surface.distance_transform_edt

    def watched(*args: object, **kwargs: object) -> np.ndarray:
        calls.append(args)
        return transform(*args, **kwargs)

    monkeypatch.setattr(surface, "distance_transform_edt", watched)
    grid = np.ogrid[:64, :64, :64]
    distance = np.sqrt(sum((axis - 32) ** 2 for axis in grid))
    small, large, near = (np.abs(distance - radius) < 1 for radius in (12, 30, 28))
    nearest_distances_mm(near, large, (1, 1, 1))
    assert not calls
    np.testing.assert_allclose(nearest_distances_mm(small, large, (1, 1, 1)), transform(~large)[small])
    assert calls
