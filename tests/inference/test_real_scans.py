"""Tests of real scans through the whole pipeline."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from inference.plans import small_plan
from inference.thin_network import ThresholdNetwork, thin_network
from monai.data import DataLoader, Dataset, decollate_batch
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd, Spacingd

from medseg.inference import Predictor, SlidingWindowInferer
from medseg.inference.preprocessing import AXIS_LABELS
from medseg.transforms import NormalizeIntensityByModalityd, RestoreToNatived

SHARED = Path(os.environ.get("MEDSEG_SHARED_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"))
pytestmark = [pytest.mark.data, pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not here")]


@pytest.mark.parametrize("spacing", [None, [1.0, 1.0, 1.0], [1.3, 0.8, 1.1]])
def test_hippocampus_scans_have_the_labels_of_monai(spacing: list[float] | None) -> None:
    plan = small_plan(spacing=spacing, orientation="LPS", tile=[24, 24, 24])
    network = thin_network(6, 3)
    steps = [
        LoadImaged(keys="image"),
        EnsureChannelFirstd(keys="image"),
        Orientationd(keys="image", axcodes=plan.orientation, labels=AXIS_LABELS),
        *([Spacingd(keys="image", pixdim=spacing)] if spacing else []),
        NormalizeIntensityByModalityd(keys="image", normalization=plan.normalization),
    ]
    paths = sorted((SHARED / "hippocampus" / "images").glob("*.nii.gz"))[:3]
    for path, batch in zip(paths, DataLoader(Dataset([{"image": p} for p in paths], Compose(steps))), strict=True):
        with torch.no_grad():
            batch["pred"] = SlidingWindowInferer(plan.tile, overlap=plan.overlap, mode=plan.blending)(
                batch["image"], network
            )
        restored = RestoreToNatived(keys="pred", label_values=plan.label_values)(decollate_batch(batch)[0])["pred"]
        seg = Predictor(network, plan, "cpu").predict(path)
        np.testing.assert_array_equal(restored[0].numpy(), seg.array)
        assert seg.array.shape == nib.load(path).shape
        assert len(np.unique(seg.array)) > 1


def test_the_segmentation_of_a_dicom_series_has_its_grid(tmp_path: Path) -> None:
    folder = SHARED / "ct_abdomen" / "dicom_series"
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    series = reader.Execute()
    plan = small_plan(
        labels={"background": 0, "body": 1}, spacing=None, normalization=[{"scheme": "none"}], tile=[128, 128, 16]
    )
    seg = Predictor(ThresholdNetwork(level=-300), plan, "cpu").predict(folder)
    written = sitk.ReadImage(str(seg.save(tmp_path / "body.nii.gz")))
    assert written.GetSize() == series.GetSize()
    np.testing.assert_allclose(written.GetOrigin(), series.GetOrigin(), atol=1e-3)
    np.testing.assert_allclose(written.GetSpacing(), series.GetSpacing(), atol=1e-5)
    np.testing.assert_allclose(written.GetDirection(), series.GetDirection(), atol=1e-5)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(series) > -300)
