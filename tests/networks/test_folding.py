"""Folded layers give what a transposed convolution and a convolution give one after the other."""

from itertools import product

import pytest
import torch
from torch import nn

from medseg.networks.blocks import ConvBlock, make_upsample
from medseg.networks.folding import AxisFold, composed_kernel, convolve_folded, folds_of, is_worth_folding
from medseg.networks.stages import DecoderStage, JoiningStage, compose_stages, convolutions
from medseg.networks.unet import UNet, UNet3D
from medseg.networks.unet_plus_plus import UNetPlusPlus

TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
CASES = [
    ((2, 2), (3, 3)),
    ((2, 1), (3, 5)),
    ((2, 2, 2), (3, 3, 3)),
    ((1, 2, 2), (1, 3, 3)),
    ((1, 2, 2), (3, 3, 3)),
    ((2, 2, 2), (1, 3, 3)),
]


def layers(stride, kernel, bias=True):
    torch.manual_seed(0)
    upsample = TRANSPOSED[len(stride)](6, 5, stride, stride, bias=bias)
    return upsample, ConvBlock(len(stride), 4 + 5, 7, kernel, norm="none", activation="none", bias=bias)


def maps(stride):
    torch.manual_seed(1)
    shape = (3, 4, 2)[: len(stride)]
    return torch.randn(2, 6, *shape), torch.randn(2, 4, *(n * s for n, s in zip(shape, stride, strict=True)))


@pytest.mark.parametrize(("stride", "kernel"), CASES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("is_last", [True, False])
def test_the_folded_convolution_equals_the_two_layers(stride, kernel, bias, is_last):
    upsample, block = layers(stride, kernel, bias)
    coarser, skip = maps(stride)
    expected = block(torch.cat([skip, upsample(coarser)], dim=1))
    memory = LAST[len(stride)] if is_last else torch.contiguous_format
    coarser, skip = coarser.contiguous(memory_format=memory), skip.contiguous(memory_format=memory)
    folds, weight = folds_of(upsample, block), block.conv.weight
    composed = composed_kernel(folds, upsample, weight[:, 4:])
    found = convolve_folded(folds, composed, coarser, skip, weight[:, :4], block.conv.bias)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)
    assert found.is_contiguous(memory_format=memory)


def test_gradients_equal_those_of_the_two_layers():
    upsample, block = layers((2, 2, 2), (3, 3, 3))
    coarser, skip = (x.requires_grad_() for x in maps((2, 2, 2)))
    wanted = [coarser, skip, *upsample.parameters(), *block.parameters()]
    weights = torch.randn(2, 7, 6, 8, 4)
    expected = torch.autograd.grad((block(torch.cat([skip, upsample(coarser)], dim=1)) * weights).sum(), wanted)
    folds, kernel = folds_of(upsample, block), block.conv.weight
    composed = composed_kernel(folds, upsample, kernel[:, 4:])
    found = convolve_folded(folds, composed, coarser, skip, kernel[:, :4], block.conv.bias)
    for a, b in zip(torch.autograd.grad((found * weights).sum(), wanted), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_the_border_is_padded_with_zeros_and_not_with_the_bias_of_the_upsampling():
    # A convolution of ones over an upsampled map that is 1 everywhere counts the voxels inside the map.
    upsample, block = layers((2, 2), (3, 3))
    with torch.no_grad():
        upsample.weight.zero_()
        upsample.bias.fill_(1 / 5)
        block.conv.weight.fill_(1)
        block.conv.bias.zero_()
    folds = folds_of(upsample, block)
    composed = composed_kernel(folds, upsample, block.conv.weight[:, 4:])
    skip = torch.zeros(1, 4, 4, 6)
    found = convolve_folded(folds, composed, torch.zeros(1, 6, 2, 3), skip, block.conv.weight[:, :4], block.conv.bias)
    counts = torch.outer(torch.tensor([2.0, 3, 3, 2]), torch.tensor([2.0, 3, 3, 3, 3, 2]))
    torch.testing.assert_close(found[0, 0], counts)


@pytest.mark.parametrize("axis", product((1, 2, 3), (1, 2, 3, 5)), ids=str)
def test_an_axis_is_folded_only_where_it_saves_products(axis):
    stride, kernel = axis
    fold = AxisFold.of(stride, kernel)
    # the largest number of distinct coarse voxels under the kernel, over all phases
    reach = [range(q - kernel // 2, q + kernel // 2 + 1) for q in range(stride)]
    fewest = max(len({fine // stride for fine in fines}) for fines in reach)
    if fold is not None:
        assert fold.taps == fewest
    else:
        assert kernel % 2 == 0 or stride == 3 or (stride, kernel) == (2, 5)


@pytest.mark.parametrize(
    ("upsample", "block"),
    [
        (nn.ConvTranspose2d(3, 3, 4, 2, 1), ConvBlock(2, 6, 3)),
        (nn.ConvTranspose2d(3, 3, 2, 2), ConvBlock(2, 6, 3, padding="valid")),
        (nn.ConvTranspose2d(3, 3, 2, 2), ConvBlock(2, 6, 3, stride=2)),
        (nn.ConvTranspose2d(3, 3, 2, 2), ConvBlock(2, 6, 3, order="norm_act_conv")),
        (nn.ConvTranspose2d(3, 3, 3, 3), ConvBlock(2, 6, 3)),
        (nn.Upsample(scale_factor=2), ConvBlock(2, 6, 3)),
        (nn.ConvTranspose2d(3, 3, 2, 2), nn.Identity()),
    ],
)
def test_other_layers_are_not_folded(upsample, block):
    assert folds_of(upsample, block) == ()


def stage_and_maps(channels=16, size=(14, 12, 10)):
    torch.manual_seed(0)
    body = convolutions(3, 3 * channels, (channels, channels), (3, 3, 3), norm="instance", activation="leaky_relu")
    stage = DecoderStage(make_upsample("transposed", 3, 2 * channels, 2 * channels, (2, 2, 2)), body)
    return stage, torch.randn(1, 2 * channels, *size), torch.randn(1, channels, *(2 * n for n in size))


def test_a_large_map_is_folded_and_a_small_one_is_not():
    stage = stage_and_maps()[0]
    convolution = stage.convolutions[0].conv
    assert is_worth_folding(stage.folds, stage.upsample, convolution, 28 * 24 * 20)
    assert not is_worth_folding(stage.folds, stage.upsample, convolution, 4 * 4 * 4)
    assert is_worth_folding(stage.folds, stage.upsample, convolution, None)


@pytest.mark.parametrize(("kind", "folded"), [(UNet3D, True), (UNet, False), (UNetPlusPlus, False)])
def test_networks_that_keep_channels_while_upsampling_are_folded(kind, folded):
    # UNet3D: 2c channels at 8 taps and c at 27, instead of 3c at 27. U-Net: 2c at 8 and c at 27, instead of 2c at 27.
    network = kind(1, 2, spatial_dims=3, channels=(8, 16, 32))
    stages = [module for module in network.modules() if isinstance(module, JoiningStage)]
    found = {is_worth_folding(s.folds, s.upsample, s.convolutions[0].conv, None) for s in stages}
    assert found == {folded}


def test_a_stage_gives_the_same_folded_composed_in_advance_and_separate():
    stage, coarser, skip = stage_and_maps()
    folded = stage(coarser, [skip])
    assert len(stage.begin(coarser, [skip])[1]) == 3  # the first convolution is done: norm, activation, second block
    stage.compose()
    torch.testing.assert_close(stage(coarser, [skip]), folded, rtol=0, atol=0)
    stage.composed, stage.folds = None, ()
    torch.testing.assert_close(stage(coarser, [skip]), folded, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [UNet3D, UNet, UNetPlusPlus])
def test_networks_give_the_same_folded_and_separate(kind, monkeypatch):
    monkeypatch.setattr("medseg.networks.folding.WORTHWHILE", 1)  # fold wherever possible
    torch.manual_seed(0)
    network = kind(1, 2, spatial_dims=3, channels=(8, 16, 32), norm="instance").eval()
    x = torch.randn(1, 1, 24, 20, 16)
    with torch.no_grad():
        as_is = network(x)
        compose_stages(network)
        composed = network(x)
        stages = [module for module in network.modules() if isinstance(module, JoiningStage)]
        assert stages
        assert all(stage.composed is not None for stage in stages)
        for stage in stages:
            stage.composed, stage.folds = None, ()
        separate = network(x)
    torch.testing.assert_close(as_is, separate, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(composed, separate, rtol=1e-4, atol=1e-5)


def test_a_composed_kernel_is_not_part_of_the_weights():
    network = UNet3D(1, 2, channels=(4, 8))
    before = list(network.state_dict())
    compose_stages(network)
    assert list(network.state_dict()) == before


def test_odd_maps_of_a_padding_network_are_not_folded(monkeypatch):
    monkeypatch.setattr("medseg.networks.folding.WORTHWHILE", 1)
    network = UNet(1, 2, channels=(8, 16, 16), odd_sizes="pad").eval()
    x = torch.randn(1, 1, 101, 99)
    with torch.no_grad():
        as_is = network(x)
        compose_stages(network)
        torch.testing.assert_close(network(x), as_is, rtol=1e-4, atol=1e-5)


def test_double_precision_is_kept():
    upsample, block = (layer.double() for layer in layers((2, 2, 2), (3, 3, 3)))
    coarser, skip = (x.double() for x in maps((2, 2, 2)))
    folds, kernel = folds_of(upsample, block), block.conv.weight
    composed = composed_kernel(folds, upsample, kernel[:, 4:])
    found = convolve_folded(folds, composed, coarser, skip, kernel[:, :4], block.conv.bias)
    expected = block(torch.cat([skip, upsample(coarser)], dim=1))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
