"""The bundle for whole heads, on real heads."""

from __future__ import annotations

import shutil

import nibabel as nib
import numpy as np
import pytest
from bundle.tiny_bundles import BUNDLES

import medseg
from medseg.bundle import BundleFolder, compute_fingerprint
from medseg.datasets import read_manifest
from medseg.errors import OptionError, RegionError, ScanError

FOLDER = BUNDLES / "brain_t1_hippocampi_segmentation"
FLAGSHIP = BUNDLES / "hippocampus_unet3d_segmentation"
HALVES = {"left": (1, 2), "right": (3, 4)}


@pytest.fixture(scope="module")
def model():
    return medseg.load(FOLDER, device="cpu", precision="fp32")


def test_its_preprocessing_is_that_of_the_crops_it_was_trained_on():
    ours, theirs = BundleFolder(FOLDER), BundleFolder(FLAGSHIP)
    for key in ("spacing", "orientation", "normalization", "tile", "overlap", "blending"):
        assert getattr(ours.plan, key) == getattr(theirs.plan, key)
    assert list(ours.plan.regions["channels"]) == theirs.plan.label_names


def test_the_template_is_small_and_its_notice_lies_beside_it():
    files = {file.name: file for file in (FOLDER / "atlas").iterdir()}
    assert sum(file.stat().st_size for file in files.values()) < 100_000
    assert "McConnell Brain Imaging Centre" in files["LICENSE.txt"].read_text(encoding="utf-8")


def test_centres_are_refused_by_a_bundle_without_regions():
    with pytest.raises(OptionError, match="region"):
        medseg.load(FLAGSHIP, device="cpu", region_centers_mm={"left": (0, 0, 0)})


@pytest.mark.data
def test_dice_against_freesurfer_and_places_of_the_sides(model, shared_data):
    found = model.predict(shared_data / "brain_t1" / "t1_brain.mgz")
    reference = np.asarray(nib.load(shared_data / "brain_t1" / "t1_brain_hippocampi.nii.gz").dataobj)
    for value, side in ((1, "left"), (2, "right")):
        mine, theirs = np.isin(found.array, HALVES[side]), reference == value
        assert 2 * (mine & theirs).sum() / (mine.sum() + theirs.sum()) >= 0.78
        front, back = (np.argwhere(found.array == label) for label in HALVES[side])
        position = [points.mean(0) @ found.affine[:3, :3].T + found.affine[:3, 3] for points in (front, back)]
        assert position[0][1] > position[1][1], "anterior lies in front of posterior"


@pytest.mark.data
def test_monais_runner_gives_the_same_labels(model, shared_data, run_inference, tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    shutil.copy(shared_data / "brain_t1" / "t1_with_skull.nii.gz", scans / "head.nii.gz")
    expected = model.predict(scans / "head.nii.gz")
    found = nib.load(run_inference(FOLDER, scans) / "head_seg.nii.gz")
    np.testing.assert_array_equal(np.asarray(found.dataobj), expected.array)
    assert all(2.5 < sum(expected.volumes_ml()[f"{side}_{part}"] for part in ("anterior", "posterior")) < 5
               for side in HALVES)  # fmt: skip


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("codes", ["LPI", "ASR", "IRP"])
def test_other_axes_change_nothing(model, shared_data, codes):
    image = nib.load(shared_data / "brain_t1" / "t1_with_skull.nii.gz")
    change = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes))
    found, expected = model.predict(image.as_reoriented(change)).volumes_ml(), model.predict(image).volumes_ml()
    assert found == pytest.approx(expected, rel=0.02)


@pytest.mark.data
def test_a_crop_of_one_hippocampus_and_half_a_head_are_refused(model, shared_data):
    with pytest.raises(RegionError, match="hippocampus_001"):
        model.predict(shared_data / "hippocampus" / "images" / "hippocampus_001.nii.gz")
    image = nib.load(shared_data / "brain_t1" / "t1_with_skull.nii.gz")
    with pytest.raises(RegionError):
        model.predict(image.slicer[100:])


@pytest.mark.data
def test_a_spinal_cord_is_refused(model, shared_data):
    with pytest.raises(RegionError, match=r"t2\.nii\.gz"):
        model.predict(shared_data / "spinal_cord" / "t2.nii.gz")


@pytest.mark.data
def test_a_whole_head_is_refused_by_the_bundle_of_crops(shared_data):
    crops = medseg.load(FLAGSHIP, device="cpu")
    with pytest.raises(ScanError) as caught:
        crops.predict(shared_data / "brain_t1" / "t1_with_skull.nii.gz")
    for fact in ("t1_with_skull.nii.gz", "165×225×167", "42×58×45", "brain_t1_hippocampi_segmentation", "--force"):
        assert fact in str(caught.value)


@pytest.mark.data
def test_normal_crops_raise_no_alarm(shared_data):
    crops = medseg.load(FLAGSHIP, device="cpu")
    images = sorted((shared_data / "hippocampus" / "images").glob("*.nii.gz"))[::20]
    assert [crops.predict(image).suspicions for image in images] == [[]] * len(images)


@pytest.mark.data
def test_the_fingerprint_is_that_of_the_flagships_training_data(shared_data):
    ours, theirs = BundleFolder(FOLDER).fingerprint, BundleFolder(FLAGSHIP).fingerprint
    plan = BundleFolder(FLAGSHIP).plan
    assert (
        compute_fingerprint(
            plan, read_manifest("hippocampus"), shared_data / "hippocampus", for_whole_scans=FOLDER.name
        ).to_dict()
        == theirs.to_dict()
    )
    assert ours.labels["left_anterior"] == ours.labels["right_anterior"] == theirs.labels["anterior"]
