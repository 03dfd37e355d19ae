import pytest
import torch
from ignite.engine import Engine

from medseg.training import AveragedNetwork, WeightAveraging


def test_follows_the_closed_form():
    network = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        network.weight.fill_(0)
    averaged = AveragedNetwork(network, decay=0.5)

    def step(engine: Engine, value: float) -> None:
        with torch.no_grad():
            network.weight.fill_(value)

    engine = Engine(step)
    WeightAveraging(averaged, network).attach(engine)
    values = [1.0, 2.0, -1.0, 4.0, 0.5]
    engine.run(values, max_epochs=1)

    expected = values[0]  # torch's AveragedModel starts from the first weights it is shown
    for n, value in enumerate(values[1:], start=1):
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    assert averaged.module.weight.item() == pytest.approx(expected, abs=1e-6)


def test_running_statistics_are_copied():
    network = torch.nn.BatchNorm1d(2)
    averaged = AveragedNetwork(network, decay=0.9)
    engine = Engine(lambda engine, x: network(x))
    WeightAveraging(averaged, network).attach(engine)
    engine.run([torch.randn(8, 2), torch.randn(8, 2) + 3], max_epochs=1)
    assert torch.equal(averaged.module.running_mean, network.running_mean)


def test_a_decay_of_one_would_never_learn():
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), found 1"):
        AveragedNetwork(torch.nn.Linear(1, 1), decay=1)
