"""Timing shared by the benchmarks: interleaved repeats, medians, one table, the machine named."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch


class Row(NamedTuple):
    """One line of the table: `ratio` is seconds over the seconds of `reference`, or a speed-up where said so."""

    topic: str
    what: str
    seconds: float
    ratio: float
    reference: str


def interleaved_medians(
    work: Mapping[str, Callable[[], object] | None], repeats: int, inner: int = 1
) -> dict[str, float]:
    """Median seconds of one call of each piece of work, after a warm-up.

    The pieces take turns in every repeat, so that a slow moment of the machine hits all of them; None is left out.
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
    """Processor, cores used by torch, load, and versions."""
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
    """The rows as a Markdown table under the machine's name."""
    print(f"\nMachine: {machine()}\n")
    print("| topic | what | ms | ratio | of |\n|---|---|---:|---:|---|")
    for row in rows:
        print(f"| {row.topic} | {row.what} | {row.seconds * 1e3:.3f} | {row.ratio:.2f} | {row.reference} |")
