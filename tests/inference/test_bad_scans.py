"""Tests of damaged scans among good ones: each is one line of error, and the others are segmented."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from inference.counting import TWO, make_predictor
from inference.plans import small_plan
from inference.thin_network import ThresholdNetwork

from medseg.errors import NonFiniteError, VolumeError
from medseg.inference import Predictor, SlidingWindowInferer, predict_files, scan_files
from medseg.volumes import Volume, nifti, read_volume


def _nifti(shape: tuple[int, ...] = (4, 5, 6), **fields: Any) -> bytes:
    image = nib.Nifti1Image(np.ones(shape, np.float32), np.eye(4))
    for name, value in {"vox_offset": 352, **fields}.items():
        image.header[name] = value
    return image.header.binaryblock + b"\0" * 4 + np.ones(shape, np.float32).tobytes()


BAD_FILES: dict[str, bytes] = {
    "empty.nii": b"",
    "text.nii": b"not an image at all" * 50,
    "short_header.nii": _nifti()[:200],
    "header_only.nii": _nifti()[:352],
    "half.nii": _nifti()[:600],
    "one_byte_short.nii": _nifti()[:-1],
    "half_gzip.nii.gz": gzip.compress(_nifti((40, 40, 4)))[:60],
    "not_gzip.nii.gz": _nifti(),
    "huge_claim.nii": _nifti(dim=[3, 30000, 30000, 30000, 1, 1, 1, 1]),
    "zero_size.nii": _nifti(dim=[3, 4, 0, 6, 1, 1, 1, 1]),
    "negative_size.nii": _nifti(dim=[3, 4, -5, 6, 1, 1, 1, 1]),
    "unknown_type.nii": _nifti(datatype=9999),
    "rgb.nii": _nifti(datatype=128, bitpix=24),
    "complex.nii": _nifti(datatype=32, bitpix=64),
    "four_d.nii": _nifti((4, 5, 6, 2)),
    "two_d.nii": _nifti((4, 5)),
    "no_numbers.nii": _nifti()[:352] + np.full(120, np.nan, np.float32).tobytes(),
    "infinite.nii": _nifti()[:352] + np.full(120, np.inf, np.float32).tobytes(),
    "singular.nii": _nifti(srow_x=[0, 0, 0, 0], sform_code=1),
    "nan_affine.nii": _nifti(srow_x=[np.nan, 0, 0, 0], sform_code=1),
}


def test_every_damaged_scan_is_one_line_and_the_good_scan_is_done(scans: Path, tmp_path: Path) -> None:
    for name, content in BAD_FILES.items():
        (scans / name).write_bytes(content)
    (scans / "dangling.nii").symlink_to(tmp_path / "nowhere.nii")
    (scans / "folder.nii").mkdir()
    out = tmp_path / "out"
    bad = [scans / name for name in (*BAD_FILES, "dangling.nii", "folder.nii")]
    results = predict_files(make_predictor(), [*bad, scans / "case0.nii.gz"], out)
    assert [r.case for r in results if r.status == "done"] == ["case0"]
    for path, result in zip(bad, results, strict=False):
        assert result.status == "failed", path
        assert path.name in result.message
        assert "\n" not in result.message
    assert sorted(p.name for p in out.iterdir()) == ["case0.json", "case0.nii.gz"]


def test_a_name_with_a_line_break_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a\nb.nii").write_bytes(BAD_FILES["two_d.nii"])
    (tmp_path / "a\nc.nii").write_bytes(BAD_FILES["half.nii"])
    for result in predict_files(make_predictor(), [tmp_path], tmp_path / "out"):
        assert result.status == "failed"
        assert "\n" not in result.message
        assert result.message.count(str(tmp_path)) == 1


def test_a_loop_of_links_is_one_line(scans: Path, tmp_path: Path) -> None:
    (scans / "x.nii").symlink_to("x.nii")
    results = predict_files(make_predictor(), [scans], tmp_path / "out")
    assert [r.status for r in results] == ["done"] * 3 + ["failed"]
    assert "x.nii" in results[3].message
    assert "\n" not in results[3].message


def test_a_defect_fails_its_case_alone_and_is_not_called_out_of_memory(scans: Path, tmp_path: Path) -> None:
    class Broken(ThresholdNetwork):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if float(x.max()) > 1000:
                raise KeyError("a defect")
            return super().forward(x)

    class Hungry(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.empty(2**60)

    plan = small_plan(labels=TWO, spacing=None, normalization=[{"scheme": "none"}])
    nib.save(nib.Nifti1Image(np.full((8, 9, 10), 2000, np.int16), np.eye(4)), scans / "case1.nii.gz")
    results = predict_files(Predictor(Broken(0.0), plan, "cpu"), [scans], tmp_path / "out")
    assert [r.status for r in results] == ["done", "failed", "done"]
    assert str(scans / "case1.nii.gz") in results[1].message
    assert "KeyError" in results[1].message
    assert "memory" not in results[1].message
    results = predict_files(Predictor(Hungry(), plan, "cpu"), [scans], tmp_path / "other")
    assert [r.message.partition(";")[0] for r in results] == [
        f"{scans / f'case{i}.nii.gz'}: out of memory" for i in range(3)
    ]


def test_an_exception_of_the_reader_fails_its_case_alone(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path) -> Volume:
        if path.name == "case1.nii.gz":
            raise AttributeError("of a library")
        return read(path)

    read = nifti.read
    monkeypatch.setattr(nifti, "read", fails)
    results = predict_files(make_predictor(), [scans], tmp_path / "out")
    assert [r.status for r in results] == ["done", "failed", "done"]
    assert str(scans / "case1.nii.gz") in results[1].message
    with pytest.raises(VolumeError, match=r"case1\.nii\.gz.*AttributeError"):
        read_volume(scans / "case1.nii.gz")


@pytest.mark.parametrize("is_first_channel", [True, False])
def test_logits_that_are_not_finite_fail_their_case_alone(scans: Path, tmp_path: Path, is_first_channel: bool) -> None:
    class Overflowing(ThresholdNetwork):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = super().forward(x)
            logits[:, 0 if is_first_channel else 1][x[:, 0] > 1000] = torch.nan if is_first_channel else torch.inf
            return logits

    plan = small_plan(labels=TWO, spacing=None, normalization=[{"scheme": "none"}])
    array = np.random.default_rng(0).normal(size=(8, 9, 40)).astype(np.float32)
    array[4, 4, 30] = 2000
    nib.save(nib.Nifti1Image(array, np.eye(4)), scans / "case1.nii.gz")
    predictor = Predictor(Overflowing(0.0), plan, "cpu")
    results = predict_files(predictor, [scans], tmp_path / "out")
    assert [r.status for r in results] == ["done", "failed", "done"]
    assert str(scans / "case1.nii.gz") in results[1].message
    assert not (tmp_path / "out" / "case1.nii.gz").exists()
    with pytest.raises(NonFiniteError):
        predictor.predict(scans / "case1.nii.gz")
    image = torch.from_numpy(array)[None, None]
    with pytest.raises(NonFiniteError):
        SlidingWindowInferer((16, 16, 16))(image, Overflowing(0.0))


def test_a_case_without_all_of_its_channels_fails_alone(tmp_path: Path) -> None:
    class FirstChannel(ThresholdNetwork):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x[:, :1])

    scans = tmp_path / "scans"
    scans.mkdir()
    rng = np.random.default_rng(0)
    for case in range(5):
        for channel in range(2):
            array = rng.normal(size=(6, 7, 8)).astype(np.float32)
            nib.save(nib.Nifti1Image(array, np.eye(4)), scans / f"s{case}_{channel:04d}.nii.gz")
    (scans / "s2_0001.nii.gz").unlink()
    channels = [{"name": name, "modality": "MR"} for name in ("t1", "t2")]
    plan = small_plan(labels=TWO, spacing=None, channels=channels, normalization=[{"scheme": "none"}] * 2)
    results = predict_files(Predictor(FirstChannel(0.0), plan, "cpu"), [scans], tmp_path / "out")
    assert [(r.case, r.status) for r in results] == [
        ("s0", "done"), ("s1", "done"), ("s2", "failed"), ("s3", "done"), ("s4", "done"),
    ]  # fmt: skip
    assert str(scans / "s2_0000.nii.gz") in results[2].message
    first = nib.load(scans / "s3_0000.nii.gz").get_fdata()
    np.testing.assert_array_equal(nib.load(results[3].output).get_fdata(), first > 0)
    with pytest.raises(VolumeError, match="s2_0000"):
        scan_files([scans], 2)
