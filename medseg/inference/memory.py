"""How much memory a prediction will take, before it starts."""

from __future__ import annotations

import ctypes
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from medseg.errors import MemoryLimitError, OptionError

UNITS = {"": 1, "B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KIB": 1024, "MIB": 1024**2, "GIB": 1024**3}
# Interpreter, torch and MONAI loaded, where the system does not say.
USUAL_RESIDENT = 700 * 1024**2
# The option's number in malloc.h.
M_MMAP_THRESHOLD = -3
# What allocators of two threads keep beyond what is asked of them, and libraries load at their first use: 10 to 35 MB
# were measured.
SLACK = 64 * 1024**2


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes needed, phase by phase.

    Args:
        resident: what the process holds already: libraries, weights, the scan as read.
        preprocess: at most while the scan is turned into the network's input.
        held: image, labels and unfinished slabs, for as long as tiles are predicted.
        blending: a batch of predictions and the block being restored.
        network: one forward pass over a batch of tiles, where it runs in this memory.
        is_pipelined: whether blending happens while the network runs, or after it.
    """

    resident: int
    preprocess: int
    held: int
    blending: int
    network: int
    is_pipelined: bool = True

    @property
    def merge(self) -> int:
        """Everything but the network, while tiles are predicted."""
        return self.held + self.blending

    @property
    def total(self) -> int:
        """The most that is held at once."""
        busy = self.blending + self.network if self.is_pipelined else max(self.blending, self.network)
        return self.resident + max(self.preprocess, self.held + busy) + SLACK


def parse_bytes(text: str | int) -> int:
    """Bytes of "4GB", "500 MiB" or a plain number.

    Raises:
        OptionError: it is none of these, or not positive.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?I?B?)\s*", str(text).upper())
    unit = match[2] if match else ""
    unit = unit if unit.endswith("B") or not unit else unit + "B"
    if not match or unit not in UNITS or float(match[1]) <= 0:
        raise OptionError(f"an amount of memory looks like 4GB or 500MiB, found {text!r}")
    return int(float(match[1]) * UNITS[unit])


def resident_bytes() -> int:
    """What this process holds in memory now; a usual value where the system does not tell."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        import resource

        return int(statm.read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return USUAL_RESIDENT


def return_freed_memory() -> None:
    """Have the C library give freed blocks of a megabyte or more back to the system, at once and from now on.

    glibc otherwise learns to keep blocks of up to 32 MB for itself, in pieces: some hundred megabytes that no estimate
    can foresee. Costs time for fresh pages; so it is done only where a limit is to be kept.
    """
    if sys.platform.startswith("linux"):
        library = ctypes.CDLL(None)
        if hasattr(library, "mallopt") and hasattr(library, "malloc_trim"):  # not in other C libraries than glibc
            library.mallopt(M_MMAP_THRESHOLD, 1 << 20)
            library.malloc_trim(0)


def require(estimate: MemoryEstimate, limit: int, name: str) -> None:
    """Raise MemoryLimitError where a prediction would not keep the limit."""
    if estimate.total > limit:
        raise MemoryLimitError(
            f"{name}: needs about {_mb(estimate.total)} of memory at the least ({_mb(estimate.resident)} for the "
            f"process and the scan, {_mb(estimate.network)} for the network, {_mb(estimate.merge)} for merging, "
            f"{_mb(estimate.preprocess)} while preprocessing), allowed are {_mb(limit)}; raise --max-ram"
        )


def _mb(size: int) -> str:
    return f"{size / 1000**2:,.0f} MB"
