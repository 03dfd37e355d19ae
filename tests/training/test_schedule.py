import pytest
import torch

from medseg.training import PolynomialWarmUp


def rates(total: int, warm_up: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = PolynomialWarmUp(optimizer, total=total, warm_up=warm_up)
    seen = []
    for _ in range(total):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_decay_is_the_polynomial():
    assert rates(10, 0) == pytest.approx([2.0 * (1 - t / 10) ** 0.9 for t in range(10)])


def test_warm_up_rises_linearly_then_joins_the_polynomial():
    found = rates(20, 4)
    assert found[:4] == pytest.approx([2.0 * k / 5 for k in (1, 2, 3, 4)])
    assert found[4:] == pytest.approx([2.0 * (1 - t / 20) ** 0.9 for t in range(4, 20)])


def test_extending_past_the_end_stays_at_zero():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = PolynomialWarmUp(optimizer, total=2)
    for _ in range(5):
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0


def test_bad_lengths_are_refused():
    with pytest.raises(ValueError, match="0 ≤ warm_up ≤ total"):
        rates(3, 4)


def test_another_end_changes_the_slope_and_not_the_rate():
    """By hand: half of 10 steps are done; with 20 more steps to go, progress grows by 0.5 / 20 per step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = PolynomialWarmUp(optimizer, total=10)
    seen = []
    for step in range(25):
        if step == 5:
            schedule.end_at(25)
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert seen[:6] == pytest.approx([2.0 * (1 - t / 10) ** 0.9 for t in range(6)])
    assert seen[6:] == pytest.approx([2.0 * (1 - 0.5 - 0.5 * (t - 5) / 20) ** 0.9 for t in range(6, 25)])
    assert optimizer.param_groups[0]["lr"] == 0

    other = PolynomialWarmUp(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0), total=10)
    other.load_state_dict(schedule.state_dict())
    assert other.get_last_lr() == [0.0]
