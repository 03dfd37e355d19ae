"""Tests of segmenting a cohort on a real Ray cluster of this machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from cohort.conftest import write_scans
from cohort.ray_cluster import RayCluster, is_segmenting, workers_that_read

import medseg
from medseg.cohort import Ledger, predict
from medseg.errors import OptionError

ray = pytest.importorskip("ray")

FAST: dict[str, Any] = {"backend": "torch"}


def labels_of(folder: Path) -> dict[str, np.ndarray]:
    return {file.name: np.asanyarray(nib.load(file).dataobj) for file in sorted(folder.glob("*.nii.gz"))}


def assert_equal_to_one_process(bundle: Path, scans: Path, out: Path, workdir: Path) -> None:
    """Compare every segmentation with those of `medseg.predict_files`, voxel by voxel."""
    model = medseg.load(bundle, device="cpu", **FAST)
    medseg.predict_files(model, sorted(scans.glob("case*.nii.gz")), workdir / "plain")
    expected, found = labels_of(workdir / "plain"), labels_of(out)
    assert list(found) == list(expected)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert all(len(np.unique(array)) > 1 for array in expected.values())


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "ledger.jsonl").read_text(encoding="utf-8").splitlines()]


def in_background(action: Callable[[], bool], seconds: float = 120) -> threading.Thread:
    """Repeat an action in a thread until it returns True."""

    def run() -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not action():
            time.sleep(0.01)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_labels_equal_those_of_one_process_and_a_second_run_has_nothing_to_do(
    tmp_path: Path, tiny_bundle: Path, cluster: RayCluster
) -> None:
    scans, out = write_scans(tmp_path / "scans", 4), tmp_path / "out"
    damaged = [f"a{n}" for n in range(7)]  # more in a row than a worker may fail
    for name in damaged:
        (scans / f"{name}.nii.gz").write_bytes(b"no image")
    seen: list[Any] = []
    results = predict(tiny_bundle, [scans], out, address=cluster.address, on_progress=seen.append, **FAST)
    expected = [*((name, "failed") for name in damaged), *((f"case{n:02d}", "done") for n in range(4))]
    assert [(r.case, r.status) for r in results] == expected
    for result in results[: len(damaged)]:
        assert "gzip" in result.message
        assert "3 times" in result.message
    assert seen[-1].problems == ()  # the scans are to blame, not the workers
    assert_equal_to_one_process(tiny_bundle, scans, out, tmp_path)
    rows = {row["case"]: row for row in rows_of(out)}
    assert len(rows_of(out)) == len(rows) == 11
    for number in range(4):
        row = rows[f"case{number:02d}"]
        assert set(row["seconds"]) == {"read", "preprocess", "predict", "write"}
        assert (
            row["weights_sha256"]
            == json.loads((tiny_bundle / "models" / "model.json").read_text())["weights_sha256"].split()
        )
        assert row["attempts"] == 1
        assert row["volumes_ml"] == results[len(damaged) + number].volumes_ml
    assert (seen[-1].done, seen[-1].total, seen[-1].set_aside, seen[-1].seconds_left) == (11, 11, 7, 0)
    assert seen[-1].per_hour > 0
    before = {file: file.stat().st_mtime_ns for file in out.glob("case*")}
    for name in damaged:
        (scans / f"{name}.nii.gz").unlink()
    again = predict(tiny_bundle, [scans], out, address=cluster.address, **FAST)
    assert {r.status for r in again} == {"skipped"}
    assert {file: file.stat().st_mtime_ns for file in out.glob("case*")} == before


def test_a_cluster_that_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, tiny_bundle: Path, cluster: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans, out = write_scans(tmp_path / "scans", 1, 4), tmp_path / "out"
    for address, fact in (("127.0.0.1:9", "127.0.0.1:9"), ("nonsense", "nonsense"), ("ray://h:1", "ray://h:1")):
        with pytest.raises(OptionError, match=fact):
            predict(tiny_bundle, [scans], out, address=address)
    with pytest.raises(OptionError, match=r"64 CPU.*found 2 CPU"):
        predict(tiny_bundle, [scans], out, address=cluster.address, cpus_per_worker=64)
    monkeypatch.setattr(ray, "__version__", "1.0.0")
    with pytest.raises(OptionError, match=r"1\.0\.0") as caught:
        predict(tiny_bundle, [scans], out, address=cluster.address)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_of_a_scan_loses_nothing(
    tmp_path: Path, tiny_bundle: Path, cluster: RayCluster
) -> None:
    scans, out = write_scans(tmp_path / "scans", 8, 40), tmp_path / "out"
    killed: list[int] = []

    def kill() -> bool:
        if not (out / "ledger.jsonl").is_file():
            return False
        for row in rows_of(out)[:1]:
            pid = int(row["worker"].rpartition(":")[2])
            if is_segmenting(pid):
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
        return bool(killed)

    thread = in_background(kill)
    results = predict(tiny_bundle, [scans], out, address=cluster.address, **FAST)
    thread.join()
    assert killed
    assert {r.status for r in results} == {"done"}
    rows = rows_of(out)
    assert Counter(row["case"] for row in rows) == Counter(f"case{n:02d}" for n in range(8))  # nothing twice
    repeated = [row for row in rows if row["attempts"] > 1]
    assert 1 <= len(repeated) <= 2
    assert all(not row["worker"].endswith(f":{killed[0]}") for row in repeated)
    assert_equal_to_one_process(tiny_bundle, scans, out, tmp_path)
    print(f"killed {killed[0]}; repeated {[(row['case'], row['attempts'], row['worker']) for row in repeated]}")


@pytest.mark.slow
def test_a_scan_that_kills_its_worker_is_set_aside_after_three_workers(
    tmp_path: Path, tiny_bundle: Path, cluster: RayCluster
) -> None:
    scans, out = write_scans(tmp_path / "scans", 4, 30), tmp_path / "out"
    poison = scans / "poison.nii.gz"
    array = np.random.default_rng(0).normal(size=(160, 160, 160)).astype(np.float32)
    nib.save(nib.Nifti1Image(array, np.eye(4)), poison)
    killed: list[int] = []
    done = threading.Event()

    def kill() -> bool:
        for pid in workers_that_read(poison):
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
        return done.is_set()

    thread = in_background(kill, 300)
    results = predict(tiny_bundle, [scans], out, address=cluster.address, **FAST)
    done.set()
    thread.join()
    assert {r.case: r.status for r in results} == {**{f"case{n:02d}": "done" for n in range(4)}, "poison": "failed"}
    (row,) = [row for row in rows_of(out) if row["case"] == "poison"]
    assert row["attempts"] == 3
    assert "died" in row["message"]
    assert len(set(killed)) >= 3
    assert_equal_to_one_process(tiny_bundle, scans, out, tmp_path)
    print(f"killed {sorted(set(killed))}; {row['message']}")


@pytest.mark.slow
def test_a_killed_driver_is_started_again_and_does_the_rest(
    tmp_path: Path, tiny_bundle: Path, cluster: RayCluster
) -> None:
    scans, out = write_scans(tmp_path / "scans", 8, 36), tmp_path / "out"
    options = ["--out", str(out), "--ray", cluster.address, "--backend", "torch"]
    command = [sys.executable, "-W", "ignore", "-m", "medseg", "predict", str(tiny_bundle), str(scans), *options]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 240
    while not (out / "ledger.jsonl").is_file() or len(rows_of(out)) < 2:
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    first = {row["case"] for row in rows_of(out)}
    before = {case: (out / f"{case}.nii.gz").stat().st_mtime_ns for case in first}
    assert 2 <= len(first) < 8
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("finished by an earlier run") >= len(first)
    assert {case: (out / f"{case}.nii.gz").stat().st_mtime_ns for case in first} == before
    assert set(Ledger(out / "ledger.jsonl").rows) == {f"case{n:02d}" for n in range(8)}
    assert_equal_to_one_process(tiny_bundle, scans, out, tmp_path)
    print(f"killed after {sorted(first)}; the second run did the other {8 - len(first)}")


@pytest.mark.slow
def test_a_node_that_joins_late_gets_scans(tmp_path: Path, tiny_bundle: Path, cluster: RayCluster) -> None:
    scans, out = write_scans(tmp_path / "scans", 40, 40), tmp_path / "out"
    nodes: list[subprocess.Popen] = []

    def join() -> bool:
        if not (out / "ledger.jsonl").is_file():
            return False
        nodes.append(cluster.add_node(2))
        return True

    thread = in_background(join)
    # A worker of two cores fills the first node.
    results = predict(tiny_bundle, [scans], out, address=cluster.address, cpus_per_worker=2, **FAST)
    thread.join()
    cluster.remove_node(nodes[0])
    assert {r.status for r in results} == {"done"}
    workers = Counter(row["worker"] for row in rows_of(out))
    assert len(workers) == 2
    assert rows_of(out)[0]["worker"] == workers.most_common(1)[0][0]
    print(f"scans per worker: {workers}")


@pytest.mark.slow
def test_a_worker_with_a_full_disk_is_given_up_and_its_scans_are_done_elsewhere(
    tmp_path: Path, tiny_bundle: Path, cluster: RayCluster
) -> None:
    scans, out, small = write_scans(tmp_path / "scans", 12, 40), tmp_path / "out", tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    node = cluster.add_node(2, environment={"TMPDIR": str(small)})
    try:
        # URLs are copied to the worker's own disk and back.
        results = predict(
            tiny_bundle, [f"file://{scans}"], f"file://{out}", address=cluster.address, cpus_per_worker=2, **FAST
        )
    finally:
        cluster.remove_node(node)
        subprocess.run(["umount", "-l", small], check=True)
    assert {r.status for r in results} == {"done"}
    rows = rows_of(out)
    assert len({row["worker"] for row in rows}) == 1
    assert any(row["attempts"] > 1 for row in rows)
    assert {"download", "upload"} <= set(rows[0]["seconds"])
    assert_equal_to_one_process(tiny_bundle, scans, out, tmp_path)
    record = json.loads((out / "case00.json").read_text(encoding="utf-8"))
    assert record["input"] == [f"file://{scans}/case00.nii.gz"]
    print(f"attempts: {Counter(row['attempts'] for row in rows)}")


@pytest.mark.slow
@pytest.mark.parametrize("defect", ["another folder", "another version"])
def test_a_node_that_cannot_take_part_is_named_and_the_others_go_on(
    tmp_path: Path, tiny_bundle: Path, cluster: RayCluster, defect: str
) -> None:
    scans, out = write_scans(tmp_path / "scans", 20), tmp_path / "out"
    out.mkdir()
    options: dict[str, Any] = {}
    if defect == "another folder":
        if subprocess.run(["unshare", "-m", "true"], check=False).returncode:
            pytest.skip("a node with other mounts needs root")
        mount = 'mount -t tmpfs tmpfs "$0" && exec "$@"'
        options["launcher"] = ["unshare", "-m", "sh", "-c", mount, str(out)]
    else:
        metadata = tmp_path / "installed" / "medseg-99.0.dist-info" / "METADATA"
        metadata.parent.mkdir(parents=True)
        metadata.write_text("Metadata-Version: 2.1\nName: medseg\nVersion: 99.0\n", encoding="utf-8")
        options["environment"] = {"PYTHONPATH": str(tmp_path / "installed")}
    seen: list[Any] = []
    node = cluster.add_node(2, **options)
    try:
        # A worker of two cores fills a node.
        results = predict(
            tiny_bundle, [scans], out, address=cluster.address, cpus_per_worker=2, on_progress=seen.append, **FAST
        )
    finally:
        cluster.remove_node(node)
    assert {r.status for r in results} == {"done"}
    assert len({row["worker"] for row in rows_of(out)}) == 1
    (problem,) = seen[-1].problems
    assert (str(out) if defect == "another folder" else "99.0") in problem
    assert "\n" not in problem
    print(problem)


@pytest.mark.slow
def test_weights_missing_on_the_workers_are_reported_in_one_line(
    tmp_path: Path, tiny_bundle: Path, cluster: RayCluster
) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "tiny_segmentation")
    (bundle / "models" / "model.pt").unlink()
    with pytest.raises(OptionError, match=r"worker .*model\.pt") as caught:
        predict(bundle, [write_scans(tmp_path / "scans", 1)], tmp_path / "out", address=cluster.address, **FAST)
    assert "\n" not in str(caught.value)
