"""Segment a cohort: hand its scans to workers, repeat lost ones elsewhere, and keep the ledger."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from medseg.cohort.cluster import LOCAL, WorkerResources, capacity, check_capacity, connected
from medseg.cohort.inputs import CohortCase, find_cohort
from medseg.cohort.ledger import FINISHED, NAME, Ledger
from medseg.cohort.output_folder import OutputFolder
from medseg.errors import OptionError
from medseg.inference.memory import parse_bytes
from medseg.inference.predict_files import CaseResult
from medseg.plan import read_plan
from medseg.versions import installed_version
from medseg.volumes import is_zarr, remove_leftovers

# Failures that another worker would only repeat.
OF_THE_SCAN = (
    "GeometryError", "MemoryLimitError", "NonFiniteError", "OptionError", "PlanError", "RegionError", "ScanError",
    "ShapeError",
)  # fmt: skip
RETRIES = 2
# A worker that fails so many scans in a row gets no new ones until another worker has tried them, too.
FAILURES_IN_A_ROW = 3
WAIT_SECONDS, GROW_SECONDS, SAVE_SECONDS = 0.5, 3.0, 30.0
# Cases whose headers are read to estimate the memory of a worker, and what is reserved for it before that is known.
ESTIMATED_CASES = 8
LOADING_BYTES = 1 << 30


@dataclass(frozen=True)
class CohortProgress:
    """State of a run.

    Args:
        done: scans that are finished or were set aside, those of earlier runs included.
        total: number of scans.
        set_aside: scans that could not be segmented.
        per_hour: scans finished per hour in this run.
        seconds_left: at this rate; None before the first scan is finished.
        workers: number of workers that have loaded the model.
        problems: why workers were given up, one line each.
    """

    done: int
    total: int
    set_aside: int
    per_hour: float
    seconds_left: float | None
    workers: int
    problems: tuple[str, ...] = ()


@dataclass
class _Task:
    case: CohortCase
    attempts: int = 0
    tried: set[int] = field(default_factory=set)
    reason: str = ""


@dataclass
class _Member:
    """A worker of the cluster.

    Args:
        number: counts the workers of a run.
        actor: Ray's handle.
        name: host and process; "" until the model is loaded.
        tasks: scans that it works on.
        is_alone: it works on a scan that failed elsewhere, and gets no other one meanwhile.
        failures: scans that failed in a row and may succeed on another worker.
    """

    number: int
    actor: Any
    name: str = ""
    tasks: list[_Task] = field(default_factory=list)
    is_alone: bool = False
    failures: int = 0


def predict(
    bundle: str | Path,
    inputs: Iterable[str | Path],
    out_dir: str | Path,
    *,
    address: str = LOCAL,
    cpus_per_worker: int = 1,
    gpus_per_worker: float = 0.0,
    format: Literal["same", "nifti", "mgz", "nrrd", "mha", "png", "tiff", "dicom-seg", "zarr"] = "same",
    overwrite: bool = False,
    on_case: Callable[[CaseResult], None] | None = None,
    on_progress: Callable[[CohortProgress], None] | None = None,
    **options: Any,
) -> list[CaseResult]:
    """Segment every scan that the inputs name on the workers of a Ray cluster.

    A scan whose worker dies or cannot read or write it is repeated on another worker, at most twice, and then set
    aside with the reason. `ledger.jsonl` in the output folder has one row per scan; see `medseg.cohort.Ledger`. A
    second run segments what is missing there, and what was segmented with other weights, settings or input files.

    Args:
        bundle: folder of the bundle, which every worker sees under the same path.
        inputs: see `medseg.cohort.find_cohort`. Relative paths become absolute.
        out_dir: a folder that every worker sees under the same path, or a URL of an fsspec file system.
        address: "local" starts a cluster on this machine, "auto" takes the one that runs on it, else `host:port`.
        cpus_per_worker: CPU cores of a worker. Several workers with one core each finish more scans per hour than one
            worker with several cores, if their memory suffices.
        gpus_per_worker: GPUs of a worker; a fraction shares one.
        format: as of `medseg.predict_files`.
        overwrite: recompute finished cases, and replace files without a record of medseg beside them.
        on_case: called with each result as it comes.
        on_progress: called after each result, and every few seconds.
        options: further arguments of `medseg.load`. `max_ram` is the memory of one worker, which Ray reserves; without
            it the need is estimated from the headers of the largest scans.

    Returns:
        One result per case, in the order of the inputs.

    Raises:
        OptionError: there is no cluster of the same version, no node can hold a worker, a worker cannot load the model
            or does not see the output folder, or another run uses the output folder.
        VolumeError: the inputs cannot be understood.
    """
    plan = read_plan(Path(bundle) / "configs" / "plan.json")
    out_dir = str(out_dir) if "://" in str(out_dir) else str(Path(out_dir).absolute())
    max_ram = options.get("max_ram")
    resources = WorkerResources(cpus_per_worker, gpus_per_worker, 0 if max_ram is None else parse_bytes(max_ram))
    if gpus_per_worker and options.get("device", "auto") == "auto":
        options["device"] = "cuda"
    elif not gpus_per_worker and options.get("device", "auto") == "auto":
        options["device"] = "cpu"
    exclude = None if "://" in out_dir else Path(out_dir)
    cases = [_absolute(case) for case in find_cohort(inputs, plan.in_channels, exclude)]
    _check_names(cases)
    out = OutputFolder(out_dir)
    out.check()
    run = secrets.token_hex(8)
    with out.reserved(run), out.ledger_file(NAME) as file, connected(address) as ray:
        check_capacity(ray, resources)
        if not out.is_remote:
            remove_leftovers(out_dir)
        arguments = {
            "bundle": str(Path(bundle).absolute()), "options": options, "out_dir": out_dir, "run": run,
            "format": format, "overwrite": overwrite, "threads": cpus_per_worker,
        }  # fmt: skip
        cohort = _Cohort(ray, cases, out, Ledger(file), resources, arguments, on_case, on_progress)
        return cohort.run()


def _absolute(case: CohortCase) -> CohortCase:
    paths = tuple(path if "://" in path else str(Path(path).absolute()) for path in case.paths)
    return replace(case, paths=paths)


def _check_names(cases: Sequence[CohortCase]) -> None:
    for case in cases:
        if not case.name or Path(case.name).name != case.name or case.name.startswith("."):
            raise OptionError(f"case {case.name!r}: not a file name; correct the column case of the table")


class _Cohort:
    """State of one run."""

    def __init__(
        self,
        ray: Any,
        cases: Sequence[CohortCase],
        out: OutputFolder,
        ledger: Ledger,
        resources: WorkerResources,
        arguments: dict[str, Any],
        on_case: Callable[[CaseResult], None] | None,
        on_progress: Callable[[CohortProgress], None] | None,
    ) -> None:
        self.ray = ray
        self.cases = list(cases)
        self.out = out
        self.ledger = ledger
        self.is_estimated = not resources.memory_bytes
        loading = replace(resources, memory_bytes=LOADING_BYTES)
        self.resources = loading if self.is_estimated and capacity(ray, loading) else resources
        self.arguments = arguments
        self.on_case = on_case
        self.on_progress = on_progress
        self.results: dict[str, CaseResult] = {}
        self.waiting: deque[_Task] = deque(_Task(case) for case in cases)
        self.suspects: list[_Task] = []
        self.members: list[_Member] = []
        self.loading: dict[Any, _Member] = {}
        self.running: dict[Any, tuple[_Member, _Task]] = {}
        self.settings = ""
        self.created = self.lost_loading = 0
        self.problems: list[str] = []  # one per worker that was given up
        # Under a memory limit a worker holds one scan at a time; else it reads the next one meanwhile.
        self.at_once = 1 if resources.memory_bytes or any(map(is_zarr, cases[0].paths)) else 2
        self.started = self.grown = self.saved = time.monotonic()
        self.finished_here = 0

    def run(self) -> list[CaseResult]:
        """Segment the cases, and return their results in order."""
        # The first worker that has loaded the model tells the settings, by which the ledger knows what is missing.
        rows = {} if self.arguments["overwrite"] else self.ledger.rows
        unfinished = sum(rows.get(case.name, {}).get("status") not in FINISHED for case in self.cases)
        try:
            self._start(max(1, min(capacity(self.ray, self.resources), unfinished)))
            while len(self.results) < len(self.cases):
                self._grow()
                self._dispatch()
                self._wait()
                self.out.renew()
                if self.out.is_remote and time.monotonic() - self.saved > SAVE_SECONDS:
                    self.out.save(self.ledger.file)
                    self.saved = time.monotonic()
        finally:
            for member in self.members:
                self.ray.kill(member.actor)
        return [self.results[case.name] for case in self.cases]

    # Workers

    def _start(self, count: int) -> None:
        from medseg.cohort.worker import Worker

        remote = self.ray.remote(Worker)
        for _ in range(count):
            options = {**self.resources.to_options(), "max_concurrency": self.at_once, "max_restarts": 0}
            member = _Member(self.created, remote.options(**options).remote(**self.arguments))
            # A worker that dies at a header would only die again, so the others read none.
            largest = self._largest() if self.is_estimated and not self.created else []
            self.created += 1
            self.members.append(member)
            self.loading[member.actor.load.remote(largest)] = member

    def _largest(self) -> list[CohortCase]:
        def size(case: CohortCase) -> int:
            try:
                return sum(Path(path).stat().st_size for path in case.paths)
            except OSError:
                return 0

        local = [case for case in self.cases if not case.is_remote]
        return sorted(local, key=size, reverse=True)[:ESTIMATED_CASES]

    def _grow(self) -> None:
        """Replace lost workers, and start further ones on nodes that have joined."""
        if not self.settings or time.monotonic() - self.grown < GROW_SECONDS:
            return
        self.grown = time.monotonic()
        open_tasks = len(self.waiting) + len(self.suspects) + len(self.running)
        wanted = min(capacity(self.ray, self.resources) - len(self.problems), open_tasks)
        if wanted > len(self.members):
            self._start(wanted - len(self.members))

    def _loaded(self, member: _Member, found: dict[str, Any]) -> None:
        here = installed_version("medseg")
        if not found.get("error") and found["version"] != here:
            found["error"] = f"worker {found['name']}: has medseg {found['version']}, this process {here}; install one"
        if not found.get("error") and self.settings and found["settings"] != self.settings:
            found["error"] = f"worker {found['name']}: has other weights or settings than the first worker"
        if found.get("error"):
            self._give_up(member, found["error"])
            return
        member.name = found["name"]
        if found["memory_bytes"] > self.resources.memory_bytes:
            self.resources = replace(self.resources, memory_bytes=found["memory_bytes"])
            for each in [each for each in self.members if each is not member]:
                self._remove(each)  # too little is reserved for it; it has no scan yet
        if self.settings:
            return
        self.settings = found["settings"]
        self._skip_finished()
        self.started = time.monotonic()
        self.grown = 0.0

    def _give_up(self, member: _Member, problem: str) -> None:
        """Use a worker no more, and start none in its place."""
        self.problems.append(problem)
        self._remove(member)
        if not self.members:
            raise OptionError(problem)
        self._report()

    def _remove(self, member: _Member) -> None:
        if member in self.members:
            self.members.remove(member)
            self.ray.kill(member.actor)

    def _skip_finished(self) -> None:
        for task in [] if self.arguments["overwrite"] else list(self.waiting):
            row = self.ledger.finished(task.case, self.settings)
            if row is not None and self.out.exists(str(row["output"]).rpartition("/")[2]):
                self.waiting.remove(task)
                message = "; ".join(["finished by an earlier run", *(f"suspicious: {flag}" for flag in row["flags"])])
                self._finish(
                    CaseResult(
                        task.case.name, "skipped", row["output"], message, volumes_ml=row["volumes_ml"],
                        intervals_ml=row.get("intervals_ml", {}), suspicions=row["flags"],
                    )
                )  # fmt: skip

    # Scans

    def _dispatch(self) -> None:
        """Give each worker at most two scans, so that none waits and few are lost with it."""
        if self.is_estimated and any(member.number == 0 for member in self.loading.values()):
            return  # the need of memory is not known yet
        for member in [member for member in self.members if member.name]:
            if not member.tasks and (suspect := self._suspect_for(member)) is not None:
                self.suspects.remove(suspect)
                member.is_alone = True
                self._give(member, suspect)
            is_free = not member.is_alone and member.failures < FAILURES_IN_A_ROW
            while self.waiting and is_free and len(member.tasks) < self.at_once:
                self._give(member, self.waiting.popleft())

    def _suspect_for(self, member: _Member) -> _Task | None:
        """Return a scan that failed elsewhere. One that every worker has tried may be tried again by any."""
        numbers = {each.number for each in self.members}
        for task in self.suspects:
            if member.number not in task.tried or numbers <= task.tried:
                return task
        return None

    def _give(self, member: _Member, task: _Task) -> None:
        member.tasks.append(task)
        self.running[member.actor.segment.remote(task.case)] = (member, task)

    def _wait(self) -> None:
        references = [*self.loading, *self.running]
        if not references:
            time.sleep(WAIT_SECONDS)
            self._report()
            return
        ready, _ = self.ray.wait(references, num_returns=1, timeout=WAIT_SECONDS)
        for reference in ready:
            member = self.loading.pop(reference, None)
            if member is not None:
                self._handle_load(member, reference)
            else:
                self._handle_row(*self.running.pop(reference), reference)
        if not ready:
            self._report()

    def _handle_load(self, member: _Member, reference: Any) -> None:
        if member not in self.members:
            return
        try:
            found = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            self.lost_loading += 1
            if self.lost_loading <= RETRIES:
                self._remove(member)
                if not self.members:
                    self._start(1)
                return
            found = {"error": f"a worker died while it loaded the model ({_death(error)}); look at its memory"}
        self._loaded(member, found)

    def _handle_row(self, member: _Member, task: _Task, reference: Any) -> None:
        member.tasks.remove(task)
        member.is_alone = False
        task.attempts += 1
        task.tried.add(member.number)
        try:
            row = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            self._remove(member)
            task.reason = f"{task.case.paths[0]}: the worker process {member.name} died ({_death(error)})"
            self._repeat(task, member, {})
            return
        if row["status"] != "failed":
            member.failures = 0
            self._record(task, row)
            self._blame(task)
            return
        task.reason = row["message"]
        if row["error"] in OF_THE_SCAN:
            self._set_aside(task, row)
            return
        member.failures += 1
        self._repeat(task, member, row)

    def _blame(self, task: _Task) -> None:
        """Give up the workers that failed several scans in a row, among them one that another worker has finished."""
        for each in [each for each in self.members if each.failures >= FAILURES_IN_A_ROW and each.number in task.tried]:
            self._give_up(each, f"worker {each.name} was given up after {each.failures} failures: {task.reason}")

    def _repeat(self, task: _Task, member: _Member, row: dict[str, Any]) -> None:
        if task.attempts > RETRIES:
            self._set_aside(task, {**row, "worker": member.name})
        else:
            self.suspects.append(task)

    def _set_aside(self, task: _Task, row: dict[str, Any]) -> None:
        for each in self.members:
            if each.number in task.tried:
                each.failures = 0  # it was the scan
        message = f"{task.reason} (tried {task.attempts} times)" if task.attempts > 1 else task.reason
        empty = {"output": "", "seconds": {}, "weights_sha256": [], "flags": [], "warnings": [], "volumes_ml": {}}
        self._record(
            task,
            {
                **empty, "case": task.case.name, "input": list(task.case.paths), "input_state": [], **row,
                "status": "failed", "message": message,
            },
        )  # fmt: skip

    def _record(self, task: _Task, row: dict[str, Any]) -> None:
        row = {**row, "attempts": task.attempts, "settings": self.settings}
        self.ledger.add(row)
        self.finished_here += 1
        self._finish(
            CaseResult(
                task.case.name, row["status"], row["output"], row["message"], float(row.get("total_seconds", 0.0)),
                volumes_ml=row["volumes_ml"], intervals_ml=row.get("intervals_ml", {}), warnings=row["warnings"],
                suspicions=row["flags"], error=row.get("error", ""),
            )
        )  # fmt: skip

    def _finish(self, result: CaseResult) -> None:
        self.results[result.case] = result
        if self.on_case is not None:
            self.on_case(result)
        self._report()

    def _report(self) -> None:
        if self.on_progress is None:
            return
        seconds = max(time.monotonic() - self.started, 1e-6)
        left = len(self.cases) - len(self.results)
        self.on_progress(
            CohortProgress(
                len(self.results),
                len(self.cases),
                sum(result.status == "failed" for result in self.results.values()),
                3600 * self.finished_here / seconds,
                seconds / self.finished_here * left if self.finished_here else None,
                len([member for member in self.members if member.name]),
                tuple(self.problems),
            )
        )


def _death(error: BaseException) -> str:
    """Return why Ray says that a process ended, without its pages of advice."""
    text = str(error)
    if "memory" in text.lower() and "killed" in text.lower():
        return "the node ran out of memory"
    if "node" in text.lower() and "died" in text.lower() and "worker" not in text.lower():
        return "its node was lost"
    return "killed or crashed"
