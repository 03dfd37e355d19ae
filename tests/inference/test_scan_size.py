"""Scans whose voxel size is wrong by magnitudes, and scans whose voxels are rightly large."""

from __future__ import annotations

import re
from math import prod
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from inference.plans import small_plan
from inference.thin_network import ThresholdNetwork

from medseg.errors import GeometryError, MemoryLimitError
from medseg.inference import Predictor, ScanReader, SlicePredictor, scan_size
from medseg.inference.preprocessing import model_grid
from medseg.inference.regions.atlas import Template, locate
from medseg.inference.scan_size import check_growth, check_memory
from medseg.plan import Plan
from medseg.volumes import Grid

LABELS = {"background": 0, "bright": 1}


def plan_of_volumes() -> Plan:
    return small_plan(labels=LABELS, spacing=[1, 1, 1])


def plan_of_slices() -> Plan:
    return small_plan(
        spatial_dims=2, orientation="RA", slice_axis="S", patch=[16, 16], tile=[16, 16], spacing=[1, 1], labels=LABELS
    )


class Watched(ThresholdNetwork):
    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(x)


def cube(size_mm: float, voxels: int = 12) -> Grid:
    return Grid((voxels,) * 3, np.diag([size_mm, size_mm, size_mm, 1]))


@pytest.mark.parametrize("size", [40.0, 100.0, 1000.0, 1e12])
@pytest.mark.parametrize("max_ram", [None, "8GB"])
def test_a_voxel_size_wrong_by_magnitudes_is_refused_before_the_work(size: float, max_ram: str | None) -> None:
    network = Watched()
    array = np.random.default_rng(0).normal(size=(12, 12, 12))
    predictors: list[Predictor] = [Predictor(network, plan_of_volumes(), "cpu", max_ram=max_ram)]
    if size >= 1000:  # slices of 1200 by 1200 pixels are harmless
        predictors.append(SlicePredictor(network, plan_of_slices(), "cpu", max_ram=max_ram))
    network.calls = 0
    for predictor in predictors:
        with pytest.raises(GeometryError, match=re.escape(f"{size:.4g}×") + ".*--force"):
            predictor.predict((array, cube(size).affine))
    assert network.calls == 0


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        ((64, 64, 48), 4.0),  # a head in a functional series: 64 times its voxels at 1 mm
        ((100, 100, 100), 4.0),  # a trunk in PET
        ((48, 48, 48), 5.0),
    ],
)
def test_coarse_clinical_scans_are_accepted(shape: tuple[int, ...], spacing: float) -> None:
    grid = Grid(shape, np.diag([spacing, spacing, spacing, 1]))
    assert prod(model_grid(grid, plan_of_volumes()).shape) > 50 * prod(shape)
    check_growth("scan", grid, plan_of_volumes())


def test_a_coarse_scan_is_predicted_on_its_own_grid() -> None:
    array = np.zeros((9, 9, 9))
    array[3:6, 3:6, 3:6] = 10
    plan = small_plan(labels=LABELS, spacing=[1, 1, 1], normalization=[{"scheme": "none"}])
    labels = Predictor(ThresholdNetwork(5.0), plan, "cpu").predict((array, cube(4.0).affine)).array
    np.testing.assert_array_equal(labels, array > 5)


def test_force_accepts_what_fits_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of_volumes()
    check_growth("scan", cube(40.0), plan, force=True)
    monkeypatch.setattr(scan_size, "physical_memory", lambda: 2**28)
    predictor = Predictor(Watched(), plan, "cpu", force=True)
    with pytest.raises(MemoryLimitError, match=r"40×40×40 mm"):
        predictor.predict((np.ones((12, 12, 12)), cube(40.0).affine))
    check_growth("scan", cube(3.5, voxels=200), plan)  # 43 times as many voxels
    with pytest.raises(MemoryLimitError, match=r"scan: .*voxel size"):
        check_memory("scan", cube(3.5, voxels=200), plan)
    check_memory("scan", cube(0.5, voxels=1000), plan)  # resampling makes it smaller


@pytest.mark.parametrize("plan", [plan_of_volumes(), plan_of_slices()], ids=["volumes", "slices"])
def test_monais_runner_refuses_the_same_scans(tmp_path: Path, plan: Plan) -> None:
    path = tmp_path / "scan.nii.gz"
    for size, is_refused in ((1.0, False), (1000.0, True)):
        nib.save(nib.Nifti1Image(np.ones((12, 12, 12), np.float32), cube(size).affine), path)
        reader = ScanReader(plan)
        if not is_refused:
            assert reader.get_data(reader.read(path))[0].shape == (1, 12, 12, 12)
            continue
        with pytest.raises(GeometryError, match=r"scan\.nii\.gz.*1000×"):
            reader.get_data(reader.read(path))


def test_regions_are_not_searched_in_a_scan_of_wrong_size() -> None:
    template = Template(np.ones((10, 10, 10), np.float32), cube(4.0).affine)
    array = np.random.default_rng(0).normal(size=(12, 12, 12)).astype(np.float32)
    with pytest.raises(GeometryError, match=r"head: .*1000×1000×1000 mm"):
        locate(array, cube(1000.0).affine, template, {"left": (0, 0, 0)}, "head")


def test_voxels_of_micrometres_read_as_mm_are_a_warning() -> None:
    array = np.random.default_rng(0).normal(size=(30, 30, 30))
    predictor = Predictor(ThresholdNetwork(), small_plan(labels=LABELS), "cpu")
    for size, is_noted in ((0.002, True), (1.0, False), (3.0, False), (0.3, False)):
        warnings = predictor.predict((array, np.diag([size, size, size, 1]))).provenance["warnings"]
        assert any(f"{size}×{size}×{size} mm" in line for line in warnings) == is_noted
