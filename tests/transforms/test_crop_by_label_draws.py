"""RandCropByLabel draws centres uniformly (brute force, chi-square, MONAI), and what it does without a label."""

import warnings

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import RandCropByLabelClasses
from scipy.stats import chisquare
from transforms.labelled_volumes import few_labels, numbered, rare_labels

from medseg.transforms import (
    RandCropByLabel,
    VoxelIndex,
)


@pytest.mark.parametrize("ratios", [[1, 2, 5], {"0": 1, "1": 2, "2": 5}, {2: 0.5, 0: 0.1, 1: 0.2, 7: 0}])
def test_every_voxel_of_a_class_is_as_likely_as_the_next(ratios):
    """Chi-square of patches of one voxel (the patch is its centre) against ratio / Σ ratios / count of the class."""
    label = few_labels()
    crop = RandCropByLabel(1, ratios, num_samples=60_000)
    crop.set_random_state(seed=7)
    crop.randomize(VoxelIndex.from_label(label))
    drawn = np.bincount(np.ravel_multi_index(np.array(crop.starts).T, label.shape[1:]), minlength=label.size)
    flat = label.ravel()
    share = np.array([1, 2, 5]) / 8
    expected = 60_000 * share[flat] / np.bincount(flat)[flat]
    assert chisquare(drawn, expected).pvalue > 1e-3
    assert chisquare(np.bincount(crop.labels), 60_000 * share).pvalue > 1e-3
    assert crop.num_fallbacks == 0


def test_no_ratios_means_every_label_present_equally():
    label = np.where(rare_labels() == 1, 5, rare_labels())
    crop = RandCropByLabel(4, num_samples=3000).set_random_state(seed=0)
    crop.randomize(VoxelIndex.from_label(label))
    values, counts = np.unique(crop.labels, return_counts=True)
    assert values.tolist() == [0, 2, 5]
    assert chisquare(counts).pvalue > 1e-3


def test_the_label_drawn_is_at_the_centre():
    label = rare_labels()
    crop = RandCropByLabel((6, 5, 4), {1: 1}, num_samples=50).set_random_state(seed=1)
    for patch, start in zip(crop(label), crop.starts, strict=True):
        assert (patch == 1).any()
        # an interior class is not shifted by the border: the centre voxel itself has the label
        assert label[0, start[0] + 3, start[1] + 2, start[2] + 2] == 1 or min(start) == 0
        assert patch.meta["crop_label"] == 1


def test_missing_label_falls_back_counts_and_names_the_case():
    label = rare_labels()
    image = MetaTensor(torch.from_numpy(label).float(), meta={"filename_or_obj": "case_3.nii.gz"})
    crop = RandCropByLabel(1, {9: 1, 1: 1}, num_samples=4000).set_random_state(seed=2)
    with pytest.warns(UserWarning, match=r"case_3\.nii\.gz has no voxel of label 9"):
        patches = crop(image, label)
    fallbacks = [start for start, drawn in zip(crop.starts, crop.labels, strict=True) if drawn == -1]
    assert crop.num_fallbacks == len(fallbacks) == sum(p.meta["crop_label"] == -1 for p in patches)
    assert abs(len(fallbacks) - 2000) < 5 * np.sqrt(1000)
    # uniform over the image: as many in each half of each axis, within five deviations
    places = np.array(fallbacks)
    for axis, extent in enumerate(label.shape[1:]):
        assert abs((places[:, axis] < extent / 2).mean() - 0.5) < 5 * 0.5 / np.sqrt(len(places))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        crop(image, label)


@pytest.mark.filterwarnings("ignore:.*no voxel of label")
def test_fallback_is_uniform_over_the_allowed_region():
    label = few_labels()
    allowed = np.zeros(label.shape, bool)
    allowed[0, 1:4, 1, 1:3] = True
    crop = RandCropByLabel(1, {9: 1}, num_samples=12_000).set_random_state(seed=3)
    crop.randomize(VoxelIndex.from_label(label, allowed))
    places, counts = np.unique(crop.starts, axis=0, return_counts=True)
    np.testing.assert_array_equal(places, np.argwhere(allowed[0]))
    assert chisquare(counts).pvalue > 1e-3


@pytest.mark.filterwarnings("ignore:.*no voxel of label")
def test_an_empty_allowed_region_falls_back_to_the_image():
    crop = RandCropByLabel(2, [1, 1], num_samples=5).set_random_state(seed=4)
    patches = crop(numbered((4, 4, 4)), np.ones((1, 4, 4, 4)), allowed=np.zeros((1, 4, 4, 4)))
    assert len(patches) == crop.num_fallbacks == 5


def test_centres_stay_in_the_allowed_region():
    label = rare_labels()
    allowed = np.zeros(label.shape)
    allowed[:, 8:] = 1
    crop = RandCropByLabel(1, {0: 1, 2: 1}, num_samples=500).set_random_state(seed=5)
    crop(label, allowed=allowed)
    assert min(start[0] for start in crop.starts) >= 8
    with pytest.raises(ValueError, match="give it to LabelVoxelIndexd"):
        crop(label, index=VoxelIndex.from_label(label), allowed=allowed)


def test_monai_draws_the_same_frequencies():
    """The peer's own draw of centres over the same label map agrees with ours, class by class."""
    label = rare_labels()
    ratios = [1, 1, 2]
    theirs = RandCropByLabelClasses(1, ratios=ratios, label=label, num_classes=3, num_samples=4000)
    theirs.set_random_state(seed=9)
    theirs.randomize(label)
    drawn = [int(label[(0, *centre)]) for centre in theirs.centers]
    ours = RandCropByLabel(1, ratios, num_samples=4000).set_random_state(seed=9)
    ours.randomize(VoxelIndex.from_label(label))
    difference = np.bincount(drawn) - np.bincount(ours.labels)
    assert np.abs(difference).max() < 5 * np.sqrt(2 * 4000 * 0.25)
