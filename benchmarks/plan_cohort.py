"""Plan a cohort: machines, hours, storage and money for 100,000 scans, from one measured run.

The run segments scans with one thread and adds up the CPU time of each stage: read, preprocess (with finding regions,
if the model has some), network, restore (blending and deciding labels) and write. A second part hands rows through a
Ray cluster on this machine and writes the ledger, which is what the driver does per scan. CPU time does not count what
other programs take, so that the numbers may be measured on a busy machine. A model of queues without waiting turns them
into the scans per hour of any number of workers: the slowest of the workers, the shared storage and the driver decides.

    python benchmarks/plan_cohort.py measure BUNDLE SCANS [--count 20] --out costs.json
    python benchmarks/plan_cohort.py plan costs.json [--scans 100000] [--hours 24] [--figure FILE.svg]
                                     [--gpu-speedup RATIO] [--cpu-hour 0.041] [--gpu-hour 1.01] [--storage-mb-s 1000]
                                     [--gb-month 0.023] [--cores-per-node 32] [--cores-per-gpu 4]

Nothing is measured on a GPU. Nodes with GPUs are planned only with a ratio of your own: the seconds of the network on
one core, divided by those on the GPU.

Prices, the speed of the storage and the sizes of nodes are assumptions to replace by your own. The default prices are
near those that Amazon lists for us-east-1 on demand in June 2026, in USD: m7g.large, two cores for 0.0816 an hour;
g5.xlarge, one GPU with four cores for 1.006 an hour; S3 Standard, 0.023 for a GB and a month.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
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
        gpu_speedup: how many times faster a GPU runs the network than one core; None plans no GPUs.
        cores_per_node: of a node without GPUs.
        cores_per_gpu: workers that share a GPU.
        cpu_hour: price of a core for an hour.
        gpu_hour: price of a GPU with its cores for an hour.
        gb_month: price of a GB for a month.
    """

    storage_bytes_per_second: float
    gpu_speedup: float | None
    cores_per_node: int
    cores_per_gpu: int
    cpu_hour: float
    gpu_hour: float
    gb_month: float

    @property
    def kinds(self) -> dict[str, bool]:
        """Kinds of nodes, and whether they have GPUs."""
        return {"CPU nodes": False, **({} if self.gpu_speedup is None else {"GPU nodes": True})}


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
    if not has_gpus or assumed.gpu_speedup is None:
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


def measure_driver(rows: int = 400, at_once: int = 64) -> float:
    """Return the seconds of the driver per scan: its CPU time for Ray's messages, and the time to store a row.

    Args:
        rows: number of rows.
        at_once: rows that are under way at once, as with half as many workers.
    """
    from medseg.cohort import Ledger
    from medseg.cohort.cluster import connected

    row = {"case": "", "status": "done", "input": ["x" * 100], "warnings": ["y" * 200], "seconds": {}, "flags": []}
    stored: list[float] = []

    class Echo:
        def segment(self, number: int) -> dict[str, Any]:
            return {**row, "case": str(number)}

    with connected("local") as ray, tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger.jsonl")
        actor = ray.remote(Echo).options(max_concurrency=at_once).remote()
        ray.get(actor.segment.remote(0))
        started = time.process_time()
        running = [actor.segment.remote(number) for number in range(at_once)]
        for number in range(rows):
            (ready,), running = ray.wait(running, num_returns=1)
            found = ray.get(ready)
            before, cpu = time.perf_counter(), time.process_time()
            ledger.add(found)
            stored.append(time.perf_counter() - before)
            started += time.process_time() - cpu
            running.append(actor.segment.remote(at_once + number))
        messages = (time.process_time() - started) / rows
    return messages + statistics.median(stored)


def measure(bundle: Path, scans: Path, count: int) -> Costs:
    """Segment scans with one thread, and return the mean costs of one."""
    import torch

    import medseg
    from medseg.inference.cases import find_cases
    from medseg.inference.scan import load_scan
    from medseg.inference.segmentation import save_segmentation

    torch.set_num_threads(1)
    model = medseg.load(bundle, device="cpu", backend="torch", precision="fp32")
    model.window = replace(model.window, is_pipelined=False)  # the time of a second thread would count as another stage
    spent = dict.fromkeys(STAGES, 0.0)

    inner = 0.0

    def timed(stage: str, work: Callable[[], Any]) -> Any:
        nonlocal inner
        outer, inner = inner, 0.0
        started = time.process_time()
        result = work()
        elapsed = time.process_time() - started
        spent[stage] += elapsed - inner  # without the stages within
        inner = outer + elapsed
        return result

    network = model.predict_tiles
    model.predict_tiles = lambda tiles: timed("network", lambda: network(tiles))  # type: ignore[method-assign]
    name = "_prepare" if model.plan.regions is None else "_predict_regions"
    prepare = getattr(model, name)
    setattr(model, name, lambda *given: timed("preprocess", lambda: prepare(*given)))
    cases = [case for case in find_cases([scans], model.plan.in_channels) if not case.problem][:count]
    read = written = 0
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            paths = list(case.paths)
            scan = timed("read", lambda paths=paths: load_scan(paths, model.plan))
            segmentation = timed("restore", lambda scan=scan: model.predict_scan(scan))
            target = Path(folder) / case.name / "labels.nii.gz"
            target.parent.mkdir()
            timed("write", lambda result=segmentation, path=target: save_segmentation(result, path))
            read += sum(path.stat().st_size for path in case.paths)
            written += sum(file.stat().st_size for file in target.parent.iterdir())
    count, driver = len(cases), measure_driver()
    return Costs(**{s: spent[s] / count for s in STAGES}, bytes_read=read / count, bytes_written=written / count,
                 driver=driver, scans=count)  # fmt: skip


def print_plan(costs: Costs, assumed: Assumptions, scans: int, hours: float) -> None:
    """Print the costs per stage, what it takes to segment the scans in the time, and what more workers change."""
    print("| " + " | ".join(["", *STAGES, "all"]) + " |\n|---|" + "---:|" * (len(STAGES) + 1))
    values = [*(getattr(costs, stage) for stage in STAGES), costs.total]
    print("| CPU s per scan | " + " | ".join(f"{value:.3g}" for value in values) + " |")
    print("| share | " + " | ".join(f"{value / costs.total:.0%}" for value in values) + " |\n")
    gigabytes = scans * (costs.bytes_read + costs.bytes_written) / 1e9
    print(f"Read per scan: {costs.bytes_read / 1e6:.2g} MB; written: {costs.bytes_written / 1e6:.2g} MB; time of the "
          f"driver: {1000 * costs.driver:.2g} ms. All files: {gigabytes:,.1f} GB.\n")  # fmt: skip
    print(f"| {scans:,} scans | workers | machines | hours | limited by | computing | files, a month |")
    print("|---|---:|---:|---:|---|---:|---:|")
    files = f"{gigabytes * assumed.gb_month:,.2f}"
    for name, has_gpus in assumed.kinds.items():
        needed = needed_workers(costs, assumed, scans / (3600 * hours), has_gpus)
        step = assumed.cores_per_gpu if has_gpus else assumed.cores_per_node
        if needed is None:
            print(f"| {name}, in {hours:g} h | – | – | – | the storage or the driver is too slow | – | {files} |")
        for workers in sorted({step * 4**exponent for exponent in range(4)} | ({needed} - {None})):
            machines = math.ceil(workers / step)
            found = limits(costs, assumed, workers, has_gpus)
            slowest = min(found, key=found.__getitem__)
            busy = scans / found[slowest] / 3600
            price = busy * (machines * assumed.gpu_hour if has_gpus else workers * assumed.cpu_hour)
            label = f"{name}, in {hours:g} h" if workers == needed else name
            print(f"| {label} | {workers:,} | {machines:,} | {busy:.2f} | {slowest} | {price:,.2f} | {files} |")


def draw(costs: Costs, assumed: Assumptions, file: Path) -> None:
    """Draw the scans per hour over the number of workers, with the resource that limits them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    workers = [2**exponent for exponent in range(16)]
    for (name, has_gpus), colour in zip(assumed.kinds.items(), ("C0", "C1"), strict=False):
        each = [limits(costs, assumed, count, has_gpus) for count in workers]
        axes.loglog(workers, [3600 * min(found.values()) for found in each], color=colour, linewidth=2, label=name)
        for resource in each[0]:
            if resource in ("cores", "GPUs"):
                rates = [3600 * found[resource] for found in each]
                axes.loglog(workers, rates, ":", color=colour, linewidth=1)
                offset = (-8, 4 if has_gpus else -14)
                axes.annotate(
                    f"{resource} of {name}", (workers[-1], rates[-1]), offset, textcoords="offset points", ha="right",
                    fontsize=8, color=colour,
                )  # fmt: skip
    for resource, offset in zip(sorted(("storage", "driver"), key=each[0].__getitem__), (-11, 3), strict=True):
        rate = 3600 * each[0][resource]
        axes.axhline(rate, color="0.4", linestyle=":", linewidth=1)
        axes.annotate(resource, (1, rate), xytext=(2, offset), textcoords="offset points", fontsize=8, color="0.3")
    axes.set(xlabel="workers of one core", ylabel="scans per hour")
    axes.set_xlim(0.8, 1.6 * workers[-1])
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(file, dpi=150)


def main() -> None:
    """Measure the costs of a scan, or plan a cohort from them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("measure")
    run.add_argument("bundle", type=Path)
    run.add_argument("scans", type=Path)
    run.add_argument("--count", type=int, default=20, help="scans that are segmented")
    run.add_argument("--out", type=Path, required=True)
    plan = commands.add_parser("plan")
    plan.add_argument("costs", type=Path)
    plan.add_argument("--scans", type=int, default=100_000)
    plan.add_argument("--hours", type=float, default=24.0)
    plan.add_argument("--figure", type=Path)
    plan.add_argument("--gpu-speedup", type=float, help="how many times faster a GPU runs the network than one core")
    plan.add_argument("--cpu-hour", type=float, default=0.041, help="price of a core")
    plan.add_argument("--gpu-hour", type=float, default=1.01, help="price of a GPU with its cores")
    plan.add_argument("--gb-month", type=float, default=0.023, help="price of a GB")
    plan.add_argument("--storage-mb-s", type=float, default=1000.0, help="of the shared storage, reading and writing")
    plan.add_argument("--cores-per-node", type=int, default=32)
    plan.add_argument("--cores-per-gpu", type=int, default=4)
    given = parser.parse_args()
    if given.command == "measure":
        costs = measure(given.bundle, given.scans, given.count)
        given.out.write_text(json.dumps(asdict(costs), indent=1), encoding="utf-8")
        print(f"{costs.scans} scans, {costs.total:.3g} CPU s per scan; written to {given.out}")
        return
    costs = Costs(**json.loads(given.costs.read_text(encoding="utf-8")))
    assumed = Assumptions(
        1e6 * given.storage_mb_s, given.gpu_speedup, given.cores_per_node, given.cores_per_gpu, given.cpu_hour,
        given.gpu_hour, given.gb_month,
    )  # fmt: skip
    print_plan(costs, assumed, given.scans, given.hours)
    if given.figure:
        draw(costs, assumed, given.figure)


if __name__ == "__main__":
    main()
