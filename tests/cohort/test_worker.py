"""Tests of what a worker checks before it takes scans, in this process."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from cohort.conftest import write_scans

from medseg.cohort import find_cohort
from medseg.cohort.output_folder import OutputFolder
from medseg.cohort.worker import Worker

pytest.importorskip("fsspec")


def make_worker(bundle: Path, out: Path, run: str) -> Worker:
    options = {"device": "cpu", "backend": "torch"}
    return Worker(str(bundle), options, str(out), run, format="same", overwrite=False, threads=1)


def assert_one_line(found: dict[str, Any], *facts: str) -> None:
    assert "\n" not in found["error"]
    assert all(fact in found["error"] for fact in (socket.gethostname(), *facts)), found["error"]


def test_an_output_folder_that_this_machine_does_not_see_is_an_error(tmp_path: Path, tiny_bundle: Path) -> None:
    with OutputFolder(tmp_path / "out").reserved("run1"):
        assert_one_line(make_worker(tiny_bundle, tmp_path / "out", "run2").load([]), f"{tmp_path}/out", "mount")
        assert_one_line(make_worker(tiny_bundle, tmp_path / "absent", "run1").load([]), f"{tmp_path}/absent")
        assert "error" not in make_worker(tiny_bundle, tmp_path / "out", "run1").load([])


def test_weights_that_are_missing_or_altered_are_an_error(tmp_path: Path, tiny_bundle: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "tiny_segmentation"))
    weights = bundle / "models" / "model.pt"
    with OutputFolder(tmp_path / "out").reserved("run"):
        weights.write_bytes(weights.read_bytes() + b"x")
        assert_one_line(make_worker(bundle, tmp_path / "out", "run").load([]), str(weights))
        weights.unlink()
        assert_one_line(make_worker(bundle, tmp_path / "out", "run").load([]), str(weights))


def test_a_row_says_what_was_done_to_which_scan(tmp_path: Path, tiny_bundle: Path) -> None:
    cases = find_cohort([write_scans(tmp_path / "scans", 2)])
    Path(cases[1].paths[0]).write_bytes(b"no image")
    with OutputFolder(tmp_path / "out").reserved("run"):
        worker = make_worker(tiny_bundle, tmp_path / "out", "run")
        assert worker.load(cases[:1])["memory_bytes"] > 1e8
        good, bad = (worker.segment(case) for case in cases)
    assert good["status"] == "done"
    found = Path(cases[0].paths[0]).stat()
    assert good["input_state"] == [f"{found.st_size}:{found.st_mtime_ns}"]
    assert Path(good["output"]).is_file()
    assert bad["status"] == "failed"
    assert bad["error"] == "VolumeError"
    assert cases[1].paths[0] in bad["message"]
