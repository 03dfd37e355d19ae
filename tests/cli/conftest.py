"""A bundle with a tiny network, which predicts in milliseconds."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundle.tiny_bundles import add_random_weights, change_plan, copy_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    folder = copy_bundle("phantom_cells_segmentation", tmp_path_factory.mktemp("bundles") / "tiny_segmentation")
    change_plan(folder, {"channels": [4, 8], "strides": [2]}, patch=[8, 8, 8], tile=[8, 8, 8])
    add_random_weights(folder)
    return folder
