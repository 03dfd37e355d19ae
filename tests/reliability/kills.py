"""Kill commands with SIGKILL at random moments and before single operations on files, start them again, and compare.

    cd tests && python -m reliability.kills [--kills 30] [--operations 0] [--seed 0] [--only predict]

`--operations 0` tries every operation (open for writing, rename, remove, make a folder); a number tries that many.
Prints one line of JSON per workload.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from reliability.processes import Ended, run, run_and_kill
from reliability.workloads import WORKLOADS, Inputs, Workload, contents, leftovers

import medseg.bundle

KILLED = -9


def make_inputs(root: Path) -> Inputs:
    """Make the inputs of all workloads, and promote the first of two runs."""
    inputs = Inputs.make(root)
    medseg.bundle.promote(inputs.bundle, inputs.run_a)
    return inputs


class Undisturbed:
    """A run without a fault, with which the others are compared.

    Attributes:
        before: digests of the files before the run.
        after: digests of the files after it.
        ended: how it ended, with its number of operations on files.
    """

    def __init__(self, workload: Workload, root: Path) -> None:
        self.workload = workload
        self.root = root
        self.begun = root / "begun"
        workload.begin(self.begun)
        # the files name their folder, so every run has the same one
        self.folder = root / "work"
        self.log = root.with_name(f"{root.name}.log")  # not on the disk that is tried
        self.restore()
        self.before = contents(self.folder)
        self.ended = self.run(folder=self.folder)
        assert self.ended.code == 0, self.ended.output[-3000:]
        workload.check(self.folder)
        self.after = contents(self.folder)
        assert not leftovers(self.folder)
        self.restore()
        self.seconds = self.run().seconds

    def restore(self) -> None:
        """Put the files before the run in place."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.begun, self.folder)

    def work(self) -> None:
        """Do the work in this process."""
        self.workload.run(self.folder)

    def run(self, **options: Any) -> Ended:
        """Do the work in a process."""
        return run(self.work, self.log, **options)

    def check(self) -> dict[str, str]:
        """Check the files as a process left them; return their digests."""
        found = contents(self.folder)
        self.workload.check(self.folder)
        for name, digest in found.items():
            known = {self.before.get(name), self.after.get(name)} - {None}
            is_known = digest in known or not known or "run/" in name or name in self.workload.reports
            assert is_known, f"{name} is neither the old nor the new file"
        missing = set(self.before) & set(self.after) - set(found) - set(self.workload.stale)
        # a file that was being replaced waits in a hidden folder for the next start
        kept = {path.name for hidden in leftovers(self.folder) for path in hidden.glob("*/*")}
        assert {Path(name).name for name in missing} <= kept, f"lost: {missing}"
        return found

    def check_restarted(self) -> None:
        """Start the work again and check that it ends as if there had been no fault."""
        ended = self.run()
        assert ended.code == 0, ended.output[-3000:]
        self.workload.check(self.folder)
        found = contents(self.folder)
        differing = {name for name in {*found, *self.after} if found.get(name) != self.after.get(name)}
        # a training that was killed before its first checkpoint begins anew and renames what it finds
        assert not {name for name in differing if "_1." not in name}, differing


def moment(case: Undisturbed, found: dict[str, str]) -> str:
    """Say where in its work a process was killed, by what it left."""
    if leftovers(case.folder):
        return "while a file was written"
    changed = {name for name in {*found, *case.before} if found.get(name) != case.before.get(name)}
    if not changed:
        return "before the first file"
    return "after the last file" if found == case.after else "between two files"


def at_random_moments(case: Undisturbed, number: int, rng: np.random.Generator) -> Counter[str]:
    """Kill a process at random moments, and check what it left and a second start.

    Half of the moments are spread over the whole run, the others over the part of it in which files are written.

    Returns:
        Number of kills by where they fell.
    """
    moments: Counter[str] = Counter()
    attempt = 0
    while moments.total() < number:
        fraction = (attempt // 2 % number + rng.uniform()) * 2 / number % 1
        first, last = case.ended.window if attempt % 2 else (0, case.seconds)
        attempt += 1
        assert attempt < 10 * number, "most processes ended before they were killed"
        case.restore()
        ended = run_and_kill(case.work, case.log, first + fraction * (last - first))
        if ended.code != KILLED:
            assert ended.code == 0, ended.output[-3000:]
            continue
        moments[moment(case, case.check())] += 1
        case.check_restarted()
    return moments


def before_operations(case: Undisturbed, number: int, rng: np.random.Generator) -> int:
    """Kill a process before single operations on its files, and check what it left and a second start.

    Args:
        case: the work.
        number: of operations to try; 0 for every one.
        rng: chooses them.

    Returns:
        Number of kills.
    """
    every = range(1, case.ended.operations + 1)
    chosen = rng.choice(every, number, replace=False) if 0 < number < len(every) else every
    for position in sorted(int(each) for each in chosen):
        case.restore()
        ended = case.run(folder=case.folder, kill_before=position)
        assert ended.code == KILLED, ended.output[-3000:]
        case.check()
        case.check_restarted()
    return len(chosen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--operations", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        inputs = make_inputs(root / "inputs")
        for kind in WORKLOADS:
            if options.only and kind.name not in options.only:
                continue
            rng = np.random.default_rng([options.seed, WORKLOADS.index(kind)])
            case = Undisturbed(kind(inputs), root / kind.name)
            moments = at_random_moments(case, options.kills, rng)
            kills = before_operations(case, options.operations, rng)
            found = {"workload": kind.name, "moments": moments, "operations": kills, "of": case.ended.operations}
            print(json.dumps(found | {"seconds": round(case.seconds, 2)}), flush=True)


if __name__ == "__main__":
    main()
