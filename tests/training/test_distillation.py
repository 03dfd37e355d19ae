"""A network that learns the probabilities of trained networks."""

import copy

import pytest
import torch
from torch import nn

from medseg.errors import NetworkError
from medseg.networks import create
from medseg.training import Teacher


def networks(number: int) -> list[nn.Module]:
    torch.manual_seed(0)
    return [create("unet3d_cicek2016", 1, 3, channels=[4, 8], norm="instance", padding="same") for _ in range(number)]


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.randn(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(1))


def test_cross_entropy_with_the_mean_probabilities(image):
    student, *teachers = networks(3)
    logits = student(image)
    q = sum(teacher(image).softmax(1) for teacher in teachers) / 2
    expected = -(q * logits.log_softmax(1)).sum(1).mean()
    loss = Teacher(teachers, weight=0.25).mix(torch.tensor(2.0), logits, image)
    torch.testing.assert_close(loss, 0.75 * 2.0 + 0.25 * expected)


def test_regions_are_learned_channel_by_channel(image):
    student, teacher = networks(2)
    logits, q = student(image), teacher(image).sigmoid()
    entropies = -(q * logits.sigmoid().log() + (1 - q) * (1 - logits.sigmoid()).log())
    loss = Teacher([teacher], weight=1, activation="sigmoid").mix(torch.tensor(0.0), logits, image)
    torch.testing.assert_close(loss, entropies.sum(1).mean())


def test_a_network_that_equals_its_teacher_has_nothing_to_learn(image):
    (teacher,) = networks(1)
    student, other = copy.deepcopy(teacher), copy.deepcopy(teacher)
    with torch.no_grad():
        other.head.weight.mul_(1.5)
    largest = []
    for network in (student, other):
        Teacher([teacher], weight=1).mix(torch.tensor(0.0), network(image), image).backward()
        largest.append(max(float(p.grad.abs().max()) for p in network.parameters()))
    assert largest[0] < 1e-6 < 1e-3 < largest[1]
    assert all(p.grad is None for p in teacher.parameters())


def test_deep_supervision_compares_the_full_resolution(image):
    student, teacher = networks(2)
    logits = student(image)
    judge = Teacher([teacher])
    one = judge.mix(torch.tensor(1.0), logits, image)
    assert torch.equal(judge.mix(torch.tensor(1.0), [logits, logits[..., ::2, ::2, ::2]], image), one)


def test_other_channels_are_refused(image):
    (teacher,) = networks(1)
    with pytest.raises(NetworkError, match=r"\(2, 3, 8, 8, 8\).*\(2, 2, 8, 8, 8\)"):
        Teacher([teacher]).mix(torch.tensor(0.0), torch.zeros(2, 2, 8, 8, 8), image)


def test_bad_arguments():
    with pytest.raises(NetworkError, match="--teachers"):
        Teacher([])
    with pytest.raises(ValueError, match=r"1\.5"):
        Teacher(networks(1), weight=1.5)
