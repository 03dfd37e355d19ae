"""Test RandCropByLabel: its patches against MONAI's crop, and its draws by brute force, chi-square and MONAI."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor, set_track_meta
from monai.transforms import RandCropByLabelClasses, SpatialCrop
from monai.transforms.utils import correct_crop_centers
from scipy.stats import chisquare

from medseg.errors import ShapeError
from medseg.transforms import (
    LabelVoxelIndexd,
    RandCropByLabel,
    RandCropByLabelD,
    RandCropByLabeld,
    RandCropByLabelDict,
    VoxelIndex,
)
from medseg.transforms.crop_by_label import crop_patch

AFFINE = torch.tensor(
    [[0.0, -1.5, 0.0, 10.0], [0.8, 0.0, 0.1, -20.0], [0.0, 0.2, 3.0, 5.0], [0.0, 0.0, 0.0, 1.0]], dtype=torch.float64
)


def numbered(shape, channels=1):
    """Make an image whose voxels hold their own index, so that a patch shows its origin."""
    values = torch.arange(channels * int(np.prod(shape)), dtype=torch.float64).reshape(channels, *shape)
    return MetaTensor(values, affine=AFFINE, meta={"filename_or_obj": "case_3.nii.gz"})


def few_labels():
    """Make a (1, 6, 5, 4) label map with three labels of about 100, 18 and 2 voxels, also at the border."""
    label = np.zeros((1, 6, 5, 4), np.uint8)
    label[0, :3, 1:4, :2] = 1
    label[0, 5, 4, 3] = label[0, 4, 0, 0] = 2
    return label


def rare_labels(shape=(20, 18, 16)):
    label = np.zeros((1, *shape), np.uint8)
    label[0, 3:5, 4:7, 2] = 1
    label[0, 19, 17, 15] = 2
    label[0, 10:14, 9, 8] = 2
    return label


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    shape=st.lists(st.integers(3, 11), min_size=3, max_size=3),
    size=st.lists(st.integers(1, 11), min_size=3, max_size=3),
)
def test_patch_and_affine_equal_monais_crop(seed, shape, size):
    """For equal centres both crop the same place, for odd and even sizes, wherever the patch fits in the image."""
    size = [min(s, n) for s, n in zip(size, shape, strict=True)]
    image = numbered(shape, channels=2)
    label = np.random.default_rng(seed).integers(0, 2, (1, *shape))
    index = VoxelIndex.from_label(label)
    crop = RandCropByLabel(size, num_samples=3).set_random_state(seed=seed)
    patches = crop(image, index=index)
    replay = RandCropByLabel(1, num_samples=3).set_random_state(seed=seed)
    replay.randomize(index)
    for patch, centre in zip(patches, replay.starts, strict=True):
        theirs = SpatialCrop(roi_center=correct_crop_centers(list(centre), size, shape), roi_size=size)(image)
        torch.testing.assert_close(patch.as_tensor(), theirs.as_tensor(), rtol=0, atol=0)
        torch.testing.assert_close(patch.affine, theirs.affine)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    shape=st.lists(st.integers(1, 8), min_size=2, max_size=3),
    size=st.lists(st.integers(1, 12), min_size=3, max_size=3),
)
def test_smaller_images_are_padded_on_both_sides(seed, shape, size):
    """Compare with NumPy: pad first, then slice. The affine keeps the world coordinates of every image voxel."""
    size = size[: len(shape)]
    image = numbered(shape) + 1
    label = np.random.default_rng(seed).integers(0, 3, (1, *shape))
    crop = RandCropByLabel(size, num_samples=2, padding_value=-7).set_random_state(seed=seed)
    for patch, start in zip(crop(image, label), crop.starts, strict=True):
        assert all(
            0 <= s <= n - p if n >= p else s == -((p - n) // 2) for s, n, p in zip(start, shape, size, strict=True)
        )
        wide = np.pad(image.numpy()[0], [(12, 12)] * len(shape), constant_values=-7)
        expected = wide[tuple(slice(12 + s, 12 + s + p) for s, p in zip(start, size, strict=True))]
        np.testing.assert_array_equal(patch.numpy()[0], expected)
        moved = torch.eye(4, dtype=torch.float64)
        moved[: len(shape), -1] = torch.tensor(start, dtype=torch.float64)
        torch.testing.assert_close(patch.affine, AFFINE @ moved)


@pytest.mark.parametrize("kind", ["memmap", "big-endian memmap", "array", "tensor"])
def test_every_kind_of_array_gives_the_same_patches(tmp_path, kind):
    image = numbered((20, 18, 16)).numpy().astype(np.float32)
    label = rare_labels()
    np.save(tmp_path / "image.npy", image.astype(">f4") if "big" in kind else image)
    arrays = {"array": image, "tensor": torch.from_numpy(image)}
    source = arrays.get(kind)
    if source is None:
        source = np.load(tmp_path / "image.npy", mmap_mode="r")
    expected = RandCropByLabel(7, num_samples=4).set_random_state(seed=6)(MetaTensor(image), label)
    found = RandCropByLabel(7, num_samples=4).set_random_state(seed=6)(source, label)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_only_the_patch_is_read():
    """A draw from an index slices the image once per patch and reads nothing else."""

    class Counting:
        shape = (1, 20, 18, 16)
        read = 0

        def __getitem__(self, slices):
            out = rare_labels()[slices]
            Counting.read += out.size
            return out

    index = VoxelIndex.from_label(rare_labels())
    patches = RandCropByLabel(4, num_samples=3).set_random_state(seed=0)(Counting(), index=index)
    assert Counting.read == 3 * 4**3 == sum(p.numel() for p in patches)


def test_patches_own_their_memory():
    image = numbered((9, 9, 9))
    before = image.clone()
    for patch in RandCropByLabel(3, num_samples=2)(image, np.ones((1, 9, 9, 9))):
        assert patch.is_contiguous()
        assert patch.untyped_storage().nbytes() == patch.numel() * patch.element_size()
        patch.fill_(0)
        patch.meta["filename_or_obj"] = "changed"
    torch.testing.assert_close(image, before, rtol=0, atol=0)
    assert image.meta["filename_or_obj"] == "case_3.nii.gz"


def test_dictionary_form_crops_all_keys_alike_and_drops_the_index():
    label = rare_labels()
    data = {"image": numbered(label.shape[1:], 2), "label": label, "name": "a", "region": np.ones_like(label)}
    data["label"] = label
    indexed = LabelVoxelIndexd("label", allowed_key="region")(data)
    crop = RandCropByLabeld(
        ["image", "label", "weight"], "label", (4, 5, 6), [1, 1, 1], 3, allowed_key="region", allow_missing_keys=True
    ).set_random_state(seed=8)
    samples = crop(indexed)
    assert [set(sample) for sample in samples] == [{"image", "label", "name"}] * 3
    for i, sample in enumerate(samples):
        first = np.unravel_index(int(sample["image"].flatten()[0]), label.shape[1:])
        expected = label[(slice(None), *(slice(f, f + n) for f, n in zip(first, (4, 5, 6), strict=True)))]
        np.testing.assert_array_equal(sample["label"].numpy(), expected)
        assert sample["image"].meta["patch_index"] == i
    without_index = RandCropByLabeld(
        ["image", "label"], "label", (4, 5, 6), [1, 1, 1], 3, allowed_key="region"
    ).set_random_state(seed=8)(data)
    for a, b in zip(samples, without_index, strict=True):
        torch.testing.assert_close(a["image"], b["image"], rtol=0, atol=0)
    assert RandCropByLabelD is RandCropByLabelDict is RandCropByLabeld


def test_dictionary_form_counts_fallbacks_and_pads_each_key_with_its_value():
    data = {"image": numbered((3, 3)) + 1, "label": np.ones((1, 3, 3), np.uint8)}
    crop = RandCropByLabeld(["image", "label"], "label", 5, {4: 1}, padding_value=[-1.0, 9])
    with pytest.warns(UserWarning, match="label 4"):
        (sample,) = crop(data)
    assert crop.num_fallbacks == 1
    assert float(sample["image"][0, 0, 0]) == -1
    assert sample["label"].numpy()[0].tolist() == [[9] * 5, *[[9, 1, 1, 1, 9]] * 3, [9] * 5]
    with pytest.raises(ValueError, match=r"padding_value.*2.*\[1\.0\]"):
        RandCropByLabeld(["image", "label"], "label", 5, padding_value=[1.0])


def test_without_tracked_metadata_patches_are_plain_tensors():
    set_track_meta(False)
    try:
        (patch,) = RandCropByLabel(2)(numbered((4, 4)), np.ones((1, 4, 4)))
        assert type(patch) is torch.Tensor
    finally:
        set_track_meta(True)


def test_invalid_inputs_raise():
    with pytest.raises(ValueError, match=r"ratios.*\[0, 0\]"):
        RandCropByLabel(3, [0, 0])
    with pytest.raises(ValueError, match=r"ratios.*-1"):
        RandCropByLabel(3, {1: -1, 2: 3})
    with pytest.raises(ValueError, match=r"num_samples.*0"):
        RandCropByLabel(3, num_samples=0)
    with pytest.raises(ShapeError, match=r"spatial_size.*3.*\(4, 4\)"):
        RandCropByLabel((4, 4))(numbered((9, 9, 9)))
    with pytest.raises(ShapeError, match=r"case_3.*\(8, 8, 8\).*\(9, 9, 9\)"):
        RandCropByLabel(4)(numbered((9, 9, 9)), np.zeros((1, 8, 8, 8)))
    with pytest.raises(KeyError, match=r"'label'.*'label_voxel_index'"):
        RandCropByLabeld("image", "label", 4)({"image": numbered((4, 4))})
    with pytest.raises(ShapeError, match=r"case_3.*2 spatial axes.*\(1, 9, 9, 9\)"):
        crop_patch(numbered((9, 9, 9)), (0, 0), (1, 1))


def test_a_label_map_moved_after_indexing_is_noticed():
    label = rare_labels()
    data = LabelVoxelIndexd("label")({"label": MetaTensor(label, meta={"filename_or_obj": "case_3.nii.gz"})})
    crop = RandCropByLabeld("label", "label", 3, {1: 1}).set_random_state(seed=0)
    with pytest.raises(ValueError, match=r"case_3.*label 1.*found 0.*LabelVoxelIndexd"):
        crop({**data, "label": MetaTensor(label[:, ::-1].copy(), meta={"filename_or_obj": "case_3.nii.gz"})})
    for other in (label[:, :3], label[..., 0]):
        with pytest.raises(ValueError, match="found None"):
            crop({**data, "label": other})
    crop(data)


@pytest.mark.parametrize("ratios", [[1, 2, 5], {"0": 1, "1": 2, "2": 5}, {2: 0.5, 0: 0.1, 1: 0.2, 7: 0}])
def test_every_voxel_of_a_class_is_equally_likely(ratios):
    """Chi-square test of patches of one voxel against ratio / Σ ratios / number of voxels of the class."""
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
        # the border does not shift patches of an interior class, so the centre voxel itself has the label
        assert label[0, start[0] + 3, start[1] + 2, start[2] + 2] == 1 or min(start) == 0
        assert patch.meta["crop_label"] == 1


def test_a_missing_label_warns_with_the_case_and_is_counted():
    label = rare_labels()
    image = MetaTensor(torch.from_numpy(label).float(), meta={"filename_or_obj": "case_3.nii.gz"})
    crop = RandCropByLabel(1, {9: 1, 1: 1}, num_samples=4000).set_random_state(seed=2)
    with pytest.warns(UserWarning, match=r"case_3\.nii\.gz.*label 9"):
        patches = crop(image, label)
    fallbacks = [start for start, drawn in zip(crop.starts, crop.labels, strict=True) if drawn == -1]
    assert crop.num_fallbacks == len(fallbacks) == sum(p.meta["crop_label"] == -1 for p in patches)
    assert abs(len(fallbacks) - 2000) < 5 * np.sqrt(1000)
    # uniform over the image: equally many in both halves of each axis, within five standard deviations
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
    with pytest.raises(ValueError, match="LabelVoxelIndexd"):
        crop(label, index=VoxelIndex.from_label(label), allowed=allowed)


def test_monai_draws_the_same_frequencies():
    """MONAI's draw of centres over the same label map has the same frequency per class."""
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
