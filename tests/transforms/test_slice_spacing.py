"""Compare SliceSpacing with MONAI's Spacing of single slices, and its affine with a linear field."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Spacing

from medseg.errors import ShapeError
from medseg.transforms import SliceSpacing, SliceSpacingd

# oblique, anisotropic: 1.1 × 0.9 × 1.9 mm
AFFINE = np.eye(4)
AFFINE[:3, :3] = np.array([[0.0, -0.98, 0.199], [1.0, 0.0, 0.0], [0.0, -0.199, -0.98]]) * [1.1, 0.9, 1.9]
AFFINE[:3, 3] = [-20, 13, 40]


def volume() -> MetaTensor:
    values = torch.rand(2, 21, 34, 5, generator=torch.Generator().manual_seed(0))
    return MetaTensor(values, affine=torch.from_numpy(AFFINE), meta={"case": "a"})


def test_every_slice_equals_monais_spacing_of_that_slice():
    found = SliceSpacingd("image", (1.3, 0.7))({"image": volume()})["image"]
    straight = torch.diag(torch.tensor([1.1, 0.9, 1, 1], dtype=torch.float64))
    for number in range(5):
        alone = Spacing((1.3, 0.7), mode="bilinear", padding_mode="border")(
            MetaTensor(volume().as_tensor()[..., number], affine=straight)
        )
        torch.testing.assert_close(found.as_tensor()[..., number], alone.as_tensor(), atol=1e-4, rtol=0)
    assert found.meta["case"] == "a"


def test_the_affine_gives_the_positions_of_the_new_voxels():
    found = SliceSpacing((1.3, 0.7))(volume())
    np.testing.assert_allclose(np.asarray(found.pixdim), [1.3, 0.7, 1.9], rtol=1e-5)
    # linear interpolation is exact for a field that is linear in mm, so each voxel holds the field at its position
    places = AFFINE @ np.stack([*np.indices((21, 34, 5)).reshape(3, -1), np.ones(21 * 34 * 5)])
    normal = np.array([1.0, -2.0, 0.5])
    field = MetaTensor(torch.from_numpy((normal @ places[:3]).reshape(1, 21, 34, 5)), affine=torch.from_numpy(AFFINE))
    found = SliceSpacing((1.3, 0.7))(field)
    index = np.stack([*np.indices(found.shape[1:]).reshape(3, -1), np.ones(found[0].numel())])
    expected = (normal @ (np.asarray(found.affine) @ index)[:3]).reshape(found.shape[1:])
    inner = (slice(1, -1), slice(1, -1))  # outside the outer voxel centres the border is repeated
    np.testing.assert_allclose(found[0].numpy()[inner], expected[inner], atol=2e-3)


def test_the_spacing_of_the_scan_changes_nothing():
    found = SliceSpacing((1.1, 0.9))(volume())
    torch.testing.assert_close(found.as_tensor(), volume().as_tensor(), atol=1e-4, rtol=0)
    np.testing.assert_allclose(np.asarray(found.affine), AFFINE, atol=1e-5)


def test_arrays_that_are_no_volumes_raise():
    with pytest.raises(ShapeError, match=r"MetaTensor \(2, 21, 34\)"):
        SliceSpacing((1, 1))(volume()[..., 0])
    with pytest.raises(ShapeError, match=r"Tensor \(2, 21, 34, 5\)"):
        SliceSpacing((1, 1))(volume().as_tensor())
