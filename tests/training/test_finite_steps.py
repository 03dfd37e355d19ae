"""A step whose loss or gradient is not finite changes only a count; too many in a row end the training."""

import csv
import json
import logging

import pytest
import torch
from bundle.tiny_bundles import BUNDLES
from monai.engines import SupervisedTrainer
from training.test_iteration import batch, small_network

from medseg.errors import MedsegError, NonFiniteError
from medseg.losses import WeightedCrossEntropyLoss
from medseg.plan import read_plan
from medseg.training import (
    CheckpointHandler,
    FiniteSteps,
    SupervisedUpdate,
    TrainingHistoryHandler,
    TrainingRecordHandler,
)
from medseg.training.iteration import all_finite

PLAN = read_plan(BUNDLES / "phantom_cells_segmentation" / "configs" / "plan.json")


class NonFiniteLoss(torch.nn.Module):
    """Cross entropy whose value or gradient is not finite at chosen calls, counted from 1."""

    def __init__(self, calls=(), value=float("nan"), gradient_only=False):
        super().__init__()
        self.inner, self.calls, self.value, self.gradient_only, self.count = (
            WeightedCrossEntropyLoss(),
            set(calls),
            value,
            gradient_only,
            0,
        )

    def forward(self, logits, label, weight=None):
        self.count += 1
        loss = self.inner(logits, label, weight)
        if self.count not in self.calls:
            return loss
        if self.gradient_only:
            logits.register_hook(lambda gradient: gradient * self.value)
            return loss
        return loss * self.value


def trainer(steps, loss, network=None, precision="fp32", update=None, **options):
    network = network or small_network()
    update = update or SupervisedUpdate(network, precision, **options)
    return SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=steps if isinstance(steps, list) else [batch()] * steps,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9),
        loss_function=loss,
        iteration_update=update.train,
        decollate=False,
    )


def weights(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("option", [None, "clipped", "scaled"])
@pytest.mark.parametrize("gradient_only", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_changes_nothing(value, gradient_only, option):
    # plain gradient descent on one batch: three steps of which one is skipped are two steps
    networks = []
    for steps, calls in ((3, [2]), (2, [])):
        network = small_network()
        update = SupervisedUpdate(network, "fp32", max_grad_norm=0.1 if option == "clipped" else None)
        if option == "scaled":
            update.scaler = torch.amp.GradScaler("cpu", init_scale=1.0, growth_interval=1000, backoff_factor=1 - 1e-9)
        engine = trainer(steps, NonFiniteLoss(calls, value, gradient_only), network, update=update)
        engine.run()
        assert FiniteSteps.of(engine).skipped == len(calls)
        networks.append(network)
    assert_equal(*map(weights, networks))


def test_averaged_weights_and_running_statistics_do_not_move():
    def network_with_statistics():
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.BatchNorm3d(4), torch.nn.Conv3d(4, 2, 1)
        )

    poisoned = batch()
    poisoned["image"] = poisoned["image"].clone()
    poisoned["image"][0, 0, 0, 0, 0] = float("nan")
    states = []
    for batches in ([batch(), poisoned, batch()], [batch(), batch()]):
        network = network_with_statistics()
        update = SupervisedUpdate(network, "fp32", average_decay=0.9)
        trainer(batches, NonFiniteLoss(), network, update=update).run()
        averaged = {f"averaged.{name}": value for name, value in weights(update.averaged).items()}
        states.append(weights(network) | averaged)
    assert_equal(*states)
    assert states[0]["averaged.n_averaged"] == 2


def test_skipped_steps_are_logged_once_and_counted_in_history_and_record(tmp_path, caplog):
    network = small_network()
    engine = trainer(6, NonFiniteLoss([2, 3, 5]), network=network)
    TrainingHistoryHandler(tmp_path, engine.optimizer).attach(engine)
    TrainingRecordHandler(tmp_path, network, PLAN, [], {"precision": "fp32"}).attach(engine)
    with caplog.at_level(logging.WARNING):
        engine.run()
    messages = [entry.getMessage() for entry in caplog.records if "not finite" in entry.getMessage()]
    assert len(messages) == 1
    assert "epoch 1, step 2: " in messages[0]
    with (tmp_path / "history.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    assert row["skipped_steps"] == "3"
    assert torch.isfinite(torch.tensor(float(row["loss"])))  # the mean over the three that counted
    assert json.loads((tmp_path / "training.json").read_text())["skipped_steps"] == 3


@pytest.mark.parametrize(("precision", "remedy"), [("bf16", "--precision fp32"), ("fp32", "images")])
def test_too_many_in_a_row_end_the_training_in_one_line(precision, remedy):
    batches = [batch() | {"case": ["a_1", "b_2"]}] * 9
    engine = trainer(batches, NonFiniteLoss([1, 3, 4, 5]), precision=precision, max_skipped=3)
    pattern = rf"^epoch 1, step 5 \(a_1, b_2\): .*3 steps in a row.*{remedy}[^\n]*$"
    with pytest.raises(MedsegError, match=pattern) as raised:
        engine.run()
    assert isinstance(raised.value, NonFiniteError)


def test_a_resumed_training_keeps_the_counts(tmp_path):
    for epochs, calls in ((1, [2]), (2, [1])):
        network = small_network()
        engine = trainer(2, NonFiniteLoss(calls), network=network)
        engine.state.max_epochs = epochs
        CheckpointHandler(tmp_path, {"network": network}, PLAN, resume=True).attach(engine)
        engine.run()
    assert FiniteSteps.of(engine).skipped == 2


def test_large_finite_numbers_are_finite():
    parameter = torch.nn.Parameter(torch.ones(4))
    for value, expected in ((1e30, True), (float("inf"), False), (float("nan"), False), (-1e38, True)):
        parameter.grad = torch.tensor([0.0, value, 1.0, 0.0])  # the squares of 1e30 overflow
        assert all_finite(torch.tensor(1.0), [parameter]) == expected
    parameter.grad = torch.zeros(4)
    assert not all_finite(torch.tensor([1.0, float("nan")]), [parameter])
    assert all_finite(torch.tensor(1.0), [torch.nn.Parameter(torch.ones(1))])  # frozen: no gradient
