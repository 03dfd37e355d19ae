"""Averaged weights follow their formula; deep supervision adds heads for the training only."""

import pytest
import torch

from medseg.errors import NetworkError
from medseg.losses import DeepSupervisionLoss, WeightedDiceCELoss
from medseg.networks import create
from medseg.training import AveragedNetwork, DeepSupervision


def test_averaged_weights_follow_the_closed_form():
    network = torch.nn.Linear(1, 1, bias=False)
    averaged = AveragedNetwork(network, decay=0.5)
    values = [1.0, 2.0, -1.0, 4.0, 0.5]
    for value in values:
        with torch.no_grad():
            network.weight.fill_(value)
        averaged.update_parameters(network)

    expected = values[0]  # torch's AveragedModel starts from the weights of its first update
    for n, value in enumerate(values[1:], start=1):
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    assert averaged.module.weight.item() == pytest.approx(expected, abs=1e-6)


def test_a_decay_of_zero_keeps_the_last_weights():
    network = torch.nn.Linear(3, 2)
    averaged = AveragedNetwork(network, decay=0)
    for _ in range(3):
        torch.nn.init.normal_(network.weight)
        averaged.update_parameters(network)
    assert torch.equal(averaged.module.weight, network.weight)


def test_running_statistics_are_copied():
    network = torch.nn.BatchNorm1d(2)
    averaged = AveragedNetwork(network, decay=0.9)
    for offset in (0, 3):
        network(torch.randn(8, 2) + offset)
        averaged.update_parameters(network)
    assert torch.equal(averaged.module.running_mean, network.running_mean)


def test_a_decay_of_one_is_refused():
    with pytest.raises(ValueError, match="found 1"):
        AveragedNetwork(torch.nn.Linear(1, 1), decay=1)


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


def test_every_level_has_a_gradient_and_the_networks_state_keeps_its_names():
    network = unet()
    names = set(network.state_dict())
    wrapped = DeepSupervision(network)
    label = torch.randint(0, 2, (1, 1, 8, 8, 8))
    DeepSupervisionLoss(loss=WeightedDiceCELoss())(wrapped(torch.randn(1, 1, 8, 8, 8)), label).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in wrapped.heads.parameters())
    assert set(wrapped.network.state_dict()) == names
    assert len(list(wrapped.parameters())) == len(list(network.parameters())) + 2  # one head more: weight and bias


def test_a_unet_plus_plus_has_its_own_heads():
    network = create(
        "unetplusplus_zhou2018", spatial_dims=2, in_channels=1, out_channels=2, channels=[4, 8, 8], heads="all"
    )
    wrapped = DeepSupervision(network)
    assert [tuple(y.shape) for y in wrapped(torch.randn(2, 1, 8, 8))] == [(2, 2, 8, 8)] * 2
    assert len(list(wrapped.parameters())) == len(list(network.parameters()))


def test_fewer_levels_can_be_supervised_and_not_more():
    assert len(DeepSupervision(unet(), levels=1)(torch.randn(1, 1, 8, 8, 8))) == 1
    with pytest.raises(NetworkError, match=r"between 1 and 2.*found 3"):
        DeepSupervision(unet(), levels=3)
    with pytest.raises(NetworkError, match="found Linear"):
        DeepSupervision(torch.nn.Linear(1, 1))
