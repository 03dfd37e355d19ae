"""What became of one case, and whether an earlier run has finished it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from medseg.errors import MedsegError
from medseg.inference.input_digest import input_digests
from medseg.inference.saving import map_path, provenance_path


@dataclass(frozen=True)
class CaseResult:
    """What became of one case.

    Args:
        case: its name.
        status: "done", "skipped" (finished by an earlier run) or "failed".
        output: the segmentation's file.
        message: for a failure, one line that says why.
        seconds: time it took to read, predict and write.
        volumes_ml: volume of each label.
        warnings: what the user should know about this case.
    """

    case: str
    status: Literal["done", "skipped", "failed"]
    output: str = ""
    message: str = ""
    seconds: float = 0.0
    volumes_ml: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data, for `--json`."""
        return asdict(self)


def finished_record(
    target: Path, inputs: Sequence[Path], identity: Mapping[str, Any], maps: Sequence[str] = ()
) -> dict[str, Any] | None:
    """The record of an output that an earlier run has finished; None where it must be made.

    Args:
        target: the segmentation's file.
        inputs: must hold what they held then.
        identity: what the record must say of weights and settings.
        maps: names of the maps that must lie beside it.
    """
    try:
        made = json.loads(provenance_path(target).read_text(encoding="utf-8"))
        if not isinstance(made, dict) or any(made.get(key) != value for key, value in identity.items()):
            return None
        # the record lies beside files of every format of that name
        if made.get("output") != target.name or not set(maps) <= set(made.get("maps", ())):
            return None
        if not all(path.is_file() for path in (target, *(map_path(target, name) for name in maps))):
            return None
        return made if made.get("input_sha256") == input_digests(inputs) else None  # last: it reads the inputs
    except (OSError, ValueError):
        return None


def failure_line(error: Exception) -> str | None:
    """One line about an error that concerns this scan alone; None for a defect, which must not be swallowed."""
    if isinstance(error, MedsegError | OSError):
        return " ".join(str(error).split()) or type(error).__name__
    if is_out_of_memory(error):
        return "out of memory; close other programs, or set --max-ram to learn how much is needed"
    return None


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed: Python's, a device's, or torch's on the CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
