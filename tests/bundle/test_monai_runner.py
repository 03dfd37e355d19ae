"""MONAI's runner with inference.json writes files like those of `medseg predict`, and errors in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from bundle.tiny_bundles import add_fingerprint
from volumes.dicom_series import write_series

import medseg


def oblique_scan(path: Path, shape: tuple[int, ...], image_class: type = nib.Nifti1Image) -> Path:
    """Write a scan whose sform and qform differ and have different codes, with units of space and time."""
    tilted = nib.affines.from_matvec(
        np.array([[0.0, -0.98, 0.199], [1.0, 0.0, 0.0], [0.0, -0.199, -0.98]]) * [1.1, 0.9, 1.9], [-20.5, 13, 40]
    )
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    image = image_class(array, tilted)
    image.set_sform(tilted, code=4)
    image.set_qform(np.diag([1.1, 0.9, 1.9, 1]), code=1)
    image.header.set_xyzt_units("mm", "sec")
    path.parent.mkdir(exist_ok=True)
    nib.save(image, path)
    return path


@pytest.mark.parametrize("shape", [(21, 34, 19), (21, 34, 1)])
@pytest.mark.parametrize("image_class", [nib.Nifti1Image, nib.Nifti2Image])
def test_grid_codes_and_units_of_the_scan_are_kept(bundle, tmp_path, run_inference, shape, image_class):
    scan = oblique_scan(tmp_path / "scans" / "case.nii.gz", shape, image_class)
    predicted = nib.load(run_inference(bundle, scan.parent) / "case_seg.nii.gz")
    given = nib.load(scan)
    ours = nib.load(medseg.load(bundle).predict(scan).save(tmp_path / "ours.nii.gz"))
    assert predicted.shape == given.shape
    assert predicted.header.get_xyzt_units() == ("mm", "sec")
    assert (int(predicted.header["sform_code"]), int(predicted.header["qform_code"])) == (4, 1)
    np.testing.assert_array_equal(predicted.affine, given.affine)
    np.testing.assert_array_equal(predicted.get_qform(), given.get_qform())
    assert predicted.header == ours.header
    np.testing.assert_array_equal(predicted.get_fdata(), ours.get_fdata())


def test_every_format_is_read_and_gives_the_same_labels(bundle, tmp_path, run_inference):
    scan = oblique_scan(tmp_path / "nifti" / "case.nii.gz", (21, 34, 19))
    image = sitk.ReadImage(str(scan))
    (tmp_path / "scans").mkdir()
    for name in ("a.nrrd", "b.mha", "c.nii"):
        sitk.WriteImage(image, str(tmp_path / "scans" / name))
    write_series(tmp_path / "scans" / "series")
    out = run_inference(bundle, tmp_path / "scans")
    model = medseg.load(bundle)
    for name in ("a.nrrd", "b.mha", "c.nii", "series"):
        expected = model.predict(tmp_path / "scans" / name)
        found = nib.load(out / f"{name.split('.')[0]}_seg.nii.gz")
        np.testing.assert_array_equal(found.get_fdata(), expected.array)
        np.testing.assert_allclose(found.affine, expected.affine, atol=1e-5)


@pytest.mark.parametrize(("range_ml", "is_suspicious"), [((1e-6, 1e6), False), ((1e5, 1e6), True)])
def test_records_state_what_is_suspicious_as_ours_do(bundle, scan, tmp_path, run_inference, range_ml, is_suspicious):
    add_fingerprint(bundle, range_ml)
    ours = medseg.load(bundle).predict(scan)
    ours.save(tmp_path / "ours.nii.gz")
    expected = json.loads((tmp_path / "ours.json").read_text())
    found = json.loads((run_inference(bundle, scan.parent) / "case_a_seg.json").read_text())
    assert bool(found["suspicions"]) == is_suspicious
    for key in ("status", "suspicions", "volumes_ml", "labels", "plan_sha256", "weights_sha256"):
        assert found[key] == expected[key], key
    assert found["output"] == "case_a_seg.nii.gz"
    assert found["input"] == [str(scan)]


def run(bundle: Path, *options: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "monai.bundle", "run", "--bundle_root", bundle]
    command += ["--config_file", bundle / "configs" / "inference.json"]
    return subprocess.run(
        [str(word) for word in (*command, *options)], capture_output=True, text=True, timeout=240, check=False
    )


def empty_folder(folder: Path) -> tuple[Path, Path, list[str]]:
    (folder / "empty").mkdir()
    return folder / "empty", folder / "empty", ["empty"]


def absent_folder(folder: Path) -> tuple[Path, Path, list[str]]:
    return folder / "absent", folder / "absent", ["no such file"]


def damaged_scan(folder: Path) -> tuple[Path, Path, list[str]]:
    (folder / "damaged").mkdir()
    (folder / "damaged" / "a.nii.gz").write_bytes(b"")
    return folder / "damaged", folder / "damaged" / "a.nii.gz", ["0 bytes"]


def truncated_scan(folder: Path) -> tuple[Path, Path, list[str]]:
    path = oblique_scan(folder / "truncated" / "a.nii", (9, 9, 9))
    path.write_bytes(path.read_bytes()[:1000])
    return path.parent, path, ["(9, 9, 9)", "2916", "1000"]


@pytest.mark.parametrize("make", [empty_folder, absent_folder, damaged_scan, truncated_scan])
def test_a_wrong_dataset_dir_is_reported_in_one_line(bundle, tmp_path, make):
    given, file, facts = make(tmp_path)
    done = run(bundle, "--dataset_dir", given, "--output_dir", tmp_path / "out")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"medseg: {file}: ")
    assert [fact for fact in facts if fact not in last] == []
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("out/*"))


def test_missing_weights_are_reported_in_one_line(bundle, scan, tmp_path):
    (bundle / "models" / "model.pt").unlink()
    done = run(bundle, "--dataset_dir", scan.parent, "--output_dir", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"medseg: {bundle / 'models' / 'model.pt'}: ")
    assert "Traceback" not in done.stderr  # MONAI's StatsHandler would log one
