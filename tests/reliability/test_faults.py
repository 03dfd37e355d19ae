"""Kills and other faults: a few of them in the ordinary suite, all of them in the slow one (docs/reliability.md)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def run_module(name: str, *arguments: str) -> list[dict[str, Any]]:
    """Run a script of this folder in a process of its own, which forks, and return its lines."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", f"reliability.{name}", *arguments],
        cwd=Path(__file__).parents[1], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    print(done.stdout)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_few_kills_lose_nothing() -> None:
    found = run_module("kills", "--only", "predict", "promote", "--kills", "1", "--operations", "3")
    assert [row["workload"] for row in found] == ["predict", "promote"]
    assert [(sum(row["moments"].values()), row["operations"]) for row in found] == [(1, 3)] * 2


@pytest.mark.slow
def test_kills_at_random_moments_and_before_every_operation_lose_nothing() -> None:
    found = run_module("kills", "--kills", "30")
    assert [row["workload"] for row in found] == ["predict", "evaluate", "promote", "prepare", "train"]
    for row in found:
        assert sum(row["moments"].values()) == 30
        assert row["operations"] == row["of"] > 5


@pytest.mark.slow
def test_other_faults_lose_nothing() -> None:
    assert len({row["fault"] for row in run_module("faults")}) >= 3  # some need root or faketime
