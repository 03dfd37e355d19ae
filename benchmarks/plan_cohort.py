"""Plan a cohort: machines, hours, storage and money for 100,000 scans, from one measured run.

The run segments scans on one core and adds up the CPU time of each stage: read, preprocess, network, restore (blending
and deciding labels) and write. A model of queues without waiting turns these into the scans per hour of any number of
workers: the slowest of the workers, the shared storage and the driver decides.

    python benchmarks/plan_cohort.py measure BUNDLE SCANS --out costs.json
    python benchmarks/plan_cohort.py plan costs.json [--scans 100000] [--hours 24] [--figure FILE.png]
                                     [--gpu-speedup 30] [--cpu-hour 0.05] [--gpu-hour 2.50] [--storage-mb-s 1000]
                                     [--gb-month 0.02]

Prices, the speed of the storage and that of a GPU are assumptions to replace by your own.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

STAGES = ("read", "preprocess", "network", "restore", "write")


@dataclass(frozen=True)
class Costs:
    """CPU seconds of one scan per stage, bytes that it reads and writes, and seconds of the driver per scan."""

    read: float
    preprocess: float
    network: float
    restore: float
    write: float
    bytes_read: float
    bytes_written: float
    driver: float
    scans: int = 1

    @property
    def total(self) -> float:
        """CPU seconds of a scan on one core."""
        return sum(getattr(self, stage) for stage in STAGES)


@dataclass(frozen=True)
class Assumptions:
    """Hold the numbers that a run on one machine cannot measure.

    Args:
        storage_bytes_per_second: of the shared storage, for all workers together.
        gpu_speedup: how many times faster a GPU runs the network than one core.
        cores_per_gpu: workers that share a GPU.
        cpu_hour: price of a core for an hour.
        gpu_hour: price of a GPU for an hour.
        gb_month: price of a GB for a month.
    """

    storage_bytes_per_second: float = 1e9
    gpu_speedup: float = 30.0
    cores_per_gpu: int = 8
    cpu_hour: float = 0.05
    gpu_hour: float = 2.5
    gb_month: float = 0.02


def limits(costs: Costs, assumed: Assumptions, workers: int, has_gpus: bool) -> dict[str, float]:
    """Return the scans per second that each resource allows.

    Args:
        costs: of one scan.
        assumed: storage and GPUs.
        workers: number of workers of one core.
        has_gpus: the network runs on GPUs, which `cores_per_gpu` workers share.
    """
    storage = assumed.storage_bytes_per_second / (costs.bytes_read + costs.bytes_written)
    found = {"storage": storage, "driver": 1 / costs.driver}
    if not has_gpus:
        return {"cores": workers / costs.total, **found}
    gpus = workers / assumed.cores_per_gpu
    on_cores = costs.total - costs.network
    return {"cores": workers / on_cores, "GPUs": gpus * assumed.gpu_speedup / costs.network, **found}


def needed_workers(costs: Costs, assumed: Assumptions, per_second: float, has_gpus: bool) -> int | None:
    """Return the fewest workers that segment so many scans per second; None if the storage or the driver cannot."""
    step = assumed.cores_per_gpu if has_gpus else 1
    one = limits(costs, assumed, step, has_gpus)
    if min(one["storage"], one["driver"]) < per_second:
        return None
    return step * math.ceil(per_second / min(one[name] for name in ("cores", "GPUs") if name in one))


def measure(bundle: Path, scans: Path) -> Costs:
    """Segment scans on one core without a second thread, and return the mean costs of one."""
    import torch

    import medseg
    from medseg.cohort import Ledger
    from medseg.inference.cases import find_cases
    from medseg.inference.scan import load_scan
    from medseg.inference.segmentation import save_segmentation

    torch.set_num_threads(1)
    model = medseg.load(bundle, device="cpu", backend="torch")
    model.window = replace(model.window, is_pipelined=False)  # the time of a second thread would count as another stage
    spent = dict.fromkeys(STAGES, 0.0)

    def timed(stage: str, work: Callable[[], Any]) -> Any:
        started = time.process_time()
        result = work()
        spent[stage] += time.process_time() - started
        return result

    network, prepare = model.predict_tiles, model._prepare
    model.predict_tiles = lambda tiles: timed("network", lambda: network(tiles))  # type: ignore[method-assign]
    model._prepare = lambda *given: timed("preprocess", lambda: prepare(*given))  # type: ignore[method-assign]
    cases = [case for case in find_cases([scans], model.plan.in_channels) if not case.problem]
    read = written = 0
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            paths = list(case.paths)
            scan = timed("read", lambda paths=paths: load_scan(paths, model.plan))
            before = spent["network"] + spent["preprocess"]
            started = time.process_time()
            segmentation = model.predict_scan(scan)
            spent["restore"] += time.process_time() - started - (spent["network"] + spent["preprocess"] - before)
            target = Path(folder) / case.name / "labels.nii.gz"
            target.parent.mkdir()
            timed("write", lambda result=segmentation, path=target: save_segmentation(result, path))
            read += sum(path.stat().st_size for path in case.paths)
            written += sum(file.stat().st_size for file in target.parent.iterdir())
        ledger, rows = Ledger(Path(folder) / "ledger.jsonl"), 200
        started = time.perf_counter()
        for number in range(rows):
            ledger.add({"case": str(number), "status": "done", "input": ["x" * 100], "warnings": ["y" * 200]})
        driver = (time.perf_counter() - started) / rows
    count = len(cases)
    return Costs(**{s: spent[s] / count for s in STAGES}, bytes_read=read / count, bytes_written=written / count,
                 driver=driver, scans=count)  # fmt: skip


def print_plan(costs: Costs, assumed: Assumptions, scans: int, hours: float) -> None:
    """Print the costs per stage, and what it takes to segment the scans in the time."""
    print("| " + " | ".join(["", *STAGES, "all"]) + " |\n|---|" + "---:|" * (len(STAGES) + 1))
    values = [*(getattr(costs, stage) for stage in STAGES), costs.total]
    print("| CPU s per scan | " + " | ".join(f"{value:.3g}" for value in values) + " |")
    print("| share | " + " | ".join(f"{value / costs.total:.0%}" for value in values) + " |\n")
    gigabytes = scans * (costs.bytes_read + costs.bytes_written) / 1e9
    per_second = scans / (3600 * hours)
    print(f"| {scans:,} scans in {hours:g} h | workers | GPUs | busy | storage | compute | storage, a month |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, has_gpus in (("CPU nodes", False), ("GPU nodes", True)):
        workers = needed_workers(costs, assumed, per_second, has_gpus)
        if workers is None:
            print(f"| {name} | – | – | the storage or the driver is too slow | {gigabytes:,.0f} GB | – | – |")
            continue
        gpus = workers // assumed.cores_per_gpu if has_gpus else 0
        rate = min(limits(costs, assumed, workers, has_gpus).values())
        busy = scans / rate / 3600
        money = busy * (workers * assumed.cpu_hour + gpus * assumed.gpu_hour)
        storage = gigabytes * assumed.gb_month
        print(f"| {name} | {workers} | {gpus} | {busy:.1f} h | {gigabytes:,.0f} GB | {money:,.0f} | {storage:,.0f} |")


def draw(costs: Costs, assumed: Assumptions, file: Path) -> None:
    """Draw the scans per hour over the number of workers, with the resource that limits them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    workers = [2**exponent for exponent in range(15)]
    for name, has_gpus, style in (("CPU nodes", False, "-"), ("GPU nodes", True, "--")):
        each = [limits(costs, assumed, count, has_gpus) for count in workers]
        rates = [3600 * min(found.values()) for found in each]
        axes.loglog(workers, rates, style, marker="o", markersize=3, label=name)
        before = ""
        for count, found, rate in zip(workers, each, rates, strict=True):
            slowest = min(found, key=found.__getitem__)
            if slowest != before:
                axes.annotate(slowest, (count, rate), xytext=(4, -12), textcoords="offset points", fontsize=8)
            before = slowest
    axes.set(xlabel="workers of one core", ylabel="scans per hour")
    axes.grid(True, which="major", alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=150)


def main() -> None:
    """Measure the costs of a scan, or plan a cohort from them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("measure")
    run.add_argument("bundle", type=Path)
    run.add_argument("scans", type=Path)
    run.add_argument("--out", type=Path, required=True)
    plan = commands.add_parser("plan")
    plan.add_argument("costs", type=Path)
    plan.add_argument("--scans", type=int, default=100_000)
    plan.add_argument("--hours", type=float, default=24.0)
    plan.add_argument("--figure", type=Path)
    plan.add_argument("--gpu-speedup", type=float, default=30.0)
    plan.add_argument("--cpu-hour", type=float, default=0.05)
    plan.add_argument("--gpu-hour", type=float, default=2.5)
    plan.add_argument("--gb-month", type=float, default=0.02)
    plan.add_argument("--storage-mb-s", type=float, default=1000.0)
    given = parser.parse_args()
    if given.command == "measure":
        costs = measure(given.bundle, given.scans)
        given.out.write_text(json.dumps(asdict(costs), indent=1), encoding="utf-8")
        print(f"{costs.scans} scans, {costs.total:.3g} CPU s per scan; written to {given.out}")
        return
    costs = Costs(**json.loads(given.costs.read_text(encoding="utf-8")))
    assumed = Assumptions(
        1e6 * given.storage_mb_s, given.gpu_speedup, cpu_hour=given.cpu_hour, gpu_hour=given.gpu_hour,
        gb_month=given.gb_month,
    )  # fmt: skip
    print_plan(costs, assumed, given.scans, given.hours)
    if given.figure:
        draw(costs, assumed, given.figure)


if __name__ == "__main__":
    main()
