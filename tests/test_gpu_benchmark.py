"""The GPU's benchmark has to work on the day that a GPU is at hand, so its code runs on the CPU here."""

import os
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def test_every_part_runs_with_tiny_sizes() -> None:
    command = [sys.executable, "benchmarks/gpu.py", "--tiny"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "weights differ by at most 0\n" in done.stdout
    assert re.search(r"medseg, fp32; .* equal to medseg's fp32 1\.00000", done.stdout)
    bf16 = re.search(r"medseg, bf16; .* equal to medseg's fp32 (0\.\d+|1\.0+)", done.stdout)
    assert bf16
    assert float(bf16[1]) > 0.95
    assert len(re.findall(r"memory of a training step, (?:fp32|bf16): estimated \d+ MiB", done.stdout)) == 2
    rows = [line for line in done.stdout.splitlines() if line.startswith(("| forward", "| training step"))]
    assert len(rows) == 2 * (5 + 6)
