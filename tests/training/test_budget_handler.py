"""A training ends within its time budget although the machine gets slower or faster while it runs."""

import json
from itertools import pairwise

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, ValidationHandler

from medseg.training import PolynomialWarmUp
from medseg.training.budget_handler import TimeBudgetHandler, seconds_since_start

STEPS, VALIDATION = 5, 8.0


class Machine:
    """A MONAI trainer on a clock that its steps advance; `speed` gives the seconds of a step at a time of the clock."""

    def __init__(self, epochs: int, interval: int, seconds: float | None, speed, **handler) -> None:
        self.now, self.rates, self.validated = 10.0, [], []
        network = torch.nn.Linear(1, 1)
        optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
        self.schedule = PolynomialWarmUp(optimizer, total=epochs * STEPS, warm_up=STEPS)
        data = [{"image": torch.zeros(1)}] * STEPS

        def step(engine, batch):
            self.rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            self.now += speed(self.now) * (3 if engine.state.iteration == 1 else 1)
            return {"loss": torch.zeros(())}

        def validate(engine, batch):
            self.now += VALIDATION / STEPS
            self.validated.append(self.trainer.state.epoch)
            return {}

        self.evaluator = SupervisedEvaluator("cpu", data, network, iteration_update=validate)
        self.trainer = SupervisedTrainer(
            "cpu", epochs, data, network, optimizer, torch.nn.MSELoss(), iteration_update=step
        )
        LrScheduleHandler(self.schedule, epoch_level=False, print_lr=False).attach(self.trainer)
        validation = ValidationHandler(interval, self.evaluator)
        validation.attach(self.trainer)
        self.budget = TimeBudgetHandler(
            seconds, self.schedule, self.evaluator, validation, clock=lambda: self.now, **handler
        )

    def run(self) -> None:
        self.budget.attach(self.trainer)
        self.trainer.run()


def planned_epochs(seconds: float, interval: int, step: float) -> int:
    """Return what `medseg train` plans for steps of that length."""
    return int(0.97 * (seconds - 10) / (STEPS * step + VALIDATION / interval)) // interval * interval


SPEEDS = {
    "even": lambda now: 1.0,
    "slower": lambda now: 1.0 if now < 1000 else 2.0,
    "faster": lambda now: 1.0 if now < 1000 else 0.4,
    "slower and slower": lambda now: 1.0 + now / 2000,
    "slow in the middle": lambda now: 3.0 if 800 < now < 1400 else 1.0,
    "slow at the end": lambda now: 2.0 if now > 2700 else 1.0,
    "slower than the probe": lambda now: 1.3,
    "unsteady": lambda now: 1.0 + 0.5 * ((now * 7.3) % 1.0),
}


@pytest.mark.parametrize("speed", SPEEDS)
def test_the_budget_is_kept_within_three_percent(speed):
    budget, interval = 3000.0, 10
    machine = Machine(planned_epochs(budget, interval, 1.0), interval, budget, SPEEDS[speed])
    machine.run()
    assert 0.93 * budget < machine.now <= 1.01 * budget
    assert machine.validated[-1] == machine.trainer.state.epoch == machine.trainer.state.max_epochs
    # the learning rate falls evenly to its end, without a jump
    rates = machine.rates[STEPS:]
    assert all(later < before for before, later in pairwise(rates))
    assert max(before - later for before, later in pairwise(rates)) < 0.02
    assert rates[-1] < 0.03
    assert bool(machine.budget.changes) == (speed != "even")


def test_the_recorded_changes_repeat_a_training_on_another_machine():
    first = Machine(480, 40, 3000.0, SPEEDS["slower"])
    first.run()
    changes = json.loads(json.dumps(first.budget.changes))
    again = Machine(480, 40, None, SPEEDS["even"], changes=changes)
    again.run()
    assert changes
    assert again.rates == first.rates
    assert again.validated == first.validated
    assert again.budget.changes == changes


def test_a_resumed_training_continues_its_time_and_its_changes():
    whole = Machine(480, 40, 3000.0, SPEEDS["slower"])
    whole.run()
    first = Machine(480, 40, 3000.0, SPEEDS["slower"])
    stop = 300

    @first.trainer.on(Events.EPOCH_COMPLETED(once=stop))
    def end(engine):
        engine.terminate()

    first.run()
    state = {"budget": first.budget.state_dict(), "schedule": first.schedule.state_dict()}
    assert state["budget"]["changes"]
    assert state["budget"]["seconds"] == first.now

    second = Machine(480, 40, 3000.0, lambda now: SPEEDS["slower"](now + state["budget"]["seconds"]))
    second.schedule.load_state_dict(state["schedule"])
    second.budget.load_state_dict(state["budget"])
    second.trainer.state.epoch, second.trainer.state.iteration = stop, stop * STEPS
    second.run()
    assert 0.93 * 3000.0 < second.now + first.now <= 1.01 * 3000.0
    assert second.rates[0] < first.rates[-1]
    assert second.trainer.state.epoch == pytest.approx(whole.trainer.state.epoch, rel=0.05)


def test_the_clock_begins_with_the_process():
    before = seconds_since_start()
    assert 0 < before < 24 * 3600
    assert seconds_since_start() - before < 5
