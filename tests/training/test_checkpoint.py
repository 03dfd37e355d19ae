import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.engines import SupervisedTrainer

from medseg.errors import WeightsError
from medseg.losses import WeightedDiceCELoss
from medseg.plan import Plan
from medseg.training import AveragedNetwork, Checkpointing, PolynomialWarmUp, TrainingUpdate, WeightAveraging
from medseg.training.checkpoint import RandomStates, latest_checkpoint


class Step:
    """A training whose batches are drawn from torch's global generator: resuming must restore it."""

    def __iter__(self):
        for _ in range(3):
            yield {"image": torch.randn(1, 1, 8, 8, 8), "label": torch.randint(0, 2, (1, 1, 8, 8, 8))}

    def __len__(self) -> int:
        return 3


def train(directory: Path, plan: Plan, epochs: int, total: int, resume: bool = False) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    network = plan.create_network()
    averaged = AveragedNetwork(network, 0.9)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    schedule = PolynomialWarmUp(optimizer, total=total * 3)
    objects = {"network": network, "averaged": averaged, "optimizer": optimizer, "lr_scheduler": schedule}
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=Step(),
        network=network,
        optimizer=optimizer,
        loss_function=WeightedDiceCELoss(),
        iteration_update=TrainingUpdate("fp32"),
        train_handlers=[Checkpointing(directory, objects, plan, resume=resume), WeightAveraging(averaged, network)],
        decollate=False,
    )
    from ignite.engine import Events

    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: schedule.step())
    trainer.run()
    return {**network.state_dict(), **{f"averaged.{k}": v for k, v in averaged.state_dict().items()}}


def test_resuming_equals_not_stopping_bit_for_bit(tmp_path, plan):
    whole = train(tmp_path / "whole", plan, 4, total=4)
    train(tmp_path / "parts", plan, 2, total=4)
    resumed = train(tmp_path / "parts", plan, 4, total=4, resume=True)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_newest_two_are_kept_and_hold_the_plan(tmp_path, plan):
    train(tmp_path, plan, 3, total=3)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["training_checkpoint_2.pt", "training_checkpoint_3.pt"]
    state = torch.load(latest_checkpoint(tmp_path), weights_only=True)
    assert state["plan"] == plan.to_dict()


def test_another_plan_is_refused(tmp_path, plan):
    train(tmp_path, plan, 1, total=2)
    changed = dataclasses.replace(plan, overlap=0.25)
    with pytest.raises(WeightsError, match="overlap differs from the plan the checkpoint was trained with"):
        train(tmp_path, changed, 2, total=2, resume=True)


def test_a_torn_checkpoint_is_named(tmp_path, plan):
    train(tmp_path, plan, 1, total=2)
    torn = latest_checkpoint(tmp_path)
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    with pytest.raises(WeightsError, match=r"training_checkpoint_1\.pt: not a readable checkpoint"):
        train(tmp_path, plan, 2, total=2, resume=True)


def test_without_a_checkpoint_resuming_starts_afresh(tmp_path, plan):
    fresh = train(tmp_path / "a", plan, 1, total=1)
    resumed = train(tmp_path / "b", plan, 1, total=1, resume=True)
    assert all(torch.equal(fresh[name], resumed[name]) for name in fresh)


def test_random_states_survive_a_file(tmp_path):
    random.seed(3), np.random.seed(3), torch.manual_seed(3)  # noqa: NPY002
    random.gauss(0, 1), np.random.normal()  # noqa: NPY002  leaves a cached second normal in both
    torch.save(RandomStates().state_dict(), tmp_path / "states.pt")
    expected = random.gauss(0, 1), np.random.normal(), torch.rand(3).tolist()  # noqa: NPY002
    RandomStates().load_state_dict(torch.load(tmp_path / "states.pt", weights_only=True))
    assert (random.gauss(0, 1), np.random.normal(), torch.rand(3).tolist()) == expected  # noqa: NPY002
