"""Keep one line per scan that is finished or was set aside, so that a second run does only what is missing."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medseg.cohort.inputs import CohortCase, file_system, is_url

NAME = "ledger.jsonl"
FINISHED = ("done", "suspicious")


class Ledger:
    """Rows of a cohort as JSON lines; the last row of a case counts.

    Each row has the keys `case`, `status` (`done`, `suspicious` or `failed`), `message`, `output`, `input`,
    `input_state`, `seconds` (per stage), `attempts`, `worker`, `weights_sha256`, `settings`, `flags`, `warnings`,
    `volumes_ml` and `finished`.

    Args:
        file: the file. A last line that a killed run has left incomplete is ignored.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: dict[str, dict[str, Any]] = {}
        if file.is_file():
            text = file.read_text(encoding="utf-8", errors="replace")
            for line in text.splitlines():
                row = _parse(line)
                if row is not None:
                    self.rows[str(row["case"])] = row
            if text and not text.endswith("\n"):
                with file.open("a", encoding="utf-8") as stream:
                    stream.write("\n")

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row; it is on the disk when this returns."""
        self.rows[str(row["case"])] = dict(row)
        with self.file.open("a", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(json.dumps(dict(row), ensure_ascii=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def finished(self, case: CohortCase, settings: str) -> dict[str, Any] | None:
        """Return the row of a case that an earlier run has finished with the same input, weights and settings.

        Args:
            case: the case. Its files are compared by size and time of change, without reading them.
            settings: digest of weights and settings.
        """
        row = self.rows.get(case.name)
        if row is None or row.get("status") not in FINISHED or row.get("settings") != settings:
            return None
        is_same = row.get("input") == list(case.paths) and row.get("input_state") == input_state(case)
        return row if is_same else None


def _parse(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "case" in row else None


def input_state(case: CohortCase) -> list[str]:
    """Return size and time of change of each image, or "" for one that is absent."""
    return [_state(path) for path in case.paths]


def _state(path: str) -> str:
    try:
        if is_url(path):
            system, inside = file_system(path)
            info = system.info(inside)
            changed = info.get("ETag") or info.get("mtime") or info.get("LastModified") or info.get("created") or ""
            return f"{info.get('size')}:{changed}"
        found = Path(path).stat()
        return f"{found.st_size}:{found.st_mtime_ns}"
    except OSError:
        return ""
