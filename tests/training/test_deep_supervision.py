import pytest
import torch

from medseg.errors import NetworkError
from medseg.losses import DeepSupervisionLoss, WeightedDiceCELoss
from medseg.networks import create
from medseg.training import DeepSupervision


def unet() -> torch.nn.Module:
    torch.manual_seed(0)
    return create(
        "unet3d_cicek2016", in_channels=1, out_channels=2, channels=[4, 8, 8], norm="instance", padding="same"
    )


def test_the_first_level_is_the_network_itself():
    network, x = unet(), torch.randn(1, 1, 8, 8, 8)
    wrapped = DeepSupervision(network)
    levels = wrapped.train()(x)
    assert [tuple(logits.shape[2:]) for logits in levels] == [(8, 8, 8), (4, 4, 4)]
    torch.testing.assert_close(levels[0], network(x))
    torch.testing.assert_close(wrapped.eval()(x), network(x))


def test_every_level_has_a_gradient_and_the_networks_state_has_no_new_name():
    network = unet()
    names = set(network.state_dict())
    wrapped = DeepSupervision(network)
    label = torch.randint(0, 2, (1, 1, 8, 8, 8))
    DeepSupervisionLoss(loss=WeightedDiceCELoss())(wrapped(torch.randn(1, 1, 8, 8, 8)), label).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in wrapped.heads.parameters())
    assert set(wrapped.network.state_dict()) == names
    assert len(list(wrapped.parameters())) == len(list(network.parameters())) + 2  # one head more: weight and bias


def test_a_unet_plus_plus_brings_its_own_heads():
    network = create(
        "unetplusplus_zhou2018", spatial_dims=2, in_channels=1, out_channels=2, channels=[4, 8, 8], heads="all"
    )
    wrapped = DeepSupervision(network)
    assert [tuple(y.shape) for y in wrapped(torch.randn(2, 1, 8, 8))] == [(2, 2, 8, 8)] * 2
    assert len(list(wrapped.parameters())) == len(list(network.parameters()))


def test_levels_can_be_fewer_not_more():
    assert len(DeepSupervision(unet(), levels=1)(torch.randn(1, 1, 8, 8, 8))) == 1
    with pytest.raises(NetworkError, match="levels must be between 1 and 2 for this network, found 3"):
        DeepSupervision(unet(), levels=3)
    with pytest.raises(NetworkError, match="needs intermediate_features and intermediate_heads, found Linear"):
        DeepSupervision(torch.nn.Linear(1, 1))
