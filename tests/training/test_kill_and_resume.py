"""A training that is killed and resumed ends in the same weights, bit for bit, for any number of workers."""

import fcntl
import json
import os
import pty
import random
import re
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path

import pytest
from training.bundle_runs import command, environment, run, tiny_bundle

from medseg.training.checkpoint import checkpoint_files

EPOCHS = 4
STEPS = 4 * EPOCHS


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("resume"))


@pytest.fixture(scope="module")
def uninterrupted(bundle) -> str:
    """Return the SHA-256 of the weights of an uninterrupted training without workers."""
    run(command(bundle, bundle.parent / "whole", max_epochs=EPOCHS))
    return weights_sha256(bundle.parent / "whole")


def weights_sha256(output_dir: Path) -> str:
    record = json.loads((output_dir / "training.json").read_text())
    assert record["epochs"] == EPOCHS
    return record["weights_sha256"]


def kill_at(step: int, delay: float, arguments: list[str]) -> None:
    """Kill the training with SIGKILL some seconds after the progress bar shows a step."""
    terminal, end = pty.openpty()  # the progress bar is for terminals
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("4H", 24, 200, 0, 0))  # a terminal without columns gets no steps
    process = subprocess.Popen(arguments, env=environment(TQDM_MININTERVAL="0"), stderr=end, start_new_session=True)
    os.close(end)
    printed, shown = b"", 0
    while shown < step:
        part = os.read(terminal, 65536)
        printed += part
        assert part, printed.decode()[-3000:]
        shown = max([shown, *(int(found) for found in re.findall(rb"\| (\d+)/%d \[" % STEPS, printed))])
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    os.close(terminal)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_killed_at_a_random_moment_and_resumed_equals_uninterrupted(bundle, uninterrupted, workers):
    chance = random.SystemRandom()
    step, delay = chance.randrange(1, STEPS - 1), chance.uniform(0, 0.3)
    output_dir = bundle.parent / f"killed_{workers}"
    arguments = command(bundle, output_dir, max_epochs=EPOCHS, num_workers=workers)
    kill_at(step, delay, arguments)
    assert not (output_dir / "training.json").exists()
    there = [file.name for file in checkpoint_files(output_dir / "checkpoints")]
    print(f"\n{workers} workers: kill -9 {delay:.3f} s after step {step} of {STEPS}; checkpoints: {there or 'none'}")
    said = run([*arguments, "--resume", "True"])
    print("\n".join(line for line in said.splitlines() if "resumed from" in line) or "started from the beginning")
    print(f"uninterrupted {uninterrupted}\nresumed       {weights_sha256(output_dir)}")
    assert weights_sha256(output_dir) == uninterrupted
