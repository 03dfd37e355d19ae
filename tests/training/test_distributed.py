"""Two processes train the same weights as one process with their joint batch."""

import sys
from pathlib import Path

import ignite.distributed as idist
import pytest
import torch
from training.bundle_runs import command, run, tiny_bundle

from medseg.training import ShareSampler, distribute, end_processes, process_device, start_processes
from medseg.training.history import read_history

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("processes"))


def test_two_processes_equal_one_with_the_same_global_batch(bundle):
    # plain gradient descent: Adam divides by the gradient's size, so that rounding would decide on small weights
    given = {"max_epochs": 2, "optimizer#_target_": "torch.optim.SGD", "learning_rate": 0.05}
    one, two = bundle.parent / "one", bundle.parent / "two"
    run(command(bundle, one, **given, batch_size=2))
    run(command(bundle, two, "multi_gpu_train", launcher=TORCHRUN, **given, batch_size=1))

    weights, others = (torch.load(folder / "model.pt", weights_only=True) for folder in (one, two))
    assert weights.keys() == others.keys()
    for name in weights:
        torch.testing.assert_close(weights[name], others[name], atol=1e-5, rtol=1e-4)
    start = torch.load(two / "checkpoints" / "training_checkpoint_1.pt", weights_only=True)
    moved = [(start["network"][name] - value).abs().max() for name, value in others.items()]
    assert max(moved) > 1e-3  # a hundred tolerances: the comparison above could have failed

    dice, dice_of_two = (read_history(folder / "history.csv")[-1]["val_mean_dice"] for folder in (one, two))
    assert dice_of_two == pytest.approx(dice, abs=0.01)
    # one process wrote: one event file, one table, checkpoints with the random states of both
    assert len(list(two.glob("events.out.tfevents.*"))) == 1
    assert sorted(file.name for file in two.iterdir() if "tfevents" not in file.name) == [
        "checkpoints", "history.csv", "model.pt", "plan.json", "training.json", "training.png"
    ]  # fmt: skip
    assert sorted(start["random"]) == ["0", "1"]
    assert not torch.equal(start["random"]["0"]["torch"], start["random"]["1"]["torch"])


def test_without_torchrun_there_is_one_process(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    network = torch.nn.Linear(1, 1)
    start_processes()
    assert idist.get_world_size() == 1
    assert distribute(network) is network
    assert list(ShareSampler(range(3))) == [0, 1, 2]
    assert process_device().type in ("cpu", "cuda")
    end_processes()


def test_each_validation_case_goes_to_one_process(monkeypatch):
    monkeypatch.setattr(idist, "get_world_size", lambda: 3)
    shares, few = [], []
    for rank in range(3):
        monkeypatch.setattr(idist, "get_rank", lambda rank=rank: rank)
        shares.append(list(ShareSampler(range(7))))
        few.append(list(ShareSampler(range(2))))
    assert sorted(index for share in shares for index in share) == list(range(7))
    assert few == [[0, 1]] * 3  # nobody is left out of the metric
