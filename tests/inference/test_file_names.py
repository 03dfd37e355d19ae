"""Tests of unusual file names and folders, and of interruptions."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from inference.counting import TWO, make_predictor
from inference.plans import small_plan
from inference.thin_network import ThresholdNetwork

from medseg.errors import VolumeError
from medseg.inference import Predictor, predict_files
from medseg.volumes.result_files import map_path

ARRAY = np.random.default_rng(0).normal(size=(8, 9, 10)).astype(np.float32)


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith((".nii", ".nii.gz")):
        nib.save(nib.Nifti1Image(ARRAY, np.eye(4)), path)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(ARRAY.T), str(path))
    return path


def statuses(predictor: Predictor, inputs: list[Path], out: Path, **options: Any) -> list[str]:
    return [result.status for result in predict_files(predictor, inputs, out, **options)]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("name", ["Größe 脑", "a.b.c", "-o", "x" * 240, "脑" * 80], ids=ascii)
def test_unusual_names_are_kept_and_found_finished(tmp_path: Path, name: str, suffix: str) -> None:
    path = write(tmp_path / "Aufnahmen ä" / (name + suffix))
    for expected in ("done", "skipped"):
        assert statuses(make_predictor(), [path], tmp_path / "out ö") == [expected]
    names = sorted(p.name for p in (tmp_path / "out ö").iterdir())
    assert names == sorted([name + ".json", name + suffix])
    record = json.loads((tmp_path / "out ö" / (name + ".json")).read_text(encoding="utf-8"))
    assert record["input"] == [str(path)]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems' names are always Unicode")
def test_a_name_that_is_not_unicode_is_predicted_or_one_line(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    paths = [write(tmp_path / "plain.nii.gz").rename(tmp_path / f"{name}.nii.gz")]
    paths.append(write(tmp_path / "plain.nrrd").rename(tmp_path / f"{name} 2.nrrd"))
    results = predict_files(make_predictor(), [*paths, write(tmp_path / "good.nii.gz")], tmp_path / "out")
    assert [r.status for r in results] == ["done", "failed", "done"]
    assert f"{name} 2.nrrd" in results[1].message
    assert "\n" not in results[1].message
    assert json.loads((tmp_path / "out" / f"{name}.json").read_text(encoding="utf-8"))["input"] == [str(paths[0])]
    assert statuses(make_predictor(), paths[:1], tmp_path / "out") == ["skipped"]


def test_a_name_too_long_for_its_map_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / ("x" * 247 + ".nii.gz"))
    (result,) = predict_files(make_predictor(uncertainty=True), [path], tmp_path / "out")
    assert result.status == "failed"
    assert "File name too long" in result.message
    assert "\n" not in result.message
    assert not list((tmp_path / "out").iterdir())


def test_the_folder_of_the_scans_is_not_changed(tmp_path: Path) -> None:
    path = write(tmp_path / "scans" / "a.nii.gz")
    before = {p.name: (p.stat().st_mtime_ns, p.stat().st_mode) for p in path.parent.iterdir()}
    path.parent.chmod(0o500)
    try:
        assert statuses(make_predictor(uncertainty=True), [path.parent], tmp_path / "out") == ["done"]
    finally:
        path.parent.chmod(0o700)
    assert {p.name: (p.stat().st_mtime_ns, p.stat().st_mode) for p in path.parent.iterdir()} == before


def test_one_stem_in_two_folders_or_two_formats_is_refused(tmp_path: Path) -> None:
    paths = [write(tmp_path / folder / name) for folder, name in (("a", "x.nii.gz"), ("b", "x.nii.gz"))]
    with pytest.raises(VolumeError, match=r"b.x\.nii\.gz.*a.x\.nii\.gz"):
        predict_files(make_predictor(), paths, tmp_path / "out")
    formats = [paths[0], write(tmp_path / "a" / "x.nrrd")]
    with pytest.raises(VolumeError, match=r"x\.nrrd.*x\.nii\.gz"):
        predict_files(make_predictor(), formats, tmp_path / "out")


def test_label_names_cannot_change_the_folder_of_a_map() -> None:
    assert map_path(Path("out/a.nii.gz"), r"probability_../..\CON:x").parent == Path("out")
    assert map_path(Path("out/a.nii.gz"), r"probability_a\b:c").name == "a_probability_a_b_c.nii.gz"


@pytest.mark.parametrize("max_ram", [None, "16GB"])
def test_an_interrupted_run_leaves_only_finished_cases(tmp_path: Path, max_ram: str | None) -> None:
    class Interrupted(ThresholdNetwork):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not isinstance(x, torch._subclasses.FakeTensor):
                self.calls += 1
            if self.calls > 12:  # in the middle of the second scan's tiles
                raise KeyboardInterrupt
            return super().forward(x)

    paths = [write(tmp_path / "scans" / f"{name}.nii.gz") for name in "abc"]
    plan = small_plan(labels=TWO, normalization=[{"scheme": "none"}], spacing=None, tile=[5, 5, 5], patch=[5, 5, 5])
    predictor = Predictor(Interrupted(), plan, "cpu", backend="torch", max_ram=max_ram, overlap=0.0)
    predictor.backend.network.calls = 0  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        predict_files(predictor, paths, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.json", "a.nii.gz"]
    np.testing.assert_array_equal(nib.load(tmp_path / "out" / "a.nii.gz").get_fdata(), ARRAY > 0)
    assert not [t.name for t in threading.enumerate() if t.name.startswith("medseg")]
    assert statuses(make_predictor(), paths[1:], tmp_path / "out") == ["done", "done"]
