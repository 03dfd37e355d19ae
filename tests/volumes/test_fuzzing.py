"""Read thousands of mutated image files: the voxels of an independent reader, or one line; see `fuzzing.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from volumes import fuzzing

MAX_ADDED_KB = 1024**2
SLOW, QUICK = 300, 43  # files per format: 2,100 in all, and 301


def read_mutated(folder: Path, format: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Return one record per file; a process that dies leaves a record without an outcome."""
    done = subprocess.run(
        [sys.executable, fuzzing.__file__, str(folder), format, str(count), str(seed)],
        capture_output=True,
        text=True,
        check=False,
        timeout=550,
    )
    records: list[dict[str, Any]] = []
    for line in map(json.loads, done.stdout.splitlines()):
        if "file" in line:
            records.append(line | {"outcome": "process died", "line": done.stderr[-500:], "printed": ""})
        else:
            records[-1] |= line
    assert len(records) == count or records[-1]["outcome"] == "process died", done.stderr[-2000:]
    return records


def check(records: list[dict[str, Any]]) -> None:
    print(dict(Counter(record["outcome"] for record in records)))
    assert [record for record in records if record["outcome"] not in ("equal", "refused")] == []
    assert [record for record in records if record["printed"]] == []
    assert max(record["added_kb"] for record in records) < MAX_ADDED_KB
    assert max(record["seconds"] for record in records) < fuzzing.HANG_SECONDS
    outcomes = Counter(record["outcome"] for record in records)
    assert (
        min(outcomes["equal"], outcomes["refused"]) > len(records) // 20
    )  # mutations neither all fatal nor all harmless


@pytest.mark.parametrize("format", fuzzing.MAKERS)
def test_a_mutated_file_is_read_as_by_others_or_refused_in_one_line(tmp_path: Path, format: str) -> None:
    check(read_mutated(tmp_path, format, QUICK, seed=0))


@pytest.mark.slow
@pytest.mark.parametrize("format", fuzzing.MAKERS)
def test_many_mutated_files(tmp_path: Path, format: str) -> None:
    check(read_mutated(tmp_path, format, SLOW, seed=1))
