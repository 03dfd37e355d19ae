"""Measure the report: size of the page and time to write and to open it, with 20 and with 500 cases.

    python benchmarks/bench_report.py [--cases 20 500] [--repeats 5] [--small]

The cases are generated cells of 64×64×32 voxels (24×20×16 with --small); cases beyond the twentieth repeat the files of
the first twenty. Opening is measured in a headless Chromium without WebGL: from the start of loading to the first
content and to the finished page, and from the click on a case to its drawn planes. The times are medians of fresh
loads. Without Chromium only sizes and writing are measured.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from medseg.datasets import generate_phantoms, read_manifest
from medseg.evaluation import Evaluation, evaluate
from medseg.reporting import write_report
from medseg.volumes import Volume, read_label_map, write_volume

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parent))

from reporting.browser import Browser, missing_browser
from reporting.evaluations import repeated
from timing import machine

NUM_FILES = 20


def evaluated(folder: Path, shape: tuple[int, int, int]) -> tuple[Evaluation, dict[str, Path]]:
    """Evaluate twenty cases whose predictions are shifted by a voxel; one in five lacks its second class."""
    cases = generate_phantoms(folder, NUM_FILES, shape=shape)
    for number, case in enumerate(cases):
        labels = read_label_map(folder / "labels" / f"{case}.nii.gz")
        moved = np.roll(labels.array, 1, axis=number % 3)
        moved[(moved == 2) & (number % 5 == 0)] = 0
        write_volume(folder / "predictions" / f"{case}.nii.gz", moved, Volume(labels.array, labels.grid))
    labels = read_manifest("phantom_cells")
    result = evaluate(folder / "predictions", folder / "labels", labels=labels, num_draws=2000)
    return result, {case: folder / "images" / f"{case}.nii.gz" for case in cases}


def opening_ms(browser: Browser, page: Path, repeats: int) -> tuple[float, float, float]:
    """Return the median times to first content, to the finished page and to an opened case, in ms."""
    first, ready, case = [], [], []
    for _ in range(repeats):
        browser.open(page)
        entries = browser.js("return performance.getEntriesByType('paint').map((e) => [e.name, e.startTime])")
        first.append(dict(entries).get("first-contentful-paint", float("nan")))
        ready.append(browser.js("return Number(document.documentElement.dataset.readyMs)"))
        browser.js("medseg.open(0)")
        browser.wait("return document.querySelector('.viewer').dataset.ready === '0'")
        case.append(browser.js("return Number(document.querySelector('.viewer').dataset.openMs)"))
    return statistics.median(first), statistics.median(ready), statistics.median(case)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, nargs="+", default=[20, 500])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    shape = (24, 20, 16) if given.small else (64, 64, 32)
    print(f"Machine: {machine()}\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        browser = None if missing_browser() else Browser(folder / "chromium")
        result, images = evaluated(folder, shape)
        files = {entry["reference"]: images[entry["case"]] for entry in result.summary["inputs"]}
        print("| cases | page MB | numbers only MB | writing s | first content ms | ready ms | case ms |")
        print("|---|---|---|---|---|---|---|")
        for num_cases in given.cases:
            many = result if num_cases == NUM_FILES else repeated(result, num_cases)
            scans = {entry["case"]: files[entry["reference"]] for entry in many.summary["inputs"]}
            started = time.perf_counter()
            page = write_report(many, folder / "report.html", images=scans, labels=read_manifest("phantom_cells"))
            seconds = time.perf_counter() - started
            numbers = write_report(many, folder / "numbers.html", with_images=False)
            times = ("–",) * 3
            if browser is not None:
                times = tuple(f"{ms:.0f}" for ms in opening_ms(browser, page.path, given.repeats))
            cells = [num_cases, f"{page.megabytes:.2f}", f"{numbers.megabytes:.2f}", f"{seconds:.1f}", *times]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
        if browser is not None:
            browser.close()


if __name__ == "__main__":
    main()
