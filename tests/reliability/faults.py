"""Run commands on full and read-only disks, twice at once, on files that change, and with a wrong clock.

    cd tests && python -m reliability.faults [--seed 0] [--only full_disk]

Needs root for the disks, and Debian's faketime for the clock; what cannot be tried is reported as skipped. Prints one
line of JSON per fault and command.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from reliability.kills import Undisturbed, make_inputs
from reliability.processes import Ended, start
from reliability.workloads import CASES, WORKLOADS, Inputs, Predict, Prepare, Train, contents, leftovers

STAGES = 5
FUTURE = 2 * 365 * 24 * 3600


@contextmanager
def small_disk(folder: Path, megabytes: int = 64) -> Iterator[Callable[[str], None]]:
    """Mount a file system in memory; yields a function that changes its options, such as `size=4096` or `ro`."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True)

    def remount(options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)

    try:
        yield remount
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def can_mount() -> bool:
    """Return True if this user may mount file systems."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with small_disk(Path(folder) / "disk", 1):
                return True
        except (subprocess.CalledProcessError, OSError):
            return False


def check_lines(ended: Ended, fact: str) -> None:
    """Check that a failed process says why in lines of medseg, without a traceback."""
    assert ended.code == 1, ended
    assert "Traceback" not in ended.output, ended.output
    assert fact in ended.output, ended.output
    assert ended.last_line.startswith("medseg: ") or fact in ended.last_line, ended.output


def full_disk(case: Undisturbed, remount: Callable[[str], None], disk: Path) -> Counter[str]:
    """Run on a disk that becomes full at five stages of the work."""
    outcomes: Counter[str] = Counter()
    case.restore()
    before, peak = used(disk), used(disk)
    process = start(case.work, case.log)
    while process.poll():
        peak = max(peak, used(disk))
        time.sleep(0.001)
    process.wait()
    for stage in range(STAGES):
        remount("size=64m")
        case.restore()
        remount(f"size={max(before + (peak - before) * stage // STAGES // 4096 * 4096, 4096)}")  # 0 is no limit
        ended = case.run()
        if ended.code == 0:
            outcomes["enough space"] += 1
            continue
        check_lines(ended, "No space left on device")
        case.check()
        assert not leftovers(case.folder)
        outcomes["one line"] += 1
        remount("size=64m")
        case.check_restarted()
    return outcomes


def used(folder: Path) -> int:
    """Return the used bytes of a file system."""
    status = os.statvfs(folder)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def read_only_folder(case: Undisturbed, remount: Callable[[str], None]) -> Counter[str]:
    """Run where nothing can be written."""
    case.restore()
    remount("ro")
    try:
        ended = case.run()
    finally:
        remount("rw")
    check_lines(ended, "Read-only file system")
    assert contents(case.folder) == case.before
    case.check_restarted()
    return Counter({"one line": 1})


def two_at_once(case: Undisturbed, rounds: int, rng: np.random.Generator) -> Counter[str]:
    """Start the same command twice, a random moment apart."""
    outcomes: Counter[str] = Counter()
    for _ in range(rounds):
        case.restore()
        first = start(case.work, case.log)
        time.sleep(rng.uniform(0, 0.7) * case.seconds)
        second = start(case.work, case.log.with_name("log2"))
        both = [first.wait(), second.wait()]
        refused = [ended for ended in both if ended.code != 0]
        assert len(refused) < 2, both
        for ended in refused:
            check_lines(ended, "is running in this folder already")
        outcomes["one refused" if refused else "both done"] += 1
        case.workload.check(case.folder)
        found = contents(case.folder)
        differing = {name for name in {*found, *case.after} if found.get(name) != case.after.get(name)}
        # what finished at the end of a second run of a finished one may be set aside, but is not changed
        assert not differing or isinstance(case.workload, Train), differing
    return outcomes


def files_of_other_times(case: Undisturbed) -> Counter[str]:
    """Run beside files that were changed in the future, as after a clock was set back, or long ago."""
    for shift in (FUTURE, -10 * FUTURE):
        case.restore()
        moment = time.time() + shift
        for path in [*case.folder.rglob("*")]:
            os.utime(path, (moment, moment))
        case.check_restarted()
    return Counter({"as usual": 2})


def clock_set_back(case: Undisturbed) -> Counter[str]:
    """Run with a clock that is 400 days behind the files, in a process of its own."""
    case.restore()
    words = case.workload.arguments(case.folder)
    program = [sys.executable, *(words if words[0] == "-m" else ["-m", "medseg", *words])]
    done = subprocess.run(
        ["faketime", "-f", "-400d", *program], capture_output=True, text=True, check=False, timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    case.workload.check(case.folder)
    assert contents(case.folder) == case.after
    return Counter({"as usual": 1})


@contextmanager
def flipped(path: Path, versions: tuple[bytes, bytes], is_in_place: bool) -> Iterator[None]:
    """Replace a file by one version and the other, as fast as possible, while the block runs."""
    ends = threading.Event()

    def flip() -> None:
        number = 0
        while not ends.is_set():
            number += 1
            if is_in_place:
                path.write_bytes(versions[number % 2])
            else:
                other = path.with_name("other")
                other.write_bytes(versions[number % 2])
                other.replace(path)
            time.sleep(0.001)

    thread = threading.Thread(target=flip)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()


def replaced_scan(inputs: Inputs, root: Path, rounds: int) -> Counter[str]:
    """Predict a scan that is replaced all the time: its record must be of the version that was segmented."""
    scans, out, log = root / "scans", root / "out", root / "log"
    scans.mkdir(parents=True)
    sources = [inputs.data / "images" / f"{case}.nii.gz" for case in CASES[:2]]
    versions = (sources[0].read_bytes(), sources[1].read_bytes())
    path = scans / "scan.nii.gz"
    command = ["predict", str(inputs.bundle), str(path), "--out", str(out), "--device", "cpu"]
    expected = {}
    for version in versions:
        path.write_bytes(version)
        ended = run_command(command, log)
        assert ended.code == 0, ended.output
        expected[hashlib.sha256(version).hexdigest()] = np.asarray(nib.load(out / "scan.nii.gz").dataobj)
    outcomes: Counter[str] = Counter()
    for number in range(rounds):
        shutil.rmtree(out, ignore_errors=True)
        with flipped(path, versions, is_in_place=number % 2 == 1):
            ended = run_command(command, log)
        if ended.code:
            check_lines(ended, "scan.nii.gz")
            assert not (out / "scan.nii.gz").exists()
            outcomes["one line"] += 1
            continue
        record = json.loads((out / "scan.json").read_text())
        found = np.asarray(nib.load(out / "scan.nii.gz").dataobj)
        assert np.array_equal(found, expected[record["input_sha256"][0]]), "the record is of another scan"
        outcomes["done, with the right record"] += 1
    return outcomes


def replaced_source(inputs: Inputs, root: Path, rounds: int) -> Counter[str]:
    """Prepare a data set one of whose images is replaced all the time: what is installed must be one version."""
    source, target = root / "source", root / "data"
    outcomes: Counter[str] = Counter()
    for number in range(rounds):
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(inputs.data, source)
        path = source / "images" / f"{CASES[0]}.nii.gz"
        versions = (path.read_bytes(), (source / "images" / f"{CASES[1]}.nii.gz").read_bytes())
        command = ["data", "prepare", str(inputs.manifest), "--root", str(target), "--from", str(source)]
        with flipped(path, versions, is_in_place=number % 2 == 1):
            ended = run_command(command, root / "log")
        installed = target / "images" / path.name
        assert not installed.exists() or installed.read_bytes() in versions, "a torn copy"
        if ended.code:
            check_lines(ended, path.name)
            outcomes["one line"] += 1
        else:
            outcomes["done"] += 1
    return outcomes


def run_command(words: list[str], log: Path) -> Ended:
    """Run a medseg command in a forked process."""
    from medseg.cli import main as medseg_main

    return start(lambda: medseg_main(words), log).wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", default="", help="one fault")
    parser.add_argument("--command", default="", help="one command")
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    failures: list[str] = []

    def report(fault: str, command: str, attempt: Callable[..., Counter[str]], *given: Any) -> None:
        if options.only in ("", fault) and options.command in ("", command):
            outcomes: Any = None
            try:
                outcomes = attempt(*given)
            except AssertionError as error:
                failures.append(f"{fault}, {command}: {error}")
                traceback.print_exc()
            print(json.dumps({"fault": fault, "command": command, "outcomes": outcomes}), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        inputs = make_inputs(root / "inputs")
        for kind in WORKLOADS:
            if options.command not in ("", kind.name) or options.only == "replaced_scan":
                continue
            if options.only in ("", "full_disk", "read_only_folder") and can_mount():
                disk = root / f"disk_{kind.name}"
                with small_disk(disk) as remount:
                    case = Undisturbed(kind(inputs), disk)
                    report("full_disk", kind.name, full_disk, case, remount, disk)
                    report("read_only_folder", kind.name, read_only_folder, case, remount)
            if options.only in ("full_disk", "read_only_folder"):
                continue
            case = Undisturbed(kind(inputs), root / kind.name)
            report("two_at_once", kind.name, two_at_once, case, options.rounds, rng)
            report("files_of_other_times", kind.name, files_of_other_times, case)
            if shutil.which("faketime") is not None:
                report("clock_set_back", kind.name, clock_set_back, case)
        report("replaced_scan", Predict.name, replaced_scan, inputs, root / "flip", options.rounds)
        report("replaced_scan", Prepare.name, replaced_source, inputs, root / "flips", options.rounds)
    raise SystemExit("\n".join(failures))


if __name__ == "__main__":
    main()
