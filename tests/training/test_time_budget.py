"""A time budget is kept: on a simulated clock, a real trainer is probed, planned and run to its end."""

import math

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import ValidationHandler

from medseg.errors import OptionError
from medseg.training.probe import ProbeHandler
from medseg.training.time_budget import Costs, duration, plan_schedule

STEP, SAMPLE, EPOCH, CHECKPOINT, CASE, DRAWING, START, END = 1.3, 0.4, 0.9, 2.5, 6.0, 1.7, 25.0, 3.0


class SimulatedTraining:
    """MONAI's engines on a clock that their parts advance; the first epoch is slower, as caches warm up."""

    def __init__(self, num_cases: int, num_validation_cases: int, epochs: int, checkpoint_interval: int) -> None:
        self.now = 0.0
        network = torch.nn.Linear(1, 1)
        self.evaluator = SupervisedEvaluator(
            "cpu", self.loader(num_validation_cases, 0.0), network, iteration_update=self.takes(CASE)
        )
        self.evaluator.add_event_handler(Events.EPOCH_COMPLETED, lambda: self.advance(DRAWING))
        self.trainer = SupervisedTrainer(
            "cpu",
            epochs,
            self.loader(num_cases, SAMPLE),
            network,
            torch.optim.SGD(network.parameters()),
            torch.nn.MSELoss(),
            iteration_update=self.takes(STEP),
        )

        def end_epoch(engine):
            self.advance(EPOCH + (CHECKPOINT if engine.state.epoch % checkpoint_interval == 0 else 0))

        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, end_epoch)

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def takes(self, seconds: float):
        def update(engine, batch):
            self.advance(seconds * (3 if getattr(self, "trainer", engine).state.epoch == 1 else 1))
            return {"loss": torch.zeros(())}

        return update

    def loader(self, number: int, seconds: float):
        owner = self

        class Cases(torch.utils.data.Dataset):
            def __len__(self):
                return number

            def __getitem__(self, index):
                owner.advance(seconds)
                return {"image": torch.zeros(1)}

        return torch.utils.data.DataLoader(Cases())

    def probe(self, seconds: float, num_cases: int, num_validation_cases: int, **values) -> Costs:
        handler = ProbeHandler(self.evaluator, seconds, clock=lambda: self.now)
        handler.attach(self.trainer)
        self.trainer.run()
        times, probed = handler.times, len(self.evaluator.data_loader)
        return Costs(
            num_workers=0,
            num_cases=num_cases,
            num_validation_cases=num_validation_cases,
            steps_per_epoch=num_cases,
            start_seconds=START,
            step_seconds=times.step_seconds,
            sample_seconds=times.sample_seconds,
            epoch_seconds=times.epoch_seconds,
            checkpoint_seconds=times.checkpoint_seconds,
            validation_seconds=times.validation_seconds(num_validation_cases / probed),
            end_seconds=END,
            **values,
        )


@pytest.mark.parametrize("checkpoint_interval", [1, 10])
@pytest.mark.parametrize("budget", [3600.0, 20_000.0])
def test_a_budget_is_kept_within_ten_percent(budget, checkpoint_interval):
    num_cases, num_validation_cases, share = 20, 7, 0.1
    costs = SimulatedTraining(8, 2, 10**6, 2).probe(
        60.0,
        num_cases,
        num_validation_cases,
        checkpoint_interval=checkpoint_interval,
        validation_interval=10,
        validates_epochs=True,
    )
    schedule = plan_schedule(costs, budget, share)

    run = SimulatedTraining(num_cases, num_validation_cases, schedule.max_epochs, checkpoint_interval)
    validations = []
    run.evaluator.add_event_handler(Events.STARTED, lambda: validations.append(run.trainer.state.epoch))
    ValidationHandler(schedule.val_interval, run.evaluator).attach(run.trainer)
    run.trainer.run()
    total = START + run.now + END
    assert 0.9 * budget <= total <= budget
    assert total == pytest.approx(schedule.seconds, rel=0.03)
    assert validations[-1] == schedule.max_epochs
    assert 7 <= len(validations) <= 14


def test_the_probe_finds_what_each_part_costs():
    costs = SimulatedTraining(8, 2, 10**6, 2).probe(
        60.0, 20, 7, checkpoint_interval=1, validation_interval=10, validates_epochs=True
    )
    assert costs.step_seconds == pytest.approx(STEP + SAMPLE)
    assert costs.sample_seconds == pytest.approx(SAMPLE)
    assert costs.epoch_seconds == pytest.approx(EPOCH)
    assert costs.checkpoint_seconds == pytest.approx(CHECKPOINT)
    assert costs.validation_seconds == pytest.approx(7 * CASE + DRAWING)


def test_the_probe_of_slow_steps_ends_inside_an_epoch():
    training = SimulatedTraining(50, 1, 10**6, 2)
    costs = training.probe(10.0, 50, 1, checkpoint_interval=1, validation_interval=1, validates_epochs=True)
    assert training.trainer.state.iteration < 50
    assert STEP < costs.step_seconds < 3 * STEP + SAMPLE + 1e-9


def costs(**changed) -> Costs:
    given = {
        "num_workers": 0,
        "num_cases": 100,
        "num_validation_cases": 10,
        "steps_per_epoch": 50,
        "start_seconds": 20.0,
        "step_seconds": 0.5,
        "sample_seconds": 0.1,
        "epoch_seconds": 1.0,
        "checkpoint_seconds": 0.5,
        "checkpoint_interval": 1,
        "validation_seconds": 12.0,
        "validation_interval": 10,
        "validates_epochs": True,
        "end_seconds": 2.0,
    }
    return Costs(**{**given, **changed})


def test_seconds_is_the_sum_of_all_parts():
    assert costs().seconds(20) == pytest.approx(20 + 20 * (50 * 0.5 + 1.0 + 0.5) + 2 * 12 + 2)
    assert costs(checkpoint_interval=8).seconds(20) == pytest.approx(20 + 20 * 26 + 3 * 0.5 + 2 * 12 + 2)
    per_steps = costs(validates_epochs=False, validation_interval=5)
    assert per_steps.seconds(20) == pytest.approx(20 + 20 * 26.5 + 20 * 10 * 12 + 2)


@pytest.mark.parametrize("budget", [120.0, 300.0, 1000.0, 7200.0, 86400.0, 30 * 86400.0])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.25, 1.0])
def test_every_budget_is_used_and_the_last_epoch_is_validated(budget, share):
    schedule = plan_schedule(costs(), budget, share)
    epoch = costs().seconds(2, 10**9) - costs().seconds(1, 10**9)
    assert schedule.max_epochs % schedule.val_interval == 0
    assert schedule.seconds <= 0.97 * budget
    # what is left would not hold another epoch with its validation, or is a small part of the budget
    assert 0.97 * budget - schedule.seconds < max(2 * epoch + 12, 0.05 * budget)


def test_a_validation_interval_of_the_user_is_kept():
    assert plan_schedule(costs(), 7200.0).val_interval == 10
    assert plan_schedule(costs(validates_epochs=False, validation_interval=7), 7200.0, 0.1).val_interval == 7


def test_a_budget_below_one_epoch_is_refused_with_the_time_that_is_needed():
    with pytest.raises(OptionError) as refused:
        plan_schedule(costs(), 40.0, 0.1)
    needed = math.ceil((20 + 26.5 + 12 + 2) / 0.97)
    assert "40 s" in str(refused.value)
    assert f"{needed} s" in str(refused.value)


def test_durations_have_two_units():
    assert [duration(s) for s in (3.24, 62, 600, 7080, 86400 * 2)] == [
        "3.2 s",
        "62 s",
        "10 min",
        "1 h 58 min",
        "48 h 0 min",
    ]
