"""Compare `medseg predict --ray local` with plain `medseg predict` on the same scans and cores.

Both commands run as a user starts them, in turn. Plain predict uses all cores for one scan at a time; the cluster has
one worker per core. The time until the first scan is finished is the start of the cluster and of its workers; the rest
is the rate that a long run has.

    python benchmarks/measure_cohort.py BUNDLE SCANS [--count 50] [--repeats 3]
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from timing import machine


def run(bundle: Path, scans: Path, out: Path, more: list[str]) -> tuple[float, float]:
    """Return the seconds until the first scan was finished, and those of all."""
    command = [sys.executable, "-W", "ignore", "-m", "medseg", "predict", str(bundle), str(scans), "--out", str(out)]
    started, first = time.perf_counter(), 0.0
    with subprocess.Popen(
        [*command, "--backend", "torch", "--precision", "fp32", *more], stdout=subprocess.PIPE, text=True
    ) as child:
        for line in child.stdout or ():
            if not first and line.startswith(("done", "suspicious")):
                first = time.perf_counter() - started
    if child.returncode:
        raise SystemExit(f"{' '.join(command)}: ended with status {child.returncode}")
    return first, time.perf_counter() - started


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("scans", type=Path)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    ways = {"medseg predict": [], "medseg predict --ray local": ["--ray", "local"]}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        scans = Path(folder) / "scans"
        scans.mkdir()
        found = sorted(given.scans.glob("*.nii.gz"))
        if not found:
            raise SystemExit(f"{given.scans}: holds no .nii.gz file")
        for number in range(given.count):
            shutil.copy(found[number % len(found)], scans / f"case{number:04d}.nii.gz")
        seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for repeat in range(given.repeats):
            for way, more in ways.items():
                out = Path(folder) / f"out_{len(more)}_{repeat}"
                seconds[way].append(run(given.bundle, scans, out, more))
        outs = [Path(folder) / f"out_{count}_0" for count in (0, 2)]
        equal = all((outs[0] / f.name).read_bytes() == (outs[1] / f.name).read_bytes() for f in scans.iterdir())
    print(f"Machine: {machine()}\n\n{given.count} scans, labels {'equal' if equal else 'DIFFER'}\n")
    print("| command | first scan, s | all, s | s per further scan | ratio |\n|---|---:|---:|---:|---:|")
    plain = 0.0
    for way in ways:
        first, total = (statistics.median(run[n] for run in seconds[way]) for n in (0, 1))
        each = statistics.median((run[1] - run[0]) / (given.count - 1) for run in seconds[way])
        plain = plain or total
        print(f"| `{way}` | {first:.1f} | {total:.1f} | {each:.2f} | {total / plain:.2f} |")
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
