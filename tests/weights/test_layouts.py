"""Every published layout: random weights of the published module give the same logits in ours."""

import pytest
import torch
from monai.networks.nets import UNETR as MonaiUNETR  # noqa: N811
from weights.published_networks import (
    PublishedPaddedUNet,
    PublishedShallowUNet,
    PublishedUNet3D,
    PublishedUNetPlusPlus,
    randomize,
)
from weights.published_unetr import PublishedUNETR

from medseg import weights
from medseg.networks import create

UNETR_TINY = {
    "image_size": 32,
    "channels": (4, 8, 16, 32),
    "embedding_channels": 24,
    "num_heads": 2,
    "mlp_channels": 32,
}
CASES = {
    "unet3d_prelu": (lambda: PublishedUNet3D(2, 3), {"channels": (4, 8, 16, 32)}, (16, 8, 24)),
    "unet_shallow": (lambda: PublishedShallowUNet(2, 3), {"channels": (4, 8, 16, 32)}, (108, 108)),
    "unet_padded": (lambda: PublishedPaddedUNet(2, 3), {"channels": (4, 8, 16, 32, 64)}, (37, 50)),
    "unet_padded_bilinear": (
        lambda: PublishedPaddedUNet(2, 3, bilinear=True),
        {"channels": (4, 8, 16, 32, 32)},
        (37, 50),
    ),
    "unetplusplus_preactivation": (
        lambda: PublishedUNetPlusPlus(2, 3),
        {"channels": (4, 8, 16, 32, 64)},
        (32, 48),
    ),
    "unetr_relu": (lambda: PublishedUNETR(2, 3), UNETR_TINY, (32, 32, 32)),
    "unetr_monai": (
        lambda: MonaiUNETR(2, 3, (32, 32, 32), feature_size=4, hidden_size=24, mlp_dim=32, num_heads=2),
        UNETR_TINY,
        (32, 32, 32),
    ),
}


def test_rebuilt_modules_have_the_published_numbers_of_parameters():
    with torch.device("meta"):
        rebuilt = {
            19_077_859: PublishedUNet3D(3, 3, 32),
            8_563_078: PublishedShallowUNet(1, 2, 64),
            31_036_546: PublishedPaddedUNet(1, 2, 64),
            17_261_890: PublishedPaddedUNet(1, 2, 64, bilinear=True),
            47_195_340: PublishedUNetPlusPlus(3, 3, 64),
            148_955_299: PublishedUNETR(4, 3, size=128, c=768, heads=12, hidden=2048, w=64),
        }
    for published, network in rebuilt.items():
        assert sum(p.numel() for p in network.parameters()) == published


@pytest.mark.parametrize("preset", CASES)
def test_published_weights_give_the_published_logits(preset):
    build, arguments, size = CASES[preset]
    published = randomize(build())
    network = create(preset, 2, 3, **arguments).eval()

    report = weights.load_into(network, published.state_dict())

    assert weights.detect(published.state_dict()).preset == preset
    assert report.matched == report.total == len(network.state_dict())
    image = torch.randn(2, 2, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = published(image)
        expected = expected[-1] if isinstance(expected, list) else expected
        found = network(image)
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_every_head_of_the_published_unet_plus_plus_is_a_pruned_network():
    published = randomize(PublishedUNetPlusPlus(2, 3))
    network = create("unetplusplus_preactivation", 2, 3, channels=(4, 8, 16, 32, 64)).eval()
    weights.load_into(network, published.state_dict())
    image = torch.randn(1, 2, 32, 16)
    with torch.no_grad():
        for depth, expected in enumerate(published(image), start=1):
            torch.testing.assert_close(network.prune(depth)(image), expected, rtol=1e-5, atol=1e-5)


def test_residual_encoder_layout_is_renamed_completely():
    """nnU-Net is not installed, so its keys are derived here from those of a network with two poolings."""
    network = create("unet_residual_encoder", 2, 3, channels=(4, 8, 16), convolutions_per_stage=(1, 2, 1))
    theirs = {}
    for key, value in randomize(network).state_dict().items():
        head, _, rest = key.partition(".")
        if head == "head":
            theirs[f"decoder.seg_layers.1.{rest}"] = value
            theirs[f"decoder.seg_layers.0.{rest}"] = torch.zeros(3, 8, 1, 1, 1) if rest == "weight" else value
        elif head == "encoder":
            stage, _, block = rest.partition(".convolutions.")
            block = block.replace("shortcut.project", "skip.1")
            if stage == "0":
                number, _, block = block.partition(".")
                prefix = "encoder.stem.convs.0." if number == "0" else "encoder.stages.0.blocks."
                theirs[prefix + block] = value
            else:
                theirs[f"encoder.stages.{stage}.blocks.{block}"] = value
        else:
            renamed = key.replace(".upsample.", "@").replace(".convolutions.", ".convs.")
            if "@" in renamed:
                stage, part = renamed.removeprefix("decoder.").split("@")
                theirs[f"decoder.transpconvs.{stage}.{part}"] = value
            else:
                joins = renamed.endswith("convs.0.conv.weight")
                value = torch.cat(value.chunk(2, 1)[::-1], 1) if joins else value
                theirs["decoder.stages." + renamed.removeprefix("decoder.")] = value
    theirs |= {f"decoder.{key}": value for key, value in theirs.items() if key.startswith("encoder.")}
    other = create("unet_residual_encoder", 2, 3, channels=(4, 8, 16), convolutions_per_stage=(1, 2, 1)).eval()

    report = weights.load_into(other, {"network_weights": theirs}["network_weights"])

    assert report.layout.startswith("nnU-Net")
    image = torch.randn(1, 2, 16, 8, 8)
    with torch.no_grad():
        assert torch.equal(other(image), network.eval()(image))


def test_our_own_keys_have_no_published_layout():
    assert weights.detect(create("unet3d_prelu", 1, 2, channels=(4, 8)).state_dict()) is None
