"""Models of nnU-Net become bundles that give nnU-Net's labels. The oracle is nnU-Net's own predictor."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle.nnunet_models import CASES, ModelCase, dataset_of, write_model, write_scan
from monai.bundle import run

import medseg
from medseg.bundle import export, import_bundle, verify

RECORDED = np.load(Path(__file__).with_name("nnunet_labels.npz"))
SLOW_WITH_FLIPS = ("residual encoder, CT", "2D, transposed", "PyTorch, old plans")
CASES_AND_MODES = [
    pytest.param(name, mode, marks=[pytest.mark.slow] if mode == "flip" and name in SLOW_WITH_FLIPS else [])
    for name, case in CASES.items()
    for mode in ("none", "flip")
    if mode == "none" or case.mirror_axes is not None
]


def sources(case: ModelCase, folder: Path) -> str | list[str]:
    paths = [str(path) for path in write_scan(case, folder)]
    return paths if len(paths) > 1 else paths[0]


def recorded(name: str, mode: str) -> np.ndarray:
    return RECORDED[name if mode == "none" else f"{name}, mirrored"]


def different(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the share of different labels among the voxels that either label map calls foreground."""
    considered = (ours != 0) | (theirs != 0)
    assert considered.any()
    return float((ours != theirs)[considered].mean())


@pytest.mark.parametrize(("name", "mode"), CASES_AND_MODES)
def test_labels_equal_those_that_nnunet_has_given(tmp_path, name, mode):
    case = CASES[name]
    bundle = import_bundle(write_model(case, tmp_path / "model"), tmp_path / "imported").path
    predictor = medseg.load(bundle, device="cpu", backend="torch", precision="fp32", tta=mode)
    found = predictor.predict(sources(case, tmp_path / "scan"))
    # Of the random network's some thousand voxels one or two lie on a tie of rounded logits.
    assert different(found.array, recorded(name, mode)) < 1e-3
    assert found.provenance["resampling"] == "nnunet"


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_recorded_labels_are_those_of_the_installed_nnunet(tmp_path, name, monkeypatch):
    pytest.importorskip("nnunetv2", reason="nnU-Net is not installed; `make bench` installs it")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from nnunet_oracle import nnunet_labels

    case = CASES[name]
    found = nnunet_labels(write_model(case, tmp_path / "model"), write_scan(case, tmp_path / "scan"))
    assert different(found, recorded(name, "none")) < 1e-3


@pytest.mark.parametrize("name", [pytest.param("plain", marks=pytest.mark.slow), "2D, transposed"])
def test_an_imported_bundle_is_verified_and_runs_in_monais_runner(tmp_path, run_inference, name):
    case = CASES[name]
    bundle = import_bundle(write_model(case, tmp_path / "model"), tmp_path / "imported").path
    checks = {check.name: check for check in verify(bundle)}
    assert [check.message for check in checks.values() if not check.passed] == []
    scan = sources(case, tmp_path / "scans")
    written = medseg.volumes.read_volume(run_inference(bundle, tmp_path / "scans") / "scan_0000_seg.nii.gz")
    np.testing.assert_array_equal(
        written.array, medseg.load(bundle, device="cpu", backend="torch", precision="fp32").predict(scan).array
    )


def test_a_memory_limit_changes_no_label(tmp_path):
    case = CASES["residual encoder, CT"]
    bundle = import_bundle(write_model(case, tmp_path / "model"), tmp_path / "imported").path
    scan = sources(case, tmp_path / "scan")
    free = medseg.load(
        bundle, device="cpu", backend="torch", precision="fp32", save_probabilities=True, uncertainty=True
    ).predict(scan)
    limited = medseg.load(bundle, device="cpu", backend="torch", precision="fp32", max_ram="16GB").predict(scan)
    np.testing.assert_array_equal(free.array, limited.array)
    outside = free.array.shape[0] - 1, 0, 0  # in the border of zeros, which the network does not see
    assert free.probabilities is not None
    assert free.probabilities["background"][outside] == 1
    with pytest.raises(medseg.errors.MemoryLimitError):
        medseg.load(bundle, device="cpu", backend="torch", precision="fp32", max_ram="1MB").predict(scan)


def test_the_bundle_says_where_it_comes_from(tmp_path):
    bundle = import_bundle(write_model(CASES["plain"], tmp_path / "model"), tmp_path / "imported").path
    record = json.loads((bundle / "models" / "model.json").read_text())
    assert record["imported"]["trainer"] == "nnUNetTrainer"
    assert record["imported"]["configuration"] == "3d_fullres"
    assert sorted(record["imported"]["checkpoints"]) == ["0", "1"]
    members = json.loads((bundle / "models" / "ensemble.json").read_text())["members"]
    assert [(member["file"], member["source"]) for member in members] == [
        ("model.pt", "fold_0"),
        ("model_2.pt", "fold_1"),
    ]
    readme = (bundle / "docs" / "README.md").read_text()
    assert "Dataset999_Generated" in readme
    assert "deep supervision" in readme


def test_one_fold_can_be_chosen(tmp_path):
    model = write_model(CASES["plain"], tmp_path / "model")
    both, second = (import_bundle(model, tmp_path / str(n), folds=folds).path for n, folds in enumerate([(), ("1",)]))
    expected = medseg.load_network(both).members[1].state_dict()
    found = medseg.load_network(second).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in found.items())


def test_altered_weights_of_a_member_are_refused(tmp_path):
    bundle = import_bundle(write_model(CASES["plain"], tmp_path / "model"), tmp_path / "imported").path
    member = bundle / "models" / "model_2.pt"
    member.write_bytes(member.read_bytes()[:-1] + b"x")
    with pytest.raises(medseg.errors.WeightsError, match=r"model_2\.pt"):
        medseg.load(bundle)


@pytest.mark.parametrize("name", [pytest.param("plain", marks=pytest.mark.slow), "two channels, regions"])
def test_the_exported_runner_needs_numpy_and_onnxruntime_alone_and_gives_the_same_labels(tmp_path, name):
    pytest.importorskip("onnxruntime")
    import subprocess
    import sys

    case = CASES[name]
    bundle = import_bundle(write_model(case, tmp_path / "model"), tmp_path / "imported").path
    export(bundle, "onnx", tmp_path / "out" / "net.onnx")
    scans = write_scan(case, tmp_path / "scan")
    files = [str(path) for path in scans]
    program = (
        "import sys, runpy\n"
        "for name in ('medseg', 'torch', 'monai', 'scipy', 'nibabel'):\n    sys.modules[name] = None\n"
        "sys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    out = tmp_path / "labels.nii.gz"
    command = [sys.executable, "-c", program, tmp_path / "out" / "run_onnx.py", tmp_path / "out" / "net.json"]
    subprocess.run([*map(str, command), ",".join(files), str(out)], check=True, capture_output=True, timeout=240)
    expected = medseg.load(bundle, device="cpu", backend="torch", precision="fp32").predict(
        files if len(files) > 1 else files[0]
    )
    written = medseg.volumes.read_volume(out)
    np.testing.assert_array_equal(
        written.affine if hasattr(written, "affine") else written.grid.affine, expected.affine
    )
    assert different(written.array, expected.array) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["anisotropic, batch norm", "2D, transposed", "two channels, regions"])
def test_an_imported_network_trains_on_from_its_own_weights(tmp_path, name):
    case = CASES[name]
    bundle = import_bundle(write_model(case, tmp_path / "model"), tmp_path / "imported").path
    raw = tmp_path / "Dataset999_Generated"
    for number in range(5):
        for channel, path in enumerate(write_scan(case, tmp_path / "scan")):
            (raw / "imagesTr").mkdir(parents=True, exist_ok=True)
            path.rename(raw / "imagesTr" / f"case{number}_{channel:04d}.nii.gz")
        image = nib.load(raw / "imagesTr" / f"case{number}_0000.nii.gz")
        labels = np.random.default_rng(number).integers(0, 4 if case.order else 3, image.shape).astype(np.uint8)
        (raw / "labelsTr").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(labels, image.affine), raw / "labelsTr" / f"case{number}.nii.gz")
    (raw / "dataset.json").write_text(json.dumps(dataset_of(case)))
    run(
        config_file=str(bundle / "configs" / "train.json"),
        bundle_root=str(bundle),
        dataset_dir=str(raw),
        output_dir=str(tmp_path / "run"),
        max_epochs=1,
        val_interval=1,
        init_weights=str(bundle / "models" / "model.pt"),
    )
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert record["steps"] > 0
    assert np.isfinite(record["validation"]["val_mean_dice"])
