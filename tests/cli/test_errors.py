"""Errors of the input: one line, exit code 1, and no partial files."""

import gzip
import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from cli.commands import run, write

from medseg import weights
from medseg.cli import main


def scan_missing(folder: Path) -> Path:
    return folder / "absent.nii.gz"


def scan_truncated(folder: Path) -> Path:
    path = write(folder / "truncated.nii.gz", np.random.default_rng(0).normal(size=(12, 12, 12)).astype(np.float32))
    path.write_bytes(path.read_bytes()[:900])
    return path


def scan_empty(folder: Path) -> Path:
    path = folder / "empty.nii.gz"
    path.write_bytes(b"")
    return path


def scan_not_an_image(folder: Path) -> Path:
    path = folder / "notes.nii.gz"
    path.write_bytes(gzip.compress(b"patient notes, not an image" * 50))
    return path


def scan_4d(folder: Path) -> Path:
    return write(folder / "series.nii.gz", np.zeros((8, 8, 8, 3), np.float32))


@pytest.mark.parametrize(
    ("make", "fact"),
    [
        (scan_missing, "no such file"),
        (scan_truncated, "truncated"),
        (scan_empty, "0 bytes"),
        (scan_not_an_image, "NIfTI"),
        (scan_4d, "4D.*3D"),
    ],
)
def test_a_bad_scan_is_one_line_and_the_good_one_is_done(capsys, bundle, tmp_path, make, fact):
    bad = make(tmp_path)
    good = write(tmp_path / "good.nii.gz", np.random.default_rng(1).normal(size=(9, 10, 11)).astype(np.float32))
    code, out, err = run(capsys, "predict", bundle, bad, good, "--out", tmp_path / "out")
    assert code == 1
    lines = [line for line in (out + err).splitlines() if bad.name in line]
    assert lines
    message = lines[0].replace(str(bad), "").replace(bad.name, "")  # the fact must not be found in the file's name
    assert re.search(fact, message), lines
    assert "Traceback" not in out + err
    assert not list(tmp_path.glob("out/*partial*"))
    assert not list(tmp_path.glob(f"out/{bad.name.split('.')[0]}*"))
    if bad.exists():
        assert (tmp_path / "out" / "good.nii.gz").is_file()


def test_absent_weights(capsys, bundle, tmp_path):
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    (copy / "models" / "model.pt").unlink()
    scan = write(tmp_path / "scan.nii.gz", np.zeros((8, 8, 8), np.float32))
    code, _, err = run(capsys, "predict", copy, scan, "--out", tmp_path / "out")
    assert code == 1
    assert "model.pt" in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_predictions_have_the_geometry_of_the_scan(capsys, bundle, tmp_path):
    affine = np.array([[0, -1.5, 0, 4], [2, 0, 0, -3], [0, 0, -1, 7], [0, 0, 0, 1.0]])
    scan = write(tmp_path / "s.nii.gz", np.random.default_rng(1).normal(size=(9, 10, 11)).astype(np.float32), affine)
    code, out, _ = run(capsys, "predict", bundle, scan, "--out", tmp_path / "out", "--json")
    assert code == 0
    assert json.loads(out)[0]["status"] == "done"
    found = nib.load(tmp_path / "out" / "s.nii.gz")
    assert found.shape == (9, 10, 11)
    np.testing.assert_array_equal(found.affine, nib.load(scan).affine)
    record = json.loads((tmp_path / "out" / "s.json").read_text())
    assert record["weights_sha256"] == [weights.sha256(bundle / "models" / "model.pt")]


def dataset(root: Path, **files: np.ndarray) -> Path:
    """Write a dataset of two cases with its manifest; `files` replaces arrays by name, e.g. label_b."""
    arrays = {f"{kind}_{case}": np.zeros((6, 6, 6), np.uint8) for kind in ("image", "label") for case in "ab"}
    for name, array in {**arrays, **files}.items():
        kind, case = name.split("_")
        write(root / "data" / f"{kind}s" / f"{case}.nii.gz", array)
    manifest = {
        "schema_version": 1,
        "name": "two_cases",
        "description": "two small cases",
        "spatial_dims": 3,
        "channels": [{"name": "t1", "modality": "MR"}],
        "labels": {"background": 0, "thing": 1},
        "files": {"image": "images/{case}.nii.gz", "label": "labels/{case}.nii.gz"},
        "source": {"page": "none"},
        "licence": "CC0-1.0",
        "citations": [],
        "cases": ["a", "b"],
    }
    path = root / "two_cases.yaml"
    path.write_text(yaml.safe_dump(manifest))
    return path


def prepare(capsys: pytest.CaptureFixture, manifest: Path) -> tuple[int, str]:
    code, out, err = run(
        capsys, "data", "prepare", manifest, "--root", manifest.parent / "prepared", "--from", manifest.parent / "data"
    )
    assert "Traceback" not in out + err
    return code, out + err


def test_a_good_dataset_is_prepared(capsys, tmp_path):
    code, _ = prepare(capsys, dataset(tmp_path))
    assert code == 0


def test_image_and_label_on_different_grids(capsys, tmp_path):
    code, text = prepare(capsys, dataset(tmp_path, label_b=np.zeros((6, 6, 7), np.uint8)))
    assert code == 1
    line = next(line for line in text.splitlines() if "b" in line and "(6, 6, 7)" in line)
    assert "(6, 6, 6)" in line


def test_label_values_outside_the_manifest(capsys, tmp_path):
    label = np.zeros((6, 6, 6), np.uint8)
    label[2, 2, 2] = 9
    code, text = prepare(capsys, dataset(tmp_path, label_b=label))
    assert code == 1
    assert any("9" in line and "b" in line for line in text.splitlines())


def test_a_case_id_twice(capsys, tmp_path):
    manifest = dataset(tmp_path)
    manifest.write_text(manifest.read_text().replace("cases:\n- a\n- b", "cases:\n- a\n- a"))
    code, text = prepare(capsys, manifest)
    assert code == 1
    assert "twice" in text
    assert not (tmp_path / "prepared").exists()


def test_debug_shows_the_traceback(bundle, tmp_path):
    from medseg.errors import VolumeError

    with pytest.raises(VolumeError):
        main(["predict", str(bundle), str(tmp_path / "absent.nii.gz"), "--out", str(tmp_path), "--debug"])


def test_stdout_contains_only_json_if_a_prediction_fails(capsys, bundle, tmp_path):
    scan = write(tmp_path / "scan.nii.gz", np.zeros((8, 8, 8), np.float32))
    bad = scan_truncated(tmp_path)
    (tmp_path / "file").write_text("")
    for arguments, fact in (
        ((tmp_path / "no_bundle", scan, "-o", tmp_path / "out"), "no_bundle"),
        ((bundle, scan, "-o", tmp_path / "file"), f"{tmp_path / 'file'}: "),
        ((bundle, scan, "-o", tmp_path / "out", "--weights", tmp_path / "no.pt"), "no.pt"),
        ((bundle, scan, "-o", tmp_path / "out", "--overlap", "2"), "overlap"),
        ((bundle, tmp_path / "*.nrrd", "-o", tmp_path / "out"), "*.nrrd"),
        ((bundle, scan, "-o", tmp_path), "scan.nii.gz"),
    ):
        code, out, err = run(capsys, "predict", *arguments, "--json")
        assert code == 1
        assert fact in json.loads(out)["error"]
        assert err == f"medseg: {json.loads(out)['error']}\n"
    code, out, err = run(capsys, "predict", bundle, scan, bad, "-o", tmp_path / "out", "--json")
    assert code == 1
    assert [result["status"] for result in json.loads(out)] == ["done", "failed"]
    assert "1 of 2" in err.splitlines()[-1]


def test_every_command_with_json_reports_errors_as_json(capsys, bundle, tmp_path):
    absent = tmp_path / "absent"
    for arguments, fact in (
        (("evaluate", absent, absent, "--out", tmp_path / "out"), "absent"),
        (("bundle", "verify", absent), "absent"),
        (("bundle", "promote", bundle, "--from", absent), "absent"),
        (("data", "prepare", "absent", "--root", absent), "absent"),
    ):
        code, out, err = run(capsys, *arguments, "--json")
        assert code == 1
        assert fact in json.loads(out)["error"]
        assert err == f"medseg: {json.loads(out)['error']}\n"


def test_any_exception_of_one_scan_leaves_valid_json_and_the_other_scans(capsys, bundle, tmp_path, monkeypatch):
    from medseg.volumes import nifti

    def fails(path):
        if path.name == "b.nii.gz":
            raise KeyError("inside a library")
        return read(path)

    read = nifti.read
    monkeypatch.setattr(nifti, "read", fails)
    scans = [
        write(tmp_path / f"{name}.nii.gz", np.random.default_rng(1).normal(size=(9, 10, 11)).astype(np.float32))
        for name in "abc"
    ]
    code, out, err = run(capsys, "predict", bundle, *scans, "--out", tmp_path / "out", "--json")
    assert code == 1
    results = json.loads(out)
    assert [(result["case"], result["status"]) for result in results] == [("a", "done"), ("b", "failed"), ("c", "done")]
    assert "b.nii.gz" in results[1]["message"]
    assert "Traceback" not in err
    (tmp_path / "labels").mkdir()
    for name in "abc":
        shutil.copy(tmp_path / "out" / "a.nii.gz", tmp_path / "labels" / f"{name}.nii.gz")
    arguments = ["evaluate", tmp_path / "labels", tmp_path / "labels", "--out", tmp_path / "e", "--json"]
    code, out, err = run(capsys, *arguments)
    assert code == 1
    assert "b.nii.gz" in json.loads(out)["error"]
    assert "Traceback" not in err
    code, out, _ = run(capsys, *arguments, "--allow-missing")
    assert code == 0
    assert json.loads(out)["num_cases"] == 2
