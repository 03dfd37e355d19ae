import pytest
import torch
from torch.nn import functional as F

from medseg.errors import NetworkError
from medseg.networks import UNet, UNet3D, create


def functional_unet(state, x, stages):
    """Compute Figure 1 of Ronneberger et al. 2015, written independently from the figure."""

    def pair(x, name):
        for n in (0, 1):
            key = f"{name}.convolutions.{n}.conv"
            x = F.relu(F.conv2d(x, state[f"{key}.weight"], state[f"{key}.bias"]))
        return x

    skips = []
    for stage in range(stages):
        x = pair(x if stage == 0 else F.max_pool2d(skips[-1], 2), f"encoder.{stage}")
        skips.append(x)
    for stage, skip in enumerate(reversed(skips[:-1])):
        up = f"decoder.{stage}.upsample"
        x = F.conv_transpose2d(x, state[f"{up}.weight"], state[f"{up}.bias"], stride=2)
        m = (skip.shape[2] - x.shape[2]) // 2
        x = pair(torch.cat([skip[:, :, m:-m, m:-m], x], 1), f"decoder.{stage}")
    return F.conv2d(x, state["head.weight"], state["head.bias"])


def test_paper_network_computes_figure_1():
    network = create("unet_ronneberger2015", 1, 2, channels=(4, 8, 16, 32, 64)).eval()
    x = torch.randn(1, 1, 204, 204)
    with torch.no_grad():
        torch.testing.assert_close(network(x), functional_unet(network.state_dict(), x, 5), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["unet_ronneberger2015", "unet3d_cicek2016", "unet_shallow"])
def test_valid_networks_see_no_border(name):
    """A shift of the input by the pooling period shifts the output exactly, so overlap-tile prediction has no seams."""
    network = create(name, 1, 2, channels=(4, 8, 16), norm="none" if name != "unet_shallow" else "batch").eval()
    dims, margin = network.spatial_dims, network.axes[0].valid_sizes(1)[0] - 4
    sizes = network.axes[0].valid_sizes(4)
    x = torch.randn(1, 1, sizes[3], *[sizes[0]] * (dims - 1))
    assert margin > 0
    with torch.no_grad():
        # the features: the head of unet_shallow is padded, as published
        whole, part = network.features(x), network.features(x[:, :, 4 : 4 + sizes[2]])
    torch.testing.assert_close(whole[:, :, 4 : 4 + part.shape[2]], part, rtol=1e-5, atol=1e-6)


def test_flat_kernels_and_strides_keep_slices_apart():
    """With kernels and strides of 1 along z, a slice of the output depends on the same slice of the input only."""
    network = UNet(
        1, 2, spatial_dims=3, channels=(4, 8, 16), strides=((1, 2, 2), (1, 2, 2)), kernel_sizes=((1, 3, 3),) * 3
    ).eval()
    x = torch.randn(1, 1, 5, 16, 16)
    changed = x.clone()
    changed[:, :, 2] += 1
    with torch.no_grad():
        difference = (network(changed) - network(x)).abs().amax(dim=(0, 1, 3, 4))
    assert difference[2] > 0
    assert torch.equal(difference[[0, 1, 3, 4]], torch.zeros(4))


def test_dropout_is_applied_to_the_coarsest_map_in_training_only():
    torch.manual_seed(0)
    network = UNet(1, 2, channels=(4, 8), dropout=0.999999).train()
    x = torch.randn(1, 1, 8, 8)
    maps = network.encode(x)
    assert torch.equal(maps[1], torch.zeros_like(maps[1]))
    assert maps[0].abs().sum() > 0
    assert network.eval().encode(x)[1].abs().sum() > 0


def test_odd_sizes_are_padded_like_the_published_network():
    """If all maps have even sizes, odd_sizes="pad" changes nothing."""
    network = create("unet_padded", 1, 2, channels=(4, 8, 16)).eval()
    strict = create("unet_padded", 1, 2, channels=(4, 8, 16), odd_sizes="error").eval()
    strict.load_state_dict(network.state_dict())
    x = torch.randn(1, 1, 16, 20)
    with torch.no_grad():
        assert torch.equal(network(x), strict(x))
        assert network(x[..., :19]).shape == (1, 2, 16, 19)


@pytest.mark.parametrize("downsampling", ["max_pool", "strided"])
@pytest.mark.parametrize("upsampling", ["transposed", "linear"])
@pytest.mark.parametrize("norm", ["batch", "batch_current", "instance", "group", "none"])
def test_options_combine(downsampling, upsampling, norm):
    network = UNet(2, 3, channels=(8, 16, 24), norm=norm, downsampling=downsampling, upsampling=upsampling)
    network(torch.randn(2, 2, 16, 8)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": (4,)}, r"channels=\(4,\)"),
        ({"channels": (4, 0)}, r"channels=\(4, 0\)"),
        ({"strides": (2,)}, r"strides=\(2,\).* = 2.* 1"),
        ({"kernel_sizes": (3, 3)}, r"kernel_sizes=\(3, 3\).* = 3.* 2"),
        ({"kernel_sizes": 2}, r"kernel_size=\(2, 2\)"),
        ({"kernel_sizes": ((3, 3, 3),) * 3}, r"kernel_sizes=\(3, 3, 3\)"),
        ({"spatial_dims": 4}, "spatial_dims=4"),
        ({"norm": "layer"}, "norm='layer'.*instance"),
        ({"norm": "group", "channels": (4, 8, 12)}, "norm='group'.*4.*8"),
        ({"activation": "swish"}, "activation='swish'.*prelu"),
        ({"padding": "reflect"}, "padding='reflect'.*same, valid"),
        ({"upsampling": "nearest"}, "upsampling='nearest'.*transposed, linear"),
        ({"upsampling_kernel_size": 1}, r"upsampling_kernel_size=\(1, 1\).*\(2, 2\)"),
        ({"order": "act_conv"}, "order='act_conv'.*conv_norm_act"),
        ({"head": "linear"}, "head='linear'.*conv_act_norm"),
        ({"downsampling": "average"}, "downsampling='average'.*strided"),
        ({"odd_sizes": "crop"}, "odd_sizes='crop'.*error, pad"),
        ({"padding": "valid", "residual": True}, "padding='valid'.*residual=False"),
        ({"initialization": "xavier"}, "initialization='xavier'.*he_normal"),
        ({"convolutions_per_stage": (2, 2)}, r"convolutions_per_stage=\(2, 2\).* 3 "),
        ({"dropout": 1.5}, "dropout=1.5"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(NetworkError, match=message):
        UNet(1, 2, **{"channels": (4, 8, 16), **arguments})


def test_unet3d_defaults_are_padded():
    network = UNet3D(1, 2, channels=(4, 8))
    assert network.output_shape((8, 10, 12)) == (8, 10, 12)
