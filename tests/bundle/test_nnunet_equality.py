"""Models that nnU-Net trains on real scans give nnU-Net's labels: the rows of the table in docs/nnunet.md."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PLANS = "nnUNetTrainer__nnUNetPlans"
# name of the model in nnunet_training.py: (folder of the results, scan, with mirroring)
ROWS = {
    "hippocampus": [(f"{PLANS}__3d_fullres", "hippocampus_001", False), (f"{PLANS}__2d", "hippocampus_001", False)],
    "residual": [("nnUNetTrainer__nnUNetResEncUNetMPlans__3d_fullres", "hippocampus_001", False)],
    "cord": [(f"{PLANS}__3d_fullres", "cord", False), (f"{PLANS}__3d_fullres__slices", "cord", False)],
    "ct": [(f"{PLANS}__3d_fullres", "ct", False)],
    "brain": [(f"{PLANS}__3d_fullres", "brain", False), (f"{PLANS}__3d_fullres", "brain", True)],
}


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", ROWS)
def test_models_trained_on_real_scans_give_the_labels_of_nnunet(tmp_path, shared_data, name, monkeypatch):
    pytest.importorskip("nnunetv2", reason="nnU-Net is not installed; `make bench` installs it")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from nnunet_equality import compare

    command = [sys.executable, "-W", "ignore", str(BENCHMARKS / "nnunet_training.py"), str(tmp_path)]
    subprocess.run(
        [*command, "--data", str(shared_data), "--only", name, "--iterations", "8", "--narrower", "8"], check=True
    )
    for folder, scan, mirroring in ROWS[name]:
        (model,) = tmp_path.glob(f"results/Dataset*/{folder}")
        channels = sorted(str(file) for file in tmp_path.glob(f"raw/*/imagesTr/{scan}_*.nii.gz"))
        for _, count, different in compare(model, [",".join(channels)], mirroring):
            assert count > 200
            assert different <= 1e-4 * count
