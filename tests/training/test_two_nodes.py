"""A training on two nodes that is interrupted and goes on ends in the weights of an undisturbed one.

The nodes are two rendezvous agents (`torchrun --nnodes=2`) on the loopback interface, started by hand or by SLURM.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from docs.markdown_blocks import REPOSITORY, read_blocks
from training.bundle_runs import command, environment, run, tiny_bundle
from training.slurm_cluster import SlurmCluster, missing_programs

from medseg.training.checkpoint import checkpoint_files

pytestmark = pytest.mark.slow
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
OPTIONS = {"max_epochs": 4, "batch_size": 1}
PATIENCE = 600  # seconds; other tests may keep the cores busy


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("nodes"))


@pytest.fixture(scope="module")
def undisturbed(bundle: Path) -> dict[str, torch.Tensor]:
    """Return the weights of two processes that nothing interrupts."""
    launcher = (*TORCHRUN, "--standalone", "--nproc_per_node=2")
    run(command(bundle, bundle.parent / "undisturbed", "multi_gpu_train", launcher=launcher, **OPTIONS))
    return torch.load(bundle.parent / "undisturbed" / "model.pt", weights_only=True)


def assert_equal_weights(file: Path, expected: dict[str, torch.Tensor]) -> None:
    found = torch.load(file, weights_only=True)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def script_of_docs(mark: str) -> str:
    """Return the block of docs/training.md that holds a text."""
    (text,) = [block.text for block in read_blocks(REPOSITORY / "docs" / "training.md") if mark in block.text]
    return text


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(happened: Callable[[], object], failed: Callable[[], object], logs: list[Path]) -> None:
    """Wait until something has happened; show the logs if it takes too long or cannot happen any more."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        if failed() or time.monotonic() > deadline:
            pytest.fail("\n".join(f"{log}:\n{log.read_text()[-3000:]}" for log in logs if log.is_file()))
        time.sleep(0.1)


def lose(agent: subprocess.Popen) -> None:
    """Kill an agent and its training processes at once, like a machine without power."""
    family = [agent.pid]
    for pid in family:
        for file in Path(f"/proc/{pid}/task").glob("*/children"):
            with suppress(OSError):
                family += [int(child) for child in file.read_text().split()]
    for pid in family:
        os.kill(pid, signal.SIGKILL)
    agent.wait()


def test_a_node_that_is_lost_and_comes_back_changes_no_weight(
    bundle: Path, undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    port, output_dir = free_port(), tmp_path / "run"
    launcher = (
        *TORCHRUN, "--nnodes=2", "--nproc_per_node=1", "--max_restarts=3", "--rdzv_id=two-nodes", "--rdzv_backend=c10d",
        f"--rdzv_endpoint=127.0.0.1:{port}", "--monitor_interval=0.2",
    )  # fmt: skip
    arguments = command(bundle, output_dir, "multi_gpu_train", launcher=launcher, resume=True, **OPTIONS)
    logs = [tmp_path / f"agent{number}.log" for number in range(3)]
    agents: list[subprocess.Popen] = []

    def start() -> None:
        with logs[len(agents)].open("w") as log:
            variables = environment(TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")  # see docs/training.md
            agents.append(subprocess.Popen(arguments, env=variables, stdout=log, stderr=log))

    try:
        start()
        start()
        wait_for(lambda: checkpoint_files(output_dir / "checkpoints"), lambda: agents[0].poll() is not None, logs)
        lose(agents[1])
        assert not (output_dir / "training.json").exists()
        start()
        wait_for(lambda: agents[0].poll() is not None and agents[2].poll() is not None, lambda: False, logs)
    finally:
        for agent in agents:
            if agent.poll() is None:
                lose(agent)
    printed = "\n".join(log.read_text() for log in logs)
    assert [agent.returncode for agent in agents] == [0, -signal.SIGKILL, 0], printed
    print([line for line in printed.splitlines() if "resumed from" in line])
    assert "resumed from" in printed
    assert_equal_weights(output_dir / "model.pt", undisturbed)


@pytest.mark.skipif(bool(missing_programs()), reason=f"SLURM is not installed: {', '.join(missing_programs())}")
def test_a_job_of_slurm_that_is_requeued_changes_no_weight(
    bundle: Path, undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    output_dir = tmp_path / "run"
    (tmp_path / "torchrun").write_text(f'#!/bin/sh\nexec {" ".join(TORCHRUN)} "$@"\n')
    (tmp_path / "torchrun").chmod(0o755)
    options = {**OPTIONS, "bundle_root": bundle, "manifest": bundle.parent / "manifest.yaml", "precision": "fp32",
               "val_interval": 2}  # fmt: skip
    script = script_of_docs("#SBATCH --")
    # These nodes have no GPU and one core, and the training is tiny.
    for old, new in {
        "--gpus-per-node=4 --cpus-per-task=32": "--cpus-per-task=1",
        "OMP_NUM_THREADS=4": "OMP_NUM_THREADS=1",
        "--nproc_per_node=4": "--nproc_per_node=1 --monitor_interval=0.2",
        ":29500": f":{free_port()}",
        "DATA": str(bundle.parent / "data"),
        "RUN": str(output_dir),
        "--resume True": " ".join(["--resume True", *(f"--{name} {value}" for name, value in options.items())]),
    }.items():
        assert script.count(old) == 1
        script = script.replace(old, new)
    log = bundle / "job.out"
    cluster = SlurmCluster()
    try:
        job = cluster.submit(script, bundle, PATH=f"{tmp_path}:{os.environ['PATH']}", PYTHONWARNINGS="ignore")
        over = ("FAILED", "COMPLETED", "NODE_FAIL", "TIMEOUT", "CANCELLED")
        wait_for(lambda: checkpoint_files(output_dir / "checkpoints"), lambda: cluster.state(job) in over, [log])
        cluster.requeue(job)
        assert not (output_dir / "training.json").exists()
        wait_for(lambda: cluster.state(job) == "COMPLETED", lambda: cluster.state(job) in over[:1], [log])
    finally:
        cluster.close()
    printed = log.read_text()
    print([line for line in printed.splitlines() if "resumed from" in line])
    assert re.search(r"resumed from .*checkpoint_[1-4]\.pt", printed)
    assert_equal_weights(output_dir / "model.pt", undisturbed)
