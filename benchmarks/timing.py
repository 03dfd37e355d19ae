"""Measure times for the benchmarks: alternating repeats, medians, and one table with the machine's name."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch


class Row(NamedTuple):
    """One line of the table. `ratio` is the seconds divided by those of `reference`, or a speed-up if it says so."""

    topic: str
    what: str
    seconds: float
    ratio: float
    reference: str


def interleaved_medians(
    work: Mapping[str, Callable[[], object] | None], repeats: int, inner: int = 1
) -> dict[str, float]:
    """Return the median seconds of one call of each function, after a warm-up.

    The functions alternate in every repeat, so that a slow moment of the machine affects all of them.

    Args:
        work: functions by name; None is left out.
        repeats: number of measurements.
        inner: calls per measurement.
    """
    present = {name: call for name, call in work.items() if call is not None}
    for call in present.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in present}
    for _ in range(repeats):
        for name, call in present.items():
            begin = time.perf_counter()
            for _ in range(inner):
                call()
            times[name].append((time.perf_counter() - begin) / inner)
    return {name: statistics.median(values) for name, values in times.items()}


def machine() -> str:
    """Describe the machine: processor, cores, threads and version of torch, and the load."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{processor}, {os.cpu_count()} cores, torch {torch.__version__} with {torch.get_num_threads()} threads{load}"
    )


def print_table(rows: Sequence[Row]) -> None:
    """Print the rows as a Markdown table under the name of the machine."""
    print(f"\nMachine: {machine()}\n")
    print("| topic | what | ms | ratio | of |\n|---|---|---:|---:|---|")
    for row in rows:
        print(f"| {row.topic} | {row.what} | {row.seconds * 1e3:.3f} | {row.ratio:.2f} | {row.reference} |")
