"""Measure how the cost of a prediction grows with the volume, the classes and the cores, and draw it.

    python benchmarks/scaling.py [--tile 96] [--repeats 3] [--out docs/pictures/scaling.png]

Scans of noise with voxels of 0.8 mm are segmented on a model grid of 1 mm, in memory, by a small padded 3D U-Net with
random weights in torch fp32 (8 to 64 channels, instance norm), with an overlap of one half. Every measurement runs in a
new process that may use only the stated cores; the table has medians, and one measurement of the largest scan. "others"
is what is left of the seconds without the network: preprocessing, cutting, blending, restoring and deciding, as far as
they do not run beside it.

Larger scans are estimated: tiles × seconds per tile + voxels × other seconds per voxel, both taken from the middle
scan, and memory by the estimate of `--max-ram`. The exit code is 1 if a measurement exceeds by more than a tenth what
linear growth from the middle scan, or from fewer classes, would give.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from timing import machine

from medseg.figures.canvas import OKABE_ITO, new_figure, save_png
from medseg.inference import Predictor
from medseg.inference.preprocessing import model_grid
from medseg.inference.scan import Scan
from medseg.plan import Plan
from medseg.volumes import Grid, Volume

NATIVE_MM = 0.8
CLASSES, CORES = 14, 2
ALL_CLASSES, ALL_CORES = (2, CLASSES, 40, 105), (1, CORES)
MEASURED, ESTIMATED = (1, 2, 3), (4, 5 + 1 / 3)  # edges of the model grid in tiles; 5⅓ tiles of 96 are 512
TOLERANCE = 1.1


@dataclass(frozen=True)
class Run:
    """One prediction: seconds in total and in the network, and the peak memory of its process in bytes."""

    seconds: float
    network: float
    peak: int

    @property
    def others(self) -> float:
        """Seconds without the network."""
        return self.seconds - self.network


def make_predictor(tile: int, classes: int) -> Predictor:
    """Return a predictor with a small network of random weights."""
    plan = Plan(
        name="scaling_segmentation", spatial_dims=3, channels=[{"name": "ct", "modality": "CT"}],
        labels={"background": 0, **{f"structure_{n}": n for n in range(1, classes)}}, orientation="RAS",
        spacing=[1.0] * 3, normalization=[{"scheme": "z_score"}], patch=[tile] * 3, tile=[tile] * 3,
        network={
            "name": "unet3d_prelu",
            "arguments": {"channels": [8, 16, 32, 64], "norm": "instance", "activation": "leaky_relu"},
        },
    )  # fmt: skip
    torch.manual_seed(0)
    return Predictor(plan.create_network(), plan, "cpu", backend="torch")


def native_grid(model: int) -> Grid:
    """Return the grid of the scan that is resampled to a cube of that many voxels."""
    return Grid((round(model / NATIVE_MM),) * 3, np.diag([NATIVE_MM] * 3 + [1.0]))


def predict_here(tile: int, model: int, classes: int, cores: int) -> Run:
    """Segment one scan in this process, with the first cores that it may use."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
        cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    predictor = make_predictor(tile, classes)
    in_network = 0.0
    predict_tiles = predictor.predict_tiles

    def timed(tiles: torch.Tensor) -> torch.Tensor:
        nonlocal in_network
        begin = perf_counter()
        values = predict_tiles(tiles)
        in_network += perf_counter() - begin
        return values

    predictor.predict_tiles = timed  # type: ignore[method-assign]
    predictor.predict(noise(native_grid(tile)))  # libraries choose their kernels in the first pass
    in_network = 0.0
    scan = noise(native_grid(model))
    begin = perf_counter()
    predictor.predict(scan)
    seconds = perf_counter() - begin
    return Run(seconds, in_network, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def noise(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Return a scan of noise and its affine."""
    return np.random.default_rng(0).standard_normal(grid.shape, dtype=np.float32), grid.affine


def measure(tile: int, model: int, classes: int, cores: int, repeats: int) -> Run:
    """Return the medians of several runs, each in a new process."""
    given = json.dumps([tile, model, classes, cores])
    runs = []
    for _ in range(repeats):
        done = subprocess.run([sys.executable, __file__, "--run", given], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{given}: failed\n{done.stdout}{done.stderr}")
        runs.append(Run(**json.loads(done.stdout.splitlines()[-1])))
        print(f"model grid {model}³, {classes} classes, {cores} cores: {runs[-1].seconds:.2f} s", file=sys.stderr)
    by_time = sorted(runs, key=lambda run: run.seconds)
    return Run(
        by_time[len(runs) // 2].seconds, by_time[len(runs) // 2].network, statistics.median(r.peak for r in runs)
    )


def estimated_memory(predictor: Predictor, grid: Grid) -> int:
    """Return the memory that `--max-ram` would ask for, without allocating the scan."""
    scan = Scan((Volume(np.broadcast_to(np.float32(0), grid.shape), grid),))
    # The estimate counts what this process holds already; the scan is added to that.
    return predictor.workload().estimate(scan, predictor.window).total + 4 * prod(grid.shape)


def by_volume(tile: int, repeats: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Return one row per volume, and what grew faster than linearly."""
    predictor = make_predictor(tile, CLASSES)
    rows: list[dict[str, Any]] = []
    for edge in (*MEASURED, *ESTIMATED):
        model = round(tile * edge)
        grid = native_grid(model)
        shape = model_grid(grid, predictor.plan).shape
        repeated = 1 if edge == MEASURED[-1] else repeats
        rows.append({
            "model": shape[0], "native": grid.shape[0], "voxels": prod(grid.shape),
            "tiles": predictor.window.lay_tiles(shape).num_tiles, "memory": estimated_memory(predictor, grid),
            "run": measure(tile, model, CLASSES, CORES, repeated) if edge in MEASURED else None,
        })  # fmt: skip
    middle = rows[1]
    per_tile, per_voxel = middle["run"].network / middle["tiles"], middle["run"].others / middle["voxels"]
    problems = []
    for row in rows:
        row["estimate"] = row["tiles"] * per_tile + row["voxels"] * per_voxel
        if row["run"] is not None and row["tiles"] >= middle["tiles"]:
            ratio = row["run"].seconds / row["estimate"]
            if ratio > TOLERANCE:
                problems.append(f"{row['model']}³ took {ratio:.2f} times the linear estimate")
    return rows, problems


def by_classes(tile: int, repeats: int, middle: Run) -> tuple[dict[int, Run], list[str]]:
    """Return one run per number of classes on the middle scan, and what grew faster than linearly."""
    runs = {n: middle if n == CLASSES else measure(tile, MEASURED[1] * tile, n, CORES, repeats) for n in ALL_CLASSES}
    problems = []
    for fewer, more in pairwise(ALL_CLASSES):
        ratio = runs[more].seconds / runs[fewer].seconds
        if ratio > TOLERANCE * more / fewer:
            problems.append(f"{more} classes took {ratio:.2f} times as long as {fewer}")
    return runs, problems


def print_tables(volumes: list[dict[str, Any]], classes: dict[int, Run], cores: dict[int, Run]) -> None:
    """Print three Markdown tables."""
    print("\n| scan | model grid | tiles | s | estimate, s | µs per voxel | ms per tile | peak, MB | estimate, MB |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for row in volumes:
        run: Run | None = row["run"]
        seconds = row["estimate"] if run is None else run.seconds
        print(
            f"| {row['native']}³ | {row['model']}³ | {row['tiles']} | {'' if run is None else f'{run.seconds:.2f}'} | "
            f"{row['estimate']:.2f} | {seconds / row['voxels'] * 1e6:.3f} | {seconds / row['tiles'] * 1e3:.0f} | "
            f"{'' if run is None else f'{run.peak / 1e6:,.0f}'} | {row['memory'] / 1e6:,.0f} |"
        )
    print("\n| classes | s | network, s | others, s | peak, MB |\n|---:|---:|---:|---:|---:|")
    for count, run in classes.items():
        print(f"| {count} | {run.seconds:.2f} | {run.network:.2f} | {run.others:.2f} | {run.peak / 1e6:,.0f} |")
    print("\n| cores | s | network, s | others, s | speed |\n|---:|---:|---:|---:|---:|")
    for count, run in cores.items():
        speed = cores[1].seconds / run.seconds
        print(f"| {count} | {run.seconds:.2f} | {run.network:.2f} | {run.others:.2f} | {speed:.2f} |")


def draw(volumes: list[dict[str, Any]], classes: dict[int, Run], cores: dict[int, Run], out: Path) -> None:
    """Draw the tables."""
    figure = new_figure(11, 3.6)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.4, 1.2, 0.8))
    measured = [row for row in volumes if row["run"] is not None]
    millions = [row["voxels"] / 1e6 for row in volumes]
    left.plot(
        millions, [row["estimate"] / row["tiles"] * 1e3 for row in volumes], "--", color="#777777", label="estimate"
    )
    left.plot(
        [row["voxels"] / 1e6 for row in measured], [row["run"].seconds / row["tiles"] * 1e3 for row in measured], "o",
        color=OKABE_ITO[4], label="measured",
    )  # fmt: skip
    for row, position in zip(volumes, millions, strict=True):
        left.annotate(f"{row['model']}³", (position, row["estimate"] / row["tiles"] * 1e3), (0, -14), fontsize=8,
                      textcoords="offset points", ha="center")  # fmt: skip
    left.set(xscale="log", xlabel="million voxels of the scan", ylabel="ms per tile", title="volume")
    counts = list(classes)
    middle.plot(counts, [run.seconds for run in classes.values()], "o-", color=OKABE_ITO[4], label="whole prediction")
    middle.plot(counts, [run.network for run in classes.values()], "o-", color=OKABE_ITO[1], label="network")
    middle.set(xlabel="classes", ylabel="s", title=f"classes ({measured[1]['model']}³)")
    places = list(range(len(cores)))
    right.bar(places, [run.seconds for run in cores.values()], 0.6, color=OKABE_ITO[4], label="whole prediction")
    right.bar(places, [run.network for run in cores.values()], 0.3, color=OKABE_ITO[1], label="network")
    right.set(xlabel="cores", ylabel="s", title=f"cores ({measured[1]['model']}³)", xticks=places, xticklabels=cores)
    for axes in (left, middle, right):
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, frameon=False, loc="lower right" if axes is not right else "upper right")
    right.set_ylim(top=1.3 * max(run.seconds for run in cores.values()))  # room for the legend
    figure.tight_layout()
    save_png(figure, out)


def main() -> int:
    """Measure, print the tables and draw the figure; return 1 if something grew faster than linearly."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tile", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "docs" / "pictures" / "scaling.png")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(vars(predict_here(*json.loads(options.run)))))
        return 0
    volumes, problems = by_volume(options.tile, options.repeats)
    middle = volumes[1]["run"]
    classes, more = by_classes(options.tile, options.repeats, middle)
    cores = {
        count: middle
        if count == CORES
        else measure(options.tile, MEASURED[1] * options.tile, CLASSES, count, options.repeats)
        for count in ALL_CORES
    }
    print(f"\nMachine: {machine()}")
    print_tables(volumes, classes, cores)
    draw(volumes, classes, cores, options.out)
    print(f"\n{options.out}")
    for problem in (*problems, *more):
        print(f"grows faster than linearly: {problem}", file=sys.stderr)
    return 1 if problems or more else 0


if __name__ == "__main__":
    sys.exit(main())
