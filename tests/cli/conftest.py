"""A bundle that predicts at once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from medseg import weights
from medseg.plan import read_plan

BUNDLES = Path(__file__).parents[2] / "bundles"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "tiny_segmentation"
    shutil.copytree(BUNDLES / "phantom_cells_segmentation", folder, ignore=shutil.ignore_patterns("models"))
    plan_file = folder / "configs" / "plan.json"
    plan = json.loads(plan_file.read_text())
    plan["network"]["arguments"] |= {"channels": [4, 8], "strides": [2]}
    plan["patch"] = plan["tile"] = [8, 8, 8]
    plan_file.write_text(json.dumps(plan))
    (folder / "models").mkdir()
    torch.save(read_plan(plan_file).create_network().state_dict(), folder / "models" / "model.pt")
    digest = weights.sha256(folder / "models" / "model.pt")
    entry = {"path": "models/model.pt", "hash_type": "sha256", "hash_val": digest}
    (folder / "large_files.yml").write_text(yaml.safe_dump({"large_files": [entry]}))
    return folder
