import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medseg.training import TensorBoardHandler, TrainingHistoryHandler
from medseg.training.history import read_history

LOSSES = [4.0, 2.0, 1.0, 3.0, 0.5, 1.5]


def engines(directory: Path, validate_every: int, resume_at: int = 0) -> tuple[Engine, Engine]:
    """Return a trainer of two steps per epoch with known losses, and an evaluator whose Dice is step / 10."""
    network = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)

    def step(engine: Engine, batch: object) -> dict[str, torch.Tensor]:
        optimizer.param_groups[0]["lr"] = 1 / engine.state.iteration
        network(torch.ones(2)).backward()
        return {"loss": torch.tensor(LOSSES[engine.state.iteration - 1])}

    def evaluate(engine: Engine, batch: object) -> list[dict[str, torch.Tensor]]:
        volume = torch.zeros(1, 4, 5, 3)
        return [{"image": volume + torch.rand(1, 4, 5, 3), "label": volume + 1, "pred": volume + 2}]

    trainer, evaluator = Engine(step), Engine(evaluate)
    trainer.state.epoch_length, trainer.state.max_epochs = 2, None

    @evaluator.on(Events.EPOCH_COMPLETED)
    def score() -> None:
        kinds = {"dice_a": np.float32(0.5), "dice_b": torch.tensor([0.25])}
        neither = {"cases": "no number", "curve": torch.zeros(3)}
        evaluator.state.metrics = {"dice": trainer.state.iteration / 10, **kinds, **neither}

    TrainingHistoryHandler(directory, optimizer, evaluator).attach(trainer)
    TensorBoardHandler(directory, optimizer, evaluator, network).attach(trainer)
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(every=validate_every), lambda: evaluator.run([0], max_epochs=1)
    )
    return trainer, evaluator


def train(directory: Path, epochs: int, validate_every: int = 2) -> None:
    trainer, _ = engines(directory, validate_every)
    trainer.run([0, 0], max_epochs=epochs)


def events(directory: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    accumulator.Reload()
    return accumulator


def test_the_table_holds_mean_losses_rates_and_metrics(tmp_path):
    train(tmp_path, 3, validate_every=4)
    rows = read_history(tmp_path / "history.csv")
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert [row["loss"] for row in rows] == [3.0, 2.0, 1.0]
    assert [row["learning_rate"] for row in rows] == pytest.approx([1 / 2, 1 / 4, 1 / 6])
    assert [row.get("dice") for row in rows] == [None, 0.4, None]
    with (tmp_path / "history.csv").open() as stream:
        assert next(csv.reader(stream)) == ["step", "epoch", "loss", "learning_rate", "dice", "dice_a", "dice_b"]


def test_validations_inside_an_epoch_have_their_own_rows(tmp_path):
    train(tmp_path, 3, validate_every=3)
    rows = read_history(tmp_path / "history.csv")
    assert [(row["step"], row["epoch"], row["loss"]) for row in rows] == [
        (2, 1, 3.0), (3, 1.5, 1.0), (4, 2, 3.0), (6, 3, 1.0)
    ]  # fmt: skip


def test_the_picture_is_drawn_after_every_validation(tmp_path):
    from matplotlib.image import imread

    train(tmp_path, 1)
    first = imread(tmp_path / "training.png")
    assert first.std() > 0.05  # not a blank page
    train(tmp_path, 3)
    assert not np.array_equal(first, imread(tmp_path / "training.png"))


def test_the_picture_is_drawn_without_a_validation(tmp_path):
    from matplotlib.image import imread

    train(tmp_path, 1, validate_every=99)
    assert imread(tmp_path / "training.png").std() > 0.05


def test_a_resumed_training_goes_on_with_the_rows_of_its_checkpoint(tmp_path):
    train(tmp_path, 3)
    whole = read_history(tmp_path / "history.csv")
    trainer, _ = engines(tmp_path, 2)
    trainer.load_state_dict({"epoch": 1, "epoch_length": 2, "max_epochs": 3})
    trainer.run([0, 0], max_epochs=3)
    assert read_history(tmp_path / "history.csv") == whole
    train(tmp_path, 1)  # afresh: nothing of the earlier one stays
    assert len(read_history(tmp_path / "history.csv")) == 1


def test_without_matplotlib_the_training_goes_on(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with (
        pytest.warns(UserWarning, match=r"training\.png is not drawn: pictures need matplotlib"),
        pytest.warns(UserWarning, match="TensorBoard gets no pictures: pictures need matplotlib"),
    ):
        train(tmp_path, 1)
    assert read_history(tmp_path / "history.csv")
    assert not (tmp_path / "training.png").exists()


def test_tensorboard_holds_every_step_and_validation(tmp_path):
    train(tmp_path, 3)
    found = events(tmp_path)
    assert [(e.step, e.value) for e in found.Scalars("train/loss")] == list(enumerate(LOSSES, start=1))
    rates = [e.value for e in found.Scalars("train/learning_rate")]
    assert rates == pytest.approx([1 / step for step in range(1, 7)])
    assert [e.value for e in found.Scalars("validation/dice")] == pytest.approx([0.2, 0.4, 0.6])
    assert [e.value for e in found.Scalars("validation/dice_a") + found.Scalars("validation/dice_b")] == 3 * [
        0.5
    ] + 3 * [0.25]
    assert not {"validation/cases", "validation/curve"} & set(found.Tags()["scalars"])
    assert set(found.Tags()["images"]) == {f"validation/{name}" for name in ("image", "reference", "prediction")}
    assert {"weights/weight", "gradients/weight", "gradients/bias"} <= set(found.Tags()["histograms"])


def test_a_new_training_keeps_the_files_of_an_earlier_one(tmp_path):
    train(tmp_path, 2, validate_every=2)
    table, picture = (tmp_path / "history.csv").read_bytes(), (tmp_path / "training.png").read_bytes()
    with pytest.warns(UserWarning, match="belongs to an earlier run"):
        train(tmp_path, 1, validate_every=2)
    assert (tmp_path / "history_1.csv").read_bytes() == table
    assert (tmp_path / "training_1.png").read_bytes() == picture
    assert [row["step"] for row in read_history(tmp_path / "history.csv")] == [2]
    # two runs in TensorBoard, not one curve that jumps back
    steps = {
        folder: [event.step for event in events(tmp_path / folder).Scalars("train/loss")]
        for folder in (".", "events_1")
    }
    assert steps == {".": [1, 2], "events_1": [1, 2, 3, 4]}
