import pytest
import torch
from torch import nn
from torch.nn import functional as F

from medseg.errors import NetworkError
from medseg.networks.blocks import ConvBlock, LinearUpsample, centre_crop, pad_to, per_axis, transposed_convolution
from medseg.networks.stages import ResidualBlock


@pytest.mark.parametrize(
    ("order", "children"),
    [
        ("conv_norm_act", ["conv", "norm", "act"]),
        ("conv_act_norm", ["conv", "act", "norm"]),
        ("norm_act_conv", ["norm", "act", "conv"]),
    ],
)
def test_block_runs_its_layers_in_order(order, children):
    block = ConvBlock(2, 3, 4, order=order).eval()
    assert [name for name, _ in block.named_children()] == children
    x = torch.randn(2, 3, 5, 5)
    expected = x.clone()
    with torch.no_grad():
        for name in children:
            expected = getattr(block, name)(expected.clone())
        assert torch.equal(block(x.clone()), expected)


def test_pre_activation_without_norm_does_not_change_its_input():
    block = ConvBlock(2, 3, 4, norm="none", order="norm_act_conv")
    x = torch.randn(1, 3, 4, 4)
    before = x.clone()
    block(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
def test_transposed_convolution_multiplies_the_size_exactly(stride, kernel):
    if kernel < stride or (stride == 1 and kernel % 2 == 0):
        with pytest.raises(NetworkError, match=r"upsampling_kernel_size=\("):
            transposed_convolution(2, 1, 1, (stride, stride), kernel)
        return
    layer = transposed_convolution(2, 1, 1, (stride, stride), kernel)
    for n in (1, 2, 5):
        assert layer(torch.zeros(1, 1, n, n + 1)).shape[2:] == (n * stride, (n + 1) * stride)


def test_linear_upsampling_reproduces_a_ramp_between_its_centres():
    ramp = torch.arange(6.0).reshape(1, 1, 6, 1, 1).expand(-1, -1, -1, 2, 2)
    enlarged = LinearUpsample(3, (2, 1, 1))(ramp)[0, 0, :, 0, 0]
    torch.testing.assert_close(enlarged, torch.arange(-0.25, 5.5, 0.5).clamp(0, 5))
    assert LinearUpsample(3, (2, 2, 2))(ramp.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(("have", "want"), [(7, 3), (8, 4), (8, 5), (4, 4)])
def test_centre_crop_and_padding_are_opposites(have, want):
    x = torch.randn(1, 1, want, want)
    assert torch.equal(centre_crop(pad_to(x, (have, have)), (want, want)), x) or (have - want) % 2
    padded = pad_to(x, (have, have))
    before = (have - want) // 2
    assert torch.equal(padded[..., before : before + want, before : before + want], x)
    assert padded.sum() == pytest.approx(x.sum().item(), abs=1e-5)


def test_per_axis_expands_a_number():
    assert per_axis(3, 2, "x") == (3, 3)
    assert per_axis([1, 2, 3], 3, "x") == (1, 2, 3)
    with pytest.raises(NetworkError, match=r"kernel=\[1, 2\]: .* 3 of them"):
        per_axis([1, 2], 3, "kernel")


@pytest.mark.parametrize(("in_channels", "stride"), [(4, 1), (3, 1), (3, 2), (4, 2)])
def test_residual_block_is_convolutions_plus_shortcut(in_channels, stride):
    block = ResidualBlock(2, in_channels, 4, (3, 3), (stride, stride), norm="none", activation="relu")
    x = torch.randn(1, in_channels, 6, 6)
    first, second = block.conv1.conv, block.conv2.conv
    with torch.no_grad():
        y = F.relu(F.conv2d(x, first.weight, first.bias, stride=stride, padding=1))
        y = F.conv2d(y, second.weight, second.bias, padding=1)
        shortcut = F.avg_pool2d(x, 2) if stride == 2 else x
        if in_channels != 4:
            shortcut = F.conv2d(shortcut, block.shortcut.project.conv.weight)
        torch.testing.assert_close(block(x), F.relu(y + shortcut))
    assert isinstance(block.act, nn.ReLU)
