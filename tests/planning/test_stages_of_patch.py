"""Stages, strides, kernels and patches follow nnU-Net's published rules."""

import json
from pathlib import Path

import pytest

from medseg.planning.stages_of_patch import first_patch, largest_patch, padded, shrinking_patches, topology_for

RECORDED = json.loads((Path(__file__).parent / "nnunet_plans.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", RECORDED["plans"])
def test_stages_of_the_same_patch_equal_nnunets(name: str) -> None:
    theirs = RECORDED["plans"][name]
    topology = topology_for(theirs["spacing"], theirs["patch"])
    assert [list(step) for step in topology.strides] == theirs["strides"]
    assert [list(kernel) for kernel in topology.kernels] == theirs["kernels"]
    assert padded(theirs["patch"], topology.divisors) == tuple(theirs["patch"])


def test_a_cube_is_halved_until_an_edge_of_four() -> None:
    topology = topology_for((1, 1, 1), (128, 128, 128))
    assert topology.strides == ((2, 2, 2),) * 5
    assert topology.divisors == (32, 32, 32)


def test_the_coarse_axis_waits_until_the_others_are_as_coarse() -> None:
    """Slices of 5 mm are left alone at 1 and 2 mm, and at 4 mm they are within a factor of two."""
    topology = topology_for((1, 1, 5), (256, 256, 32))
    assert topology.strides[:3] == ((2, 2, 1), (2, 2, 1), (2, 2, 2))
    assert topology.kernels[:3] == ((3, 3, 1), (3, 3, 1), (3, 3, 3))


def test_the_first_patch_is_isotropic_in_mm() -> None:
    patch = first_patch((1, 1, 4), (10_000, 10_000, 10_000))
    assert patch[0] == patch[1]
    assert patch[0] / patch[2] == pytest.approx(4, rel=0.01)
    assert patch[0] * patch[1] * patch[2] == pytest.approx(256**3, rel=0.02)
    assert first_patch((1, 1, 4), (20, 300, 5)) == (20, 300, 5)


def test_patches_shrink_step_by_step_and_stay_divisible() -> None:
    before = None
    for patch, topology in shrinking_patches((1.0, 0.8, 0.8), (432, 512, 512)):
        assert padded(patch, topology.divisors) == patch
        if before is not None:
            assert sum(a != b for a, b in zip(patch, before, strict=True)) >= 1
            assert all(a <= b for a, b in zip(patch, before, strict=True))
        before = patch
    assert before is not None
    assert min(before) <= 8


def test_none_fits() -> None:
    assert largest_patch((1, 1, 1), (64, 64, 64), lambda patch, topology: False) is None
    patch, _, is_reduced = largest_patch((1, 1, 1), (64, 64, 64), lambda patch, topology: max(patch) <= 48)
    assert is_reduced
    assert max(patch) <= 48
