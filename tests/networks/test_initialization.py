import math

import pytest
import torch
from torch import nn

from medseg.networks import create
from medseg.networks.blocks import initialize


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [
        (nn.Conv2d(64, 64, 3), 576),  # the example of Ronneberger et al. 2015: 9 · 64 = 576
        (nn.Conv3d(16, 64, 3), 432),
        (nn.ConvTranspose2d(64, 32, 2, stride=2), 64),
        (nn.ConvTranspose2d(64, 32, 4, stride=2), 256),
    ],
)
def test_he_normal_has_the_papers_standard_deviation(layer, fan_in):
    torch.manual_seed(0)
    initialize(layer, "he_normal")
    n = layer.weight.numel()
    assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=5 / math.sqrt(2 * n))
    assert layer.weight.mean().item() == pytest.approx(0, abs=5 * math.sqrt(2 / fan_in / n))
    assert torch.equal(layer.bias, torch.zeros_like(layer.bias))


def test_feature_maps_keep_about_unit_variance():
    """The purpose of the initialisation (Section 3 of the paper): second moments neither vanish nor explode."""
    torch.manual_seed(0)
    network = create("unet_ronneberger2015", 1, 2, channels=(32, 64, 128), padding="same", dropout=0.0)
    with torch.no_grad():
        moments = [m.square().mean().item() for m in network.encode(torch.randn(1, 1, 64, 64))]
    assert all(0.1 < moment < 10 for moment in moments)


def test_default_leaves_torchs_own():
    torch.manual_seed(0)
    expected = nn.Conv2d(3, 4, 3).weight
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3)
    initialize(layer, "default")
    assert torch.equal(layer.weight, expected)
