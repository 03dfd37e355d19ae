"""`medseg train --processes 2` on a bundle of `medseg plan` takes the steps of one process, with the same weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from planning.small_data_sets import spheres
from training.bundle_runs import environment

from medseg.planning import plan_bundle
from medseg.training.history import read_history

pytestmark = pytest.mark.slow
TESTS = Path(__file__).parents[1]
# Plain gradient descent: Adam divides by the gradient's size, so that rounding would decide on small weights. The Dice
# of each sample: that of a batch differs from the mean over two halves of it.
COMPARABLE = (
    "max_epochs=2",
    "optimizer#_target_=torch.optim.SGD",
    "learning_rate=0.05",
    "loss#batch_dice=False",
    "num_workers=0",
    "checkpoint_interval=1",
)
SAVE_EACH = "{'_target_': 'training.save_each_process.SaveEachProcess', 'folder': '@output_dir', 'network': '@network'}"


def train(bundle: Path, out: Path, *words: str) -> dict:
    """Run `medseg train` and return what it prints as JSON."""
    command = [sys.executable, "-m", "medseg", "train", str(bundle), "--data", str(bundle.parent / "data")]
    command += ["--out", str(out), "--json", *COMPARABLE, f"train#named_handlers#each={SAVE_EACH}", "precision=fp32"]
    done = subprocess.run(
        [*command, *words],
        env=environment(PYTHONPATH=str(TESTS)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)["runs"][0]


def test_two_processes_take_the_steps_of_one_and_end_in_equal_weights(tmp_path):
    manifest = spheres(tmp_path / "data", 10)
    options = {"device": "cpu", "hours": 0.001, "memory": "4GB", "flops_per_second": 1e11}
    bundle = plan_bundle(tmp_path / "data", tmp_path / "bundle", manifest=manifest, **options).folder
    one, two = tmp_path / "one", tmp_path / "two"
    train(bundle, one)
    result = train(bundle, two, "--processes", "2")
    assert "--nproc_per_node=2" in result["command"]

    record, record_of_two = (json.loads((out / "training.json").read_text()) for out in (one, two))
    assert record_of_two["processes"] == 2
    for name in ("epochs", "steps", "cases", "data_sha256"):
        assert record_of_two[name] == record[name]
    rates, rates_of_two = ([row["learning_rate"] for row in read_history(out / "history.csv")] for out in (one, two))
    assert rates_of_two == pytest.approx(rates)

    first, second = (torch.load(two / f"process_{rank}.pt", weights_only=True) for rank in (0, 1))
    of_one = torch.load(one / "process_0.pt", weights_only=True)
    for name, value in first.items():
        assert torch.isfinite(value).all()
        assert torch.equal(value, second[name])
        torch.testing.assert_close(value, of_one[name], atol=1e-5, rtol=1e-3)
    start = torch.load(two / "checkpoints" / "training_checkpoint_1.pt", weights_only=True)["network"]
    assert max((start[name] - value).abs().max() for name, value in first.items()) > 1e-4  # ten tolerances
