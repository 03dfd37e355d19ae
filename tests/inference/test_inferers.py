"""Tests of SlidingWindowInferer against MONAI's class of the same name."""

from __future__ import annotations

import itertools
from inspect import signature

import pytest
import torch
from inference.thin_network import thin_network
from monai.data import MetaTensor
from monai.inferers import SliceInferer, sliding_window_inference
from monai.inferers import SlidingWindowInferer as MonaiSlidingWindowInferer
from monai.utils import BlendMode, PytorchPadMode

from medseg.errors import ShapeError
from medseg.inference import SlidingWindowInferer


@pytest.mark.parametrize("mode", ["gaussian", "constant"])
@pytest.mark.parametrize(
    ("shape", "tile", "overlap", "batch"),
    [
        ((35, 51, 37), (16, 24, 20), 0.5, 1),
        ((35, 51, 37), (16, 24, 20), 0.25, 3),
        ((20, 64, 31), (32, 32, 24), 0.3, 4),
        ((9, 5, 1), (16, 16, 16), 0.5, 1),
        ((41, 16, 16), (16, 16, 16), 0.0, 2),
        ((61, 47), (16, 24), 0.6, 5),
        ((7, 90), (16, 16), 0.5, 1),
    ],
)
def test_logits_equal_those_of_monai(mode: str, shape: tuple, tile: tuple, overlap: float, batch: int) -> None:
    network = thin_network(4, 5, len(shape))
    images = torch.randn(2, 1, *shape, generator=torch.manual_seed(1))
    with torch.no_grad():
        ours = SlidingWindowInferer(tile, batch, overlap, mode)(images, network)  # type: ignore[arg-type]
        theirs = sliding_window_inference(images, tile, batch, network, overlap, mode)
    assert (ours - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize(
    "arguments",
    [
        ((16, 12),),
        ((16, 12), 3, 0.25, BlendMode.CONSTANT),
        ((16, 12), 2, (0.5, 0.25), "gaussian", (0.25, 0.125), "constant", -1.0, "cpu", "cpu"),
        (16, 2, 0.5, "gaussian"),
        ((16, -1), 1, 0.5, "gaussian"),
        ((16, None), 1, 0.5, "gaussian"),
        ((16, 12), 1, 0.5, "gaussian", 0.125, "reflect"),
        ((16, 12), 1, 0.5, "gaussian", 0.125, PytorchPadMode.REPLICATE),
        ((16, 12), 1, 0.5, "gaussian", 0.125, "circular", 0.0, None, None, True, True, 10**6, 2, 0),
    ],
)
def test_arguments_and_defaults_are_those_of_monai(arguments: tuple) -> None:
    """The second image is smaller than the tile, so that it is padded."""
    network = thin_network(4, 5, 2)
    for shape in ((33, 20), (13, 20)):
        images = torch.randn(2, 1, *shape, generator=torch.manual_seed(1))
        with torch.no_grad():
            ours = SlidingWindowInferer(*arguments)(images, network)
            theirs = MonaiSlidingWindowInferer(*arguments)(images, network)
        assert (ours - theirs).abs().max() <= 1e-5


def test_the_signature_is_that_of_monai() -> None:
    ours, theirs = (signature(kind).parameters for kind in (SlidingWindowInferer, MonaiSlidingWindowInferer))
    assert list(ours) == list(theirs)
    assert [p.default for p in ours.values()] == [p.default for p in theirs.values()]


def test_unsupported_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="'zeros'"):
        SlidingWindowInferer((8, 8), padding_mode="zeros")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="with_coord"):
        SlidingWindowInferer((8, 8), with_coord=True)
    with pytest.raises(ValueError, match="sw_batch_size"):
        SlidingWindowInferer((8, 8), sw_batch_size=0)


def test_a_2d_network_predicts_volumes_slice_by_slice_as_in_monai() -> None:
    network = thin_network(4, 5, 2)
    volumes = torch.randn(2, 1, 33, 20, 5, generator=torch.manual_seed(1))
    with torch.no_grad():
        ours = SlidingWindowInferer((16, 12), 2, 0.5, "gaussian")(volumes, network)
        theirs = SliceInferer(2, (16, 12), sw_batch_size=2, overlap=0.5, mode="gaussian")(volumes, network)
        alone = torch.stack(
            [SlidingWindowInferer((16, 12), 1, 0.5, "gaussian")(volumes[..., n], network) for n in range(5)], -1
        )
    assert (ours - theirs).abs().max() <= 1e-5
    torch.testing.assert_close(ours, alone)


@pytest.mark.parametrize(("shape", "tile"), [((40, 33, 21), (16, 16, 16)), ((33, 50), (16, 12)), ((3, 50), (16, 12))])
@pytest.mark.parametrize("mode", ["gaussian", "constant"])
def test_a_constant_field_stays_constant_everywhere(shape: tuple, tile: tuple, mode: str) -> None:
    inferer = SlidingWindowInferer(tile, 2, 0.5, mode)  # type: ignore[arg-type]
    merged = inferer(torch.zeros(1, 1, *shape), lambda tiles: torch.full_like(tiles, 0.7))
    torch.testing.assert_close(merged, torch.full_like(merged, 0.7), atol=1e-6, rtol=0)


def test_metadata_and_arguments_pass_through() -> None:
    image = MetaTensor(torch.zeros(1, 1, 8, 8), affine=torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0])))
    image.meta["case"] = "a"
    merged = SlidingWindowInferer((4, 4))(image, lambda tiles, shift, scale: scale * (tiles + shift), 1, scale=2)
    assert isinstance(merged, MetaTensor)
    assert merged.meta["case"] == "a"
    assert torch.equal(merged.affine, image.affine)
    torch.testing.assert_close(merged.as_tensor(), torch.full((1, 1, 8, 8), 2.0))


def test_the_network_may_return_its_own_input() -> None:
    """Blending must not write into what the network returned."""
    image = torch.randn(1, 1, 20, 20, generator=torch.manual_seed(0))
    kept = image.clone()
    merged = SlidingWindowInferer((8, 8))(image, lambda tiles: tiles)
    assert torch.equal(image, kept)
    torch.testing.assert_close(merged, image, atol=1e-5, rtol=1e-5)


def test_networks_that_shrink_or_return_lists_are_refused() -> None:
    image = torch.zeros(1, 1, 16, 16)
    with pytest.raises(ShapeError, match="OverlapTileInferer"):
        SlidingWindowInferer((8, 8))(image, lambda tiles: tiles[..., 1:-1, 1:-1])
    with pytest.raises(ShapeError, match="list"):
        SlidingWindowInferer((8, 8))(image, lambda tiles: [tiles])  # type: ignore[arg-type, return-value]


def test_every_combination_of_tile_positions_is_finished_once() -> None:
    """Rows and slabs have all lengths, so that the last tile is moved back by every amount."""
    for first, second in itertools.product(range(4, 14), repeat=2):
        image = torch.randn(1, 1, first, second, generator=torch.manual_seed(first * 100 + second))
        merged = SlidingWindowInferer((4, 4), overlap=0.5)(image, lambda tiles: 2 * tiles)
        torch.testing.assert_close(merged, 2 * image, atol=1e-5, rtol=1e-5)
