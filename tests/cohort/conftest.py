"""A small bundle, its scans, and one Ray cluster for all tests of cohorts."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bundle.tiny_bundles import add_random_weights, change_plan, copy_bundle
from cohort.ray_cluster import RayCluster

# A token of this session alone, which Ray reads when it is imported.
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32), RAY_USAGE_STATS_ENABLED="0")


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the phantom bundle with a network that takes moments, and random weights."""
    folder = copy_bundle("phantom_cells_segmentation", tmp_path_factory.mktemp("bundle") / "tiny_segmentation")
    change_plan(folder, {"channels": [4, 8, 8], "strides": [2, 2]}, patch=[16, 16, 16], tile=[16, 16, 16])
    add_random_weights(folder, zero_bias=True)
    return folder


@pytest.fixture(scope="session")
def cluster() -> Iterator[RayCluster]:
    """Start a cluster with two cores, which all tests share."""
    pytest.importorskip("ray")
    cluster = RayCluster(2)
    yield cluster
    cluster.close()


def write_scans(folder: Path, count: int, size: int = 24) -> Path:
    """Write scans of noise, each one voxel longer than the one before."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        array = np.random.default_rng(number).normal(size=(size, size - 2, size + number)).astype(np.float32)
        nib.save(nib.Nifti1Image(array, np.diag([1.0, 2.0, 1.5, 1.0])), folder / f"case{number:02d}.nii.gz")
    return folder
