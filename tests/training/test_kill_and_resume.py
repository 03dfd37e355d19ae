"""A training that is killed and resumed ends in the same weights, bit for bit, for any number of workers."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from training.bundle_runs import command, environment, run, tiny_bundle

from medseg.training.checkpoint_files import checkpoint_files

EPOCHS = 4


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("resume"))


@pytest.fixture(scope="module")
def uninterrupted(bundle) -> str:
    """The SHA-256 of the weights of a training nobody disturbed, without workers."""
    run(command(bundle, bundle.parent / "whole", max_epochs=EPOCHS))
    return weights_sha256(bundle.parent / "whole")


def weights_sha256(output_dir: Path) -> str:
    record = json.loads((output_dir / "training.json").read_text())
    assert record["epochs"] == EPOCHS
    return record["weights_sha256"]


def kill_after(checkpoints: int, arguments: list[str], output_dir: Path) -> None:
    """kill −9 once there is that many checkpoints, wherever the training is then."""
    process = subprocess.Popen(arguments, env=environment(), stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 240
    while len(checkpoint_files(output_dir / "checkpoints")) < checkpoints:
        assert process.poll() is None, (process.stderr.read() if process.stderr else b"").decode()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_killed_and_resumed_equals_uninterrupted(bundle, uninterrupted, workers):
    output_dir = bundle.parent / f"killed_{workers}"
    arguments = command(bundle, output_dir, max_epochs=EPOCHS, num_workers=workers)
    kill_after(1 + workers % 2, arguments, output_dir)
    assert not (output_dir / "training.json").exists()
    run([*arguments, "--resume", "True"])
    assert weights_sha256(output_dir) == uninterrupted
