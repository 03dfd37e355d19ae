"""Tests of OverlapTileInferer against one forward pass over the whole mirrored image."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from torch import nn
from torch.nn import functional as F

from medseg.errors import ShapeError
from medseg.inference import OverlapTileInferer
from medseg.inference.inferers import mirrored
from medseg.networks import create


class ValidNetwork(nn.Module):
    """Two valid convolutions around one pooling and one upsampling, with a cropped skip: a U-Net of one level."""

    def __init__(self, spatial_dims: int) -> None:
        super().__init__()
        conv = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        self.pool = nn.MaxPool2d(2) if spatial_dims == 2 else nn.MaxPool3d(2)
        self.down, self.low, self.up = conv(1, 4, 3), conv(4, 4, 3), conv(8, 3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = torch.relu(self.down(x))
        low = F.interpolate(torch.relu(self.low(self.pool(skip))), scale_factor=2, mode="nearest")
        crop = [(s - n) // 2 for s, n in zip(skip.shape[2:], low.shape[2:], strict=True)]
        for axis, c in enumerate(crop):
            skip = skip.narrow(axis + 2, c, low.shape[axis + 2])
        return self.up(torch.cat([skip, low], dim=1))


MARGIN = 4  # 1 (down) + 2 (low, at half resolution) + 1 (up)


@pytest.mark.parametrize(
    ("shape", "tile"), [((30, 44), (22, 26)), ((13, 9), (22, 22)), ((41, 18), (18, 18)), ((18, 14, 22), (18, 18, 14))]
)
def test_equals_one_pass_over_the_mirrored_image(shape: tuple, tile: tuple) -> None:
    torch.manual_seed(0)
    network = ValidNetwork(len(shape)).eval()
    image = torch.randn(2, 1, *shape)
    # Mirror further on the far side until the network accepts the size, and crop the result.
    far = [MARGIN + (4 - (n + 2 * MARGIN - 2) % 4) % 4 + 4 for n in shape]
    whole_input = reflect(image, far)
    with torch.no_grad():
        whole = network(whole_input)[(slice(None), slice(None), *(slice(0, n) for n in shape))]
        tiled = OverlapTileInferer(tile, pools=1, sw_batch_size=3)(image, network)
    torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=1e-5)


def reflect(image: torch.Tensor, far: list[int]) -> torch.Tensor:
    """Return the image mirrored by the margin before and by `far` after each axis."""
    for axis, f in enumerate(far):
        n = image.shape[axis + 2]
        image = image.index_select(axis + 2, mirrored(torch.arange(-MARGIN, n + f), n))
    return image


@pytest.mark.parametrize("length", [1, 2, 5])
def test_mirroring_equals_numpys_reflection_at_any_distance(length: int) -> None:
    import numpy as np

    expected = np.pad(np.arange(length), 13, mode="reflect")
    assert mirrored(torch.arange(-13, length + 13), length).tolist() == expected.tolist()


def test_the_stride_of_the_papers_tile_is_384_voxels() -> None:
    margin = ((572 - 388) // 2,) * 2
    assert OverlapTileInferer((572, 572), pools=4).stride(margin) == (384, 384)


def test_the_papers_network_predicts_an_image_smaller_than_its_output() -> None:
    network = create("unet_ronneberger2015", in_channels=1, out_channels=2, channels=[2, 4, 8, 16, 32]).eval()
    image = torch.randn(1, 1, 30, 50, generator=torch.manual_seed(0))
    with torch.no_grad():
        logits = OverlapTileInferer((236, 236), pools=4)(image, network)
        margin = (236 - network(torch.zeros(1, 1, 236, 236)).shape[-1]) // 2
        position = [mirrored(torch.arange(-margin, 236 - margin), n) for n in (30, 50)]
        whole = network(image[:, :, position[0]][:, :, :, position[1]])[..., :30, :50]
    torch.testing.assert_close(logits, whole)


def test_a_network_that_keeps_its_size_needs_no_margin_and_metadata_stays() -> None:
    image = MetaTensor(torch.randn(1, 1, 21, 10, generator=torch.manual_seed(0)), meta={"case": "a"})
    merged = OverlapTileInferer((8, 8), pools=2)(image, lambda tiles: 3 * tiles)
    assert isinstance(merged, MetaTensor)
    assert merged.meta["case"] == "a"
    torch.testing.assert_close(merged.as_tensor(), 3 * image.as_tensor())


def test_constant_padding_is_zero() -> None:
    window = torch.ones(1, 1, 3, 3)
    image = torch.ones(1, 1, 9, 9)
    merged = OverlapTileInferer((6, 6), pools=1, padding_mode="constant")(image, lambda tiles: F.conv2d(tiles, window))
    torch.testing.assert_close(merged, F.conv2d(image, window, padding=1))


def test_wrong_tiles_are_refused() -> None:
    image = torch.zeros(1, 1, 16, 16)
    with pytest.raises(ShapeError, match=r"\(8, 8\).*16 voxels"):
        OverlapTileInferer((8, 8), pools=4)(image, lambda tiles: tiles[..., 1:-1, 1:-1])
    with pytest.raises(ShapeError, match=r"\(7, 7\).*\(8, 8\)"):
        OverlapTileInferer((8, 8), pools=1)(image, lambda tiles: tiles[..., 1:, 1:])
    with pytest.raises(ShapeError, match=r"\(1, 1\).*\(2, 2\)"):
        OverlapTileInferer((8, 8), pools=1, margin=(2, 2))(image, lambda tiles: tiles[..., 1:-1, 1:-1])
    with pytest.raises(ShapeError, match=r"\(8, 8, 8\).*\(16, 16\)"):
        OverlapTileInferer((8, 8, 8))(image, lambda tiles: tiles)
