"""RandCropByLabel cuts patches: their voxels and affines against MONAI's crop, dictionaries, bad input."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor, set_track_meta
from monai.transforms import SpatialCrop
from monai.transforms.utils import correct_crop_centers
from transforms.labelled_volumes import AFFINE, numbered, rare_labels

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


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    shape=st.lists(st.integers(3, 11), min_size=3, max_size=3),
    size=st.lists(st.integers(1, 11), min_size=3, max_size=3),
)
def test_patch_and_affine_equal_monais_crop(seed, shape, size):
    """Same place as MONAI's for the same centre, any parity, wherever the image holds the patch."""
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
    """Against NumPy: pad first, then slice; world coordinates of every real voxel are kept."""
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
    """A draw from an index slices the image once, to the patch, and touches nothing else."""

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


def test_dictionary_form_cuts_all_keys_alike_and_drops_the_index():
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


def test_dictionary_form_counts_fallbacks_and_pads_each_key_its_own_way():
    data = {"image": numbered((3, 3)) + 1, "label": np.ones((1, 3, 3), np.uint8)}
    crop = RandCropByLabeld(["image", "label"], "label", 5, {4: 1}, padding_value=[-1.0, 9])
    with pytest.warns(UserWarning, match="label 4"):
        (sample,) = crop(data)
    assert crop.num_fallbacks == 1
    assert float(sample["image"][0, 0, 0]) == -1
    assert sample["label"].numpy()[0].tolist() == [[9] * 5, *[[9, 1, 1, 1, 9]] * 3, [9] * 5]
    with pytest.raises(ValueError, match=r"one number a key \(2\)"):
        RandCropByLabeld(["image", "label"], "label", 5, padding_value=[1.0])


def test_untracked_meta_data_give_plain_tensors():
    set_track_meta(False)
    try:
        (patch,) = RandCropByLabel(2)(numbered((4, 4)), np.ones((1, 4, 4)))
        assert type(patch) is torch.Tensor
    finally:
        set_track_meta(True)


def test_wrong_inputs_are_named():
    with pytest.raises(ValueError, match="non-negative with a positive sum"):
        RandCropByLabel(3, [0, 0])
    with pytest.raises(ValueError, match="non-negative with a positive sum"):
        RandCropByLabel(3, {1: -1, 2: 3})
    with pytest.raises(ValueError, match="num_samples must be at least 1, found 0"):
        RandCropByLabel(3, num_samples=0)
    with pytest.raises(ShapeError, match=r"spatial_size.*3 axes, found \(4, 4\)"):
        RandCropByLabel((4, 4))(numbered((9, 9, 9)))
    with pytest.raises(ShapeError, match=r"case_3.*spatial shape \(8, 8, 8\), found \(9, 9, 9\)"):
        RandCropByLabel(4)(numbered((9, 9, 9)), np.zeros((1, 8, 8, 8)))
    with pytest.raises(KeyError, match="needs the label map 'label' or its index 'label_voxel_index'"):
        RandCropByLabeld("image", "label", 4)({"image": numbered((4, 4))})
    with pytest.raises(ShapeError, match="must have a channel and 2 spatial axes"):
        crop_patch(numbered((9, 9, 9)), (0, 0), (1, 1))


def test_a_label_map_moved_after_indexing_is_noticed():
    label = rare_labels()
    data = LabelVoxelIndexd("label")({"label": MetaTensor(label, meta={"filename_or_obj": "case_3.nii.gz"})})
    crop = RandCropByLabeld("label", "label", 3, {1: 1}).set_random_state(seed=0)
    with pytest.raises(ValueError, match=r"case_3.*says label 1 is at .*found 0.*after LabelVoxelIndexd"):
        crop({**data, "label": MetaTensor(label[:, ::-1].copy(), meta={"filename_or_obj": "case_3.nii.gz"})})
    for other in (label[:, :3], label[..., 0]):
        with pytest.raises(ValueError, match="found None in a label map of shape"):
            crop({**data, "label": other})
    crop(data)
