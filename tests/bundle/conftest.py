import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import run

from medseg import weights
from medseg.plan import read_plan

BUNDLES = Path(__file__).parents[2] / "bundles"


@pytest.fixture
def bundle(tmp_path) -> Path:
    """The phantom bundle with a network small enough for a test, and random weights recorded as promoted."""
    folder = tmp_path / "tiny_segmentation"
    shutil.copytree(BUNDLES / "phantom_cells_segmentation", folder, ignore=shutil.ignore_patterns("models"))
    plan_file = folder / "configs" / "plan.json"
    plan = json.loads(plan_file.read_text())
    plan["network"]["arguments"] |= {"channels": [4, 8, 8], "strides": [2, 2]}
    plan["patch"] = plan["tile"] = [16, 16, 16]
    plan_file.write_text(json.dumps(plan))
    (folder / "models").mkdir()
    torch.manual_seed(0)
    torch.save(read_plan(plan_file).create_network().state_dict(), folder / "models" / "model.pt")
    record_checksum(folder)
    return folder


def record_checksum(folder: Path) -> None:
    digest = weights.sha256(folder / "models" / "model.pt")
    entry = {"path": "models/model.pt", "hash_type": "sha256", "hash_val": digest}
    (folder / "large_files.yml").write_text(yaml.safe_dump({"large_files": [entry]}))


@pytest.fixture
def scan(tmp_path) -> Path:
    """An oblique, flipped, anisotropic scan larger than a tile, stored with axes out of order."""
    rotation = np.array([[0.0, -0.98, 0.199], [1.0, 0.0, 0.0], [0.0, -0.199, -0.98]])
    affine = np.eye(4)
    affine[:3, :3] = rotation * [1.1, 0.9, 1.9]
    affine[:3, 3] = [-20, 13, 40]
    array = np.random.default_rng(0).normal(size=(21, 34, 19)).astype(np.float32)
    path = tmp_path / "scans" / "case_a.nii.gz"
    path.parent.mkdir()
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


@pytest.fixture
def promote_file():
    """Record the checksum of whatever lies at models/model.pt."""
    return record_checksum


@pytest.fixture
def run_inference(tmp_path) -> Callable[..., Path]:
    """Predict the scans of a folder by MONAI's own runner; the folder with the label maps."""

    def predict(bundle: Path, scans: Path) -> Path:
        run(
            config_file=str(bundle / "configs" / "inference.json"),
            meta_file=str(bundle / "configs" / "metadata.json"),
            logging_file=False,
            bundle_root=str(bundle),
            dataset_dir=str(scans),
            output_dir=str(tmp_path / "out"),
        )
        return tmp_path / "out"

    return predict
