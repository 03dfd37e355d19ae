"""Segment scans in a process of the cluster that loads the model once."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from time import perf_counter
from typing import Any

from medseg.bundle import load
from medseg.cohort.inputs import CohortCase, file_system
from medseg.cohort.ledger import input_state
from medseg.cohort.output_folder import OutputFolder
from medseg.errors import MedsegError, reason_of_failure
from medseg.inference.cases import Case
from medseg.inference.predict_files import CaseResult, output_suffix, predict_case
from medseg.inference.predictor import Predictor
from medseg.inference.scan import Scan
from medseg.inference.segmentation import provenance_path, write_record
from medseg.versions import installed_version
from medseg.volumes import Volume, read_grid


class Worker:
    """Segment scans of a cohort; Ray runs it as an actor.

    A second thread may read the next scan and write the previous one while the network runs.

    Args:
        bundle: folder of the bundle.
        options: arguments of `medseg.load`.
        out_dir: output folder or URL.
        run: name of the run that has reserved it.
        format: as of `medseg.inference.predict_files`.
        overwrite: recompute cases that are finished.
        threads: of the network.
    """

    def __init__(
        self,
        bundle: str,
        options: Mapping[str, Any],
        out_dir: str,
        run: str,
        format: str,
        overwrite: bool,
        threads: int,
    ) -> None:
        self.bundle = bundle
        self.options = dict(options)
        self.out_dir = out_dir
        self.run = run
        self.format = format
        self.overwrite = overwrite
        self.threads = threads
        self.network = threading.Lock()

    @property
    def name(self) -> str:
        """Host and process."""
        return f"{socket.gethostname()}:{os.getpid()}"

    def load(self, largest: Sequence[CohortCase]) -> dict[str, Any]:
        """Load the model and check what this machine sees.

        Args:
            largest: cases whose memory is estimated.

        Returns:
            `name`, `settings` (weights and options), `weights_sha256`, `version`, `memory_bytes` (0 if unknown), or
            `error` in one line.
        """
        try:
            self.out = OutputFolder(self.out_dir)
            if not self.out.is_seen(self.run):
                raise MedsegError(
                    f"{self.out_dir}: not the output folder of this run on {socket.gethostname()}; mount the shared "
                    "folder there under the same path, or give a URL"
                )
            self._use_threads()
            self.predictor: Predictor = load(self.bundle, **self.options)
        except Exception as error:
            return {"name": self.name, "error": f"worker {self.name}: {reason_of_failure(error)}"}
        identity = {**self.predictor.identity, "maps": self.predictor.map_names, "format": self.format}
        return {
            "name": self.name,
            "settings": hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest(),
            "weights_sha256": list(self.predictor.weights_sha256),
            "version": installed_version("medseg"),
            "num_channels": self.predictor.plan.in_channels,
            "memory_bytes": max((self._memory_of(case) for case in largest), default=0),
        }

    def _use_threads(self) -> None:
        """Limit the threads of torch; OpenMP keeps the limit per calling thread, and Ray calls from several."""
        import torch

        torch.set_num_threads(self.threads)

    def _memory_of(self, case: CohortCase) -> int:
        """Estimate the memory of this process when it segments a case; 0 if it cannot be told."""
        if case.is_remote:
            return 0
        try:
            import numpy as np

            grid = read_grid(case.paths[0])
            empty = np.broadcast_to(np.zeros((), np.float32), grid.shape)
            scan = Scan((Volume(empty, grid, Path(case.paths[0])),) * self.predictor.plan.in_channels)
            estimate = self.predictor.workload().estimate(scan, self.predictor.window).total
            # The scan that is read, and the next one beside it.
            return estimate + 2 * empty.itemsize * prod(grid.shape) * self.predictor.plan.in_channels
        except Exception:
            return 0

    def segment(self, case: CohortCase) -> dict[str, Any]:
        """Segment one case and return its row of the ledger, without `attempts`; whatever goes wrong is in the row."""
        started = perf_counter()
        self._use_threads()
        state = input_state(case)
        try:
            result, record, seconds = self._segment(case)
        except Exception as error:
            message = reason_of_failure(error)
            result, record = CaseResult(case.name, "failed", message=message, error=type(error).__name__), {}
            seconds = {}
        flags = [str(line) for line in record.get("suspicions", result.suspicions)]
        status = ("suspicious" if flags else "done") if result.status == "skipped" else result.status
        return {
            "case": case.name,
            "status": status,
            "message": result.message,
            "error": result.error,
            "output": result.output,
            "input": list(case.paths),
            "input_state": state,
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
            "total_seconds": round(perf_counter() - started, 3),
            "worker": self.name,
            "weights_sha256": record.get("weights_sha256", []),
            "flags": flags,
            "warnings": result.warnings,
            "volumes_ml": result.volumes_ml,
            "intervals_ml": {name: list(ends) for name, ends in result.intervals_ml.items()},
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def _segment(self, case: CohortCase) -> tuple[CaseResult, dict[str, Any], dict[str, float]]:
        """Return the result, the record beside it, and the seconds of each stage."""
        if not (case.is_remote or self.out.is_remote):
            return self._segment_local(case.to_case(), Path(self.out_dir))
        with tempfile.TemporaryDirectory(prefix="medseg-") as folder:
            copied, scratch = Path(folder) / "input", Path(folder) / "output"
            copied.mkdir()
            begun = perf_counter()
            local = Case(case.name, tuple(_copied(path, copied, number) for number, path in enumerate(case.paths)))
            download = perf_counter() - begun
            result, record, seconds = self._segment_local(local, scratch if self.out.is_remote else Path(self.out_dir))
            if result.status == "failed":
                return replace(result, message=result.message.replace(str(folder), self.out.place)), record, seconds
            target = Path(result.output)
            record = {**record, "input": list(case.paths)}  # not the copies
            write_record(record, provenance_path(target))
            seconds = {"download": download, **seconds}
            if self.out.is_remote:
                begun = perf_counter()
                self.out.upload(scratch, provenance_path(target).name)
                result = replace(result, output=f"{self.out.place.rstrip('/')}/{target.name}")
                seconds["upload"] = perf_counter() - begun
            return result, record, seconds

    def _segment_local(self, case: Case, folder: Path) -> tuple[CaseResult, dict[str, Any], dict[str, float]]:
        target = folder / (case.name + output_suffix(case, self.format))
        result = predict_case(self.predictor, case, target, overwrite=self.overwrite, exclusive=self.network)
        if result.status == "failed":
            return result, {}, {}
        record = json.loads(provenance_path(target).read_text(encoding="utf-8"))
        if result.status == "skipped":
            return result, record, {}
        seconds = {"write": result.write_seconds, **{key: float(value) for key, value in record["seconds"].items()}}
        return result, record, seconds


def _copied(path: str, folder: Path, number: int) -> Path:
    """Return a local copy of a remote image, or the path itself."""
    if "://" not in path:
        return Path(path)
    system, inside = file_system(path)
    target = folder / str(number) / inside.rpartition("/")[2]
    target.parent.mkdir()
    system.get_file(inside, str(target))
    return target
