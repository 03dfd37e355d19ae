"""Measure every case of a data set in several processes, and keep the facts for the next run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from medseg.datasets.case_facts import CaseFacts, FileFacts
from medseg.datasets.manifest import Manifest
from medseg.datasets.measure_case import measure_case
from medseg.errors import MedsegError
from medseg.machine import available_bytes, num_cores
from medseg.volumes import read_channel_grid, replacing
from medseg.volumes.files import cache_folder, file_sha256
from medseg.volumes.formats import files_of

# Facts of other versions are measured again. Increase it when a field or its meaning changes.
FACTS_VERSION = 1
# An image in its largest type, its label map, the numbered copy of the label map, and what a slab needs.
BYTES_PER_VOXEL = 8 + 8 + 4
BYTES_PER_PROCESS = 250 * 1024**2
# Part of the available memory that the processes may take together.
MEMORY_SHARE = 0.7
# Below this size on disk, starting processes takes longer than measuring.
SMALL_DATASET_BYTES = 30 * 1024**2
# Size, modification time in ns, and SHA-256 of each file by absolute path.
Stamps = dict[str, tuple[int, int, str]]
KILLED = "the process that read this case was killed, most often for lack of memory; free memory, or convert the image"


@dataclass(frozen=True)
class CollectedFacts:
    """Result of `collect_facts`.

    Args:
        cases: facts by case id, in the order of the manifest.
        num_measured: number of cases that this run measured; the others were kept from an earlier run.
        num_processes: number of processes that measured.
        cache_file: file that keeps the facts; None without a cache.
    """

    cases: Mapping[str, CaseFacts]
    num_measured: int
    num_processes: int
    cache_file: Path | None


def collect_facts(
    manifest: Manifest,
    root: Path | str,
    *,
    num_processes: int | None = 1,
    use_cache: bool = True,
    on_case: Callable[[str, int, int], None] | None = None,
) -> CollectedFacts:
    """Measure every case of a data set.

    The facts of each case are kept as soon as they are measured, in medseg's folder of the user's cache or in
    `MEDSEG_CACHE_DIR`. An interrupted run continues there. A case is measured again if the size, or the modification
    time and the SHA-256, of one of its files have changed.

    Args:
        manifest: the data set.
        root: its folder.
        num_processes: number of processes; None takes one per core, and fewer if the images would not fit into 70 % of
            the available memory. More than one process needs a main module that can be imported, as `multiprocessing`
            demands.
        use_cache: False measures every case and keeps nothing.
        on_case: called after each case with its id, the number of finished cases, and the number of cases.

    Returns:
        The facts. A file that cannot be read has its problem among the facts.
    """
    root = Path(root)
    cache = _Cache(manifest, root) if use_cache else None
    known: dict[str, CaseFacts] = {}
    todo = []
    for case_id in manifest.case_ids:
        kept = cache.get(case_id) if cache else None
        if kept is None:
            todo.append(case_id)
            continue
        known[case_id] = kept
        if on_case is not None:
            on_case(case_id, len(known), len(manifest.case_ids))
    if num_processes is None:
        num_processes = _suitable_processes(manifest, root, todo)
    num_processes = max(1, min(num_processes, len(todo)))
    for facts, stamps in _measure_all(manifest, root, todo, num_processes):
        known[facts.case] = facts
        if cache is not None:
            cache.add(facts, stamps)
        if on_case is not None:
            on_case(facts.case, len(known), len(manifest.case_ids))
    if cache is not None:
        cache.compact(known)
    ordered = {case_id: known[case_id] for case_id in manifest.case_ids}
    return CollectedFacts(ordered, len(todo), num_processes, cache.file if cache else None)


def _suitable_processes(manifest: Manifest, root: Path, case_ids: Sequence[str]) -> int:
    """Return one process per core, fewer if the largest images would not fit, and one for a small data set."""
    largest, on_disk = 0, 0
    for case_id in case_ids:
        paths = [path for of_role in manifest.paths(root, case_id).values() for path in of_role]
        for path in paths:
            with suppress(OSError):
                on_disk += path.stat().st_size
        with suppress(MedsegError, OSError):
            grid, num_channels = read_channel_grid(paths[0])
            largest = max(largest, prod(grid.shape) * (num_channels if manifest.has_channels_in_one_file else 1))
    if on_disk < SMALL_DATASET_BYTES:
        return 1
    per_process = largest * BYTES_PER_VOXEL + BYTES_PER_PROCESS
    return max(1, min(num_cores(), int(available_bytes() * MEMORY_SHARE / per_process)))


def _measure(manifest: Manifest, root: Path, case_id: str) -> tuple[CaseFacts, Stamps]:
    """Measure a case; its files are stamped before they are read, so that a change meanwhile is noticed later."""
    try:
        stamps = _stamp(manifest, root, case_id, with_digest=True)
    except (OSError, MedsegError):
        stamps = {}
    return measure_case(manifest, root, case_id), stamps


def _stamp(manifest: Manifest, root: Path, case_id: str, with_digest: bool) -> Stamps:
    """Return size, modification time and SHA-256 of each file of a case, by absolute path."""
    stamps: Stamps = {}
    for paths in manifest.paths(root, case_id).values():
        for path in (file for image in paths for file in files_of(image)):
            status = path.stat()
            digest = file_sha256(path) if with_digest else ""
            stamps[str(path.resolve())] = (status.st_size, status.st_mtime_ns, digest)
    return stamps


def _measure_all(
    manifest: Manifest, root: Path, case_ids: Sequence[str], num_processes: int
) -> Iterator[tuple[CaseFacts, Stamps]]:
    """Yield the facts and stamps of each case as they are finished."""
    if num_processes <= 1:
        for case_id in case_ids:
            yield _measure(manifest, root, case_id)
        return
    left = list(case_ids)
    # Threads of the parent (torch, ITK) do not survive a fork, and their locks stay locked in it.
    context = get_context("spawn")
    try:
        with ProcessPoolExecutor(num_processes, mp_context=context) as pool:
            for facts, stamps in _bounded(pool, manifest, root, list(case_ids), 2 * num_processes):
                left.remove(facts.case)
                yield facts, stamps
        return
    except BrokenProcessPool:
        pass  # a process was killed; find out at which case, one at a time
    alone: ProcessPoolExecutor | None = None
    for case_id in left:
        alone = alone or ProcessPoolExecutor(1, mp_context=context)
        try:
            result = alone.submit(_measure, manifest, root, case_id).result()
        except BrokenProcessPool:
            alone = None
            result = CaseFacts(case_id, tuple(_killed(manifest, root, case_id))), {}
        yield result
    if alone is not None:
        alone.shutdown()


def _bounded(
    pool: ProcessPoolExecutor, manifest: Manifest, root: Path, case_ids: Sequence[str], most: int
) -> Iterator[tuple[CaseFacts, Stamps]]:
    """Submit at most so many cases at once, so that Ctrl-C does not wait for a long queue."""
    waiting = list(reversed(case_ids))
    running: set[Future[tuple[CaseFacts, Stamps]]] = set()
    while waiting or running:
        while waiting and len(running) < most:
            running.add(pool.submit(_measure, manifest, root, waiting.pop()))
        done, running = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            yield future.result()


def _killed(manifest: Manifest, root: Path, case_id: str) -> Iterator[FileFacts]:
    for role, paths in manifest.paths(root, case_id).items():
        for number, path in enumerate(paths):
            name = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
            yield FileFacts(role, number, name, problem=f"{path}: {KILLED}")


class _Cache:
    """Facts of earlier runs: one line of JSON per case, appended when the case is finished.

    A line that is cut short by a crash is left out when the file is read. Two runs at once only do the work twice.
    """

    def __init__(self, manifest: Manifest, root: Path) -> None:
        self._manifest, self._root = manifest, root
        folder = cache_folder()
        name = hashlib.sha256(f"{root.resolve()}\n{_meaning(manifest)}".encode()).hexdigest()[:24]
        self.file = None if folder is None else folder / "facts" / f"{name}.jsonl"
        self._kept: dict[str, dict[str, Any]] = {}
        self._stamps: dict[str, Stamps] = {}
        self._separator = ""
        if self.file is not None and self.file.is_file():
            text = self.file.read_text(encoding="utf-8", errors="replace")
            self._separator = "" if text.endswith("\n") else "\n"  # a crash may have cut the last line short
            for line in text.splitlines():
                with suppress(ValueError, KeyError, TypeError):
                    entry = json.loads(line)
                    self._kept[entry["facts"]["case"]] = entry

    def get(self, case_id: str) -> CaseFacts | None:
        """Return the kept facts of a case whose files have not changed."""
        entry = self._kept.get(case_id)
        if entry is None:
            return None
        try:
            if not self._is_unchanged(entry["files"], case_id):
                return None
            return CaseFacts.from_json(entry["facts"])
        except (ValueError, KeyError, TypeError, AttributeError, OSError, MedsegError):
            return None

    def add(self, facts: CaseFacts, stamps: Stamps) -> None:
        """Append the facts of a case, unless a file of it could not be read."""
        if self.file is None or not stamps or any(file.problem for file in facts.files):
            return  # a missing or damaged file may be replaced at any time, and is read quickly
        with suppress(OSError):  # a full or read-only cache only costs the next run time
            self._stamps[facts.case] = stamps
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as stream:
                stream.write(f"{self._separator}{_line(stamps, facts)}\n")
            self._separator = ""

    def compact(self, cases: Mapping[str, CaseFacts]) -> None:
        """Rewrite the file without the lines that are out of date, if there are more of them than of the others."""
        if self.file is None or not self.file.is_file():
            return
        with suppress(OSError, MedsegError):
            if self.file.read_bytes().count(b"\n") <= 2 * len(cases):
                return
            lines = [
                _line(self._stamps[case], facts)
                for case, facts in cases.items()
                if case in self._stamps and not any(file.problem for file in facts.files)
            ]
            with replacing(self.file) as temporary:
                temporary.write_text("".join(line + "\n" for line in lines), encoding="utf-8")

    def _is_unchanged(self, kept: Mapping[str, Sequence[Any]], case_id: str) -> bool:
        now = _stamp(self._manifest, self._root, case_id, with_digest=False)
        if {*now} != {*kept}:
            return False
        for path, (size, mtime, _) in now.items():
            if size != kept[path][0] or (mtime != kept[path][1] and file_sha256(path) != kept[path][2]):
                return False
        self._stamps[case_id] = {path: (size, mtime, str(kept[path][2])) for path, (size, mtime, _) in now.items()}
        return True


def _line(stamps: Stamps, facts: CaseFacts) -> str:
    return json.dumps({"files": stamps, "facts": facts.to_json()}, separators=(",", ":"))


def _meaning(manifest: Manifest) -> str:
    """Return what the facts depend on besides the files."""
    outside = sorted(value for value, label in manifest.label_of_value.items() if label in (0, manifest.ignore_label))
    return json.dumps([FACTS_VERSION, manifest.spatial_dims, outside])
