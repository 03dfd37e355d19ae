"""Test KeepLabelledSlices: which slices keep their labels, and that the loss sees only those."""

import zlib

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from transforms.conforming import assert_identical, case, snapshot

from medseg.errors import ShapeError
from medseg.losses import WeightedDiceCELoss
from medseg.transforms import KeepLabelledSlices, KeepLabelledSlicesd, LabelVoxelIndexd


def test_a_tenth_of_the_slices_keeps_its_labels_and_no_other_voxel_does():
    label = np.random.default_rng(0).integers(0, 3, (1, 7, 8, 40)).astype(np.uint8)
    sparse = KeepLabelledSlices(0.1)(label)
    kept = [5, 15, 25, 35]  # the middles of four quarters
    assert np.array_equal(sparse[..., kept], label[..., kept])
    assert (np.delete(sparse, kept, axis=-1) == 255).all()
    assert sparse.dtype == label.dtype


@pytest.mark.parametrize("extent", [1, 2, 3, 5, 9, 35, 50])
@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 1.0])
def test_the_kept_slices_are_evenly_spaced(extent, fraction):
    kept = KeepLabelledSlices(fraction).slices(extent)
    assert len(kept) == max(1, round(fraction * extent))
    gaps = np.diff([-1 - kept[0], *kept, 2 * extent - 1 - kept[-1]])  # mirrored at both ends
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 2
    assert fraction < 1 or kept == list(range(extent))


def test_by_case_the_cases_together_keep_every_slice():
    keep = KeepLabelledSlices(0.1, placement="by_case")
    kept_by_case = {case: keep.slices(35, f"case_{case:03d}.nii.gz") for case in range(200)}
    assert {slice_ for kept in kept_by_case.values() for slice_ in kept} == set(range(35))
    assert all(len(kept) == 4 and {8, 9} >= set(np.diff(kept)) for kept in kept_by_case.values())
    # the folder does not matter
    label = MetaTensor(torch.zeros(1, 2, 2, 40), meta={"filename_or_obj": "/somewhere/case_000.nii.gz"})
    offset = zlib.crc32(b"case_000.nii.gz") / 2**32
    kept = (keep(label)[0, 0, 0] == 0).nonzero()[:, 0].tolist()
    assert kept == [int((k + offset) * 10) for k in range(4)]
    with pytest.raises(ValueError, match="by_case"):
        keep(torch.zeros(1, 2, 2, 40))


def test_several_axes_keep_the_union_of_their_slices():
    label = torch.ones(1, 20, 10, 30, dtype=torch.uint8)
    known = KeepLabelledSlices(0.1, axes=(0, 1, 2))(label)[0] != 255
    expected = np.zeros((20, 10, 30), bool)
    expected[[5, 15]] = expected[:, [5]] = expected[:, :, [5, 15, 25]] = True
    assert np.array_equal(known.numpy(), expected)


def test_voxels_without_annotation_change_neither_loss_nor_gradient():
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 3, (1, 8, 8, 20), generator=generator, dtype=torch.uint8)
    sparse = KeepLabelledSlices(0.1)(label)
    loss = WeightedDiceCELoss(ignore_label=255)
    logits = torch.randn(1, 3, 8, 8, 20, generator=generator, requires_grad=True)
    value = loss(logits, sparse[None])
    value.backward()
    kept = KeepLabelledSlices(0.1).slices(20)
    rest = [k for k in range(20) if k not in kept]
    assert logits.grad is not None
    assert not logits.grad[..., rest].any()
    assert logits.grad[..., kept].any()
    # equal to the loss of the kept slices alone, fully annotated
    alone = WeightedDiceCELoss()(logits[..., kept], label[None][..., kept])
    torch.testing.assert_close(value, alone)


def test_crops_centre_on_kept_labels_and_metadata_is_kept():
    sample = case(3)
    before = snapshot(sample)
    out = LabelVoxelIndexd("label")(KeepLabelledSlicesd("label", 0.3)(sample))
    assert_identical(snapshot(sample), before)
    assert isinstance(out["label"], MetaTensor)
    assert_identical(out["label"].affine, sample["label"].affine)
    assert out["label"].meta["filename_or_obj"] == sample["label"].meta["filename_or_obj"]
    for value in (0, 1, 2):
        index = out["label_voxel_index"]
        assert index.count(value) == int((out["label"] == value).sum())
    assert set(out["label"].unique().tolist()) <= {0, 1, 2, 255}


def test_invalid_settings_raise():
    with pytest.raises(ValueError, match=r"fraction.*0"):
        KeepLabelledSlices(0)
    with pytest.raises(ValueError, match=r"placement.*ends"):
        KeepLabelledSlices(0.1, placement="ends")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"axes.*\(\)"):
        KeepLabelledSlices(0.1, axes=())
    with pytest.raises(ValueError, match=r"300.*uint8"):
        KeepLabelledSlices(0.1, ignore_label=300)(np.zeros((1, 2, 2, 2), np.uint8))
    with pytest.raises(ShapeError, match=r"\(2,\).*\(4, 4\)"):
        KeepLabelledSlices(0.1)(np.zeros((1, 4, 4)))
    with pytest.raises(KeyError):
        KeepLabelledSlicesd("label", 0.1)({"image": 1})
    assert KeepLabelledSlicesd("label", 0.1, allow_missing_keys=True)({"image": 1}) == {"image": 1}
