import dataclasses
import random
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.transforms import Compose

from medseg.errors import VolumeError, WeightsError
from medseg.losses import WeightedDiceCELoss
from medseg.plan import Plan
from medseg.training import (
    CheckpointHandler,
    PolynomialWarmUp,
    SeededSampler,
    SeededSamples,
    SupervisedUpdate,
)
from medseg.training.checkpoint import checkpoint_files, read_newest, write_checkpoint
from medseg.training.sampling import RandomStates


class Step:
    """Batches that are drawn from torch's global generator, which resuming must restore."""

    def __iter__(self):
        for _ in range(3):
            yield {"image": torch.randn(1, 1, 8, 8, 8), "label": torch.randint(0, 2, (1, 1, 8, 8, 8))}

    def __len__(self) -> int:
        return 3


def train(
    directory: Path,
    plan: Plan,
    epochs: int,
    total: int,
    resume: bool = False,
    evaluator: SupervisedEvaluator | None = None,
) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    network = plan.create_network()
    update = SupervisedUpdate(network, "fp32", average_decay=0.9)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    schedule = PolynomialWarmUp(optimizer, total=total * 3)
    objects = {"network": network, "optimizer": optimizer, "lr_scheduler": schedule, "update": update}
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=Step(),
        network=network,
        optimizer=optimizer,
        loss_function=WeightedDiceCELoss(),
        iteration_update=update.train,
        train_handlers=[CheckpointHandler(directory, objects, plan, resume=resume, evaluator=evaluator)],
        decollate=False,
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: schedule.step())
    trainer.run()
    return {**network.state_dict(), **{f"averaged.{k}": v for k, v in update.averaged.state_dict().items()}}


def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(tmp_path, plan):
    whole = train(tmp_path / "whole", plan, 4, total=4)
    train(tmp_path / "parts", plan, 2, total=4)
    resumed = train(tmp_path / "parts", plan, 4, total=4, resume=True)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_newest_two_are_kept_and_hold_the_plan(tmp_path, plan):
    train(tmp_path, plan, 3, total=3)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["training_checkpoint_2.pt", "training_checkpoint_3.pt"]
    state = torch.load(checkpoint_files(tmp_path)[-1], weights_only=True)
    assert state["plan"] == plan.to_dict()


def test_another_plan_is_refused(tmp_path, plan):
    train(tmp_path, plan, 1, total=2)
    changed = dataclasses.replace(plan, overlap=0.25)
    with pytest.raises(WeightsError, match="overlap differs"):
        train(tmp_path, changed, 2, total=2, resume=True)


def test_a_value_removed_from_the_plan_is_a_change(tmp_path, plan):
    train(tmp_path, dataclasses.replace(plan, air_below=-400.0), 1, total=2)
    with pytest.raises(WeightsError, match="air_below differs"):
        train(tmp_path, plan, 2, total=2, resume=True)


def identified(directory: Path, plan: Plan, seed: int = 0, cases: str = "abc", optimizer=torch.optim.SGD) -> None:
    """Train one epoch on named cases with a seed, or resume it."""
    network = plan.create_network()
    samples = SeededSamples(Dataset([{"case": name, "image": torch.zeros(1)} for name in cases], Compose([])))
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=DataLoader(samples, sampler=SeededSampler(samples, seed=seed)),
        network=network,
        optimizer=(step := optimizer(network.parameters(), lr=0.1)),
        loss_function=torch.nn.Identity(),
        iteration_update=lambda engine, batch: {},
        train_handlers=[CheckpointHandler(directory, {"network": network, "optimizer": step}, plan, resume=True)],
        decollate=False,
    )
    trainer.run()


@pytest.mark.parametrize(
    ("changed", "fact"),
    [
        ({"seed": 1}, "seed 0, now it is 1; give --seed 0"),
        ({"cases": "abd"}, "trained on 3 cases, and this run's 3 cases differ"),
        ({"optimizer": torch.optim.AdamW}, "its optimizer is a SGD, this run's a AdamW"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path, plan, changed, fact):
    identified(tmp_path, plan)
    identified(tmp_path, plan, cases="cba")  # in any order
    with pytest.raises(WeightsError, match=rf"training_checkpoint_1\.pt: .*{fact}"):
        identified(tmp_path, plan, **changed)


def test_weights_of_another_network_are_refused_in_one_line(tmp_path, plan):
    identified(tmp_path, plan)
    file = checkpoint_files(tmp_path)[0]
    state = torch.load(file, weights_only=True)
    state["network"].pop(next(iter(state["network"])))
    torch.save(state, file)
    with pytest.raises(WeightsError, match=r"training_checkpoint_1\.pt: its network does not fit") as raised:
        identified(tmp_path, plan)
    assert "\n" not in str(raised.value)


def test_fewer_epochs_than_the_checkpoint_has_are_reported(tmp_path, plan, caplog):
    finished = train(tmp_path, plan, 2, total=2)
    again = train(tmp_path, plan, 1, total=2, resume=True)
    assert "2 epochs are done already, max_epochs is 1" in caplog.text
    assert all(torch.equal(finished[name], again[name]) for name in finished)


def tear(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_a_bit(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        largest = max(archive.infolist(), key=lambda record: record.file_size)
        inside = archive.read(largest)
    content = bytearray(file.read_bytes())
    content[content.find(inside) + len(inside) // 2] ^= 1  # not in the padding between records, which holds nothing
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [tear, flip_a_bit, lambda file: file.write_bytes(b"")])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(tmp_path, plan, damage):
    whole = train(tmp_path / "whole", plan, 4, total=4)
    train(tmp_path / "parts", plan, 3, total=4)
    damage(tmp_path / "parts" / "training_checkpoint_3.pt")
    with pytest.warns(UserWarning, match=r"training_checkpoint_3\.pt: damaged"):
        resumed = train(tmp_path / "parts", plan, 4, total=4, resume=True)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_if_every_checkpoint_is_damaged_nothing_is_trained(tmp_path, plan):
    train(tmp_path, plan, 2, total=3)
    for file in checkpoint_files(tmp_path):
        tear(file)
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(WeightsError, match="all 2 checkpoints are damaged"):
        train(tmp_path, plan, 3, total=3, resume=True)


def test_a_crash_while_writing_leaves_the_earlier_checkpoints(tmp_path, monkeypatch):
    for epoch in (1, 2):
        write_checkpoint(tmp_path, epoch, {"epoch": epoch}, keep=2)

    def crash(state: object, file: BinaryIO) -> None:
        file.write(b"half of it")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", crash)
        with pytest.raises(KeyboardInterrupt):
            write_checkpoint(tmp_path, 3, {"epoch": 3}, keep=2)
    assert [file.stem for file in checkpoint_files(tmp_path)] == ["training_checkpoint_1", "training_checkpoint_2"]
    (tmp_path / ".training_checkpoint_3.pt.1.ab.partial").write_bytes(b"left by kill -9")
    write_checkpoint(tmp_path, 3, {"epoch": 3}, keep=2)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["training_checkpoint_2.pt", "training_checkpoint_3.pt"]
    assert read_newest(tmp_path)[1] == {"epoch": 3}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_reported(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, 1, {"epoch": 1}, keep=2)
    usual = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode="r": usual(Path("/dev/full") if mode == "wb" else self, mode))
    with pytest.raises(VolumeError, match=r"training_checkpoint_2\.pt: could not be written: No space left on device"):
        write_checkpoint(tmp_path, 2, {"weights": torch.zeros(100_000)}, keep=2)
    assert [file.name for file in tmp_path.iterdir()] == ["training_checkpoint_1.pt"]


def test_resuming_a_finished_training_changes_nothing(tmp_path, plan):
    finished = train(tmp_path, plan, 2, total=2)
    again = train(tmp_path, plan, 2, total=2, resume=True)
    assert all(torch.equal(finished[name], again[name]) for name in finished)


def test_running_the_same_trainer_again_continues(tmp_path, plan):
    engine = Engine(lambda engine, batch: None)
    CheckpointHandler(tmp_path, {}, plan).attach(engine)
    engine.run([0, 0], max_epochs=2)
    engine.state.max_epochs = 3
    engine.run([0, 0])
    assert engine.state.epoch == 3
    assert [file.stem[-1] for file in checkpoint_files(tmp_path)] == ["2", "3"]


def test_a_finished_training_can_be_extended(tmp_path, plan):
    train(tmp_path, plan, 2, total=4)
    extended = train(tmp_path, plan, 4, total=4, resume=True)
    whole = train(tmp_path / "whole", plan, 4, total=4)
    assert all(torch.equal(whole[name], extended[name]) for name in whole)


def test_checkpoints_of_another_training_are_renamed(tmp_path, plan):
    train(tmp_path / "run", plan, 2, total=2)
    before = checkpoint_files(tmp_path / "run")[-1].read_bytes()
    with pytest.warns(UserWarning, match="run_1"):
        train(tmp_path / "run", plan, 1, total=1)
    assert [file.stem for file in checkpoint_files(tmp_path / "run")] == ["training_checkpoint_1"]
    assert checkpoint_files(tmp_path / "run_1")[-1].read_bytes() == before


def test_another_number_of_steps_is_refused(tmp_path, plan, monkeypatch):
    train(tmp_path, plan, 1, total=2)
    monkeypatch.setattr(Step, "__len__", lambda self: 2)
    with pytest.raises(WeightsError, match=r"3 steps per epoch, now there are 2"):
        train(tmp_path, plan, 2, total=2, resume=True)


def test_the_best_metric_is_kept(tmp_path, plan):
    def evaluator() -> SupervisedEvaluator:
        return SupervisedEvaluator(torch.device("cpu"), [{"image": torch.zeros(1)}], torch.nn.Identity())

    first, second = evaluator(), evaluator()
    first.state.best_metric, first.state.best_metric_epoch = np.float64(0.75), 2
    first.state.metrics = {"val_mean_dice": torch.tensor(0.5)}
    train(tmp_path, plan, 1, total=2, evaluator=first)
    train(tmp_path, plan, 2, total=2, resume=True, evaluator=second)
    assert (second.state.best_metric, second.state.best_metric_epoch) == (0.75, 2)
    assert second.state.metrics == {"val_mean_dice": 0.5}


def test_without_a_checkpoint_a_resumed_training_starts_anew(tmp_path, plan):
    fresh = train(tmp_path / "a", plan, 1, total=1)
    resumed = train(tmp_path / "b", plan, 1, total=1, resume=True)
    assert all(torch.equal(fresh[name], resumed[name]) for name in fresh)


def test_resume_accepts_the_words_of_json(tmp_path, plan):
    """`--resume false` reaches the config as text, which is true in Python."""
    assert not CheckpointHandler(tmp_path, {}, plan, resume="false").resume
    assert CheckpointHandler(tmp_path, {}, plan, resume="true").resume
    with pytest.raises(ValueError, match="found 'no'"):
        CheckpointHandler(tmp_path, {}, plan, resume="no")


def test_random_states_survive_a_file(tmp_path):
    random.seed(3), np.random.seed(3), torch.manual_seed(3)  # noqa: NPY002
    random.gauss(0, 1), np.random.normal()  # noqa: NPY002  leaves a cached second normal in both
    torch.save(RandomStates().state_dict(), tmp_path / "states.pt")
    expected = random.gauss(0, 1), np.random.normal(), torch.rand(3).tolist()  # noqa: NPY002
    RandomStates().load_state_dict(torch.load(tmp_path / "states.pt", weights_only=True))
    assert (random.gauss(0, 1), np.random.normal(), torch.rand(3).tolist()) == expected  # noqa: NPY002


def test_random_states_of_more_gpus_than_there_are_now_can_be_loaded(monkeypatch):
    state = {**RandomStates().state_dict(), "cuda": ["first", "second"]}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    given: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", given.extend)
    RandomStates().load_state_dict(state)
    assert given == ["first"]
