"""Measure the memory and the cores that this machine, its container and this process have."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from pathlib import Path

# Interpreter, torch and MONAI, for systems that do not state what a process holds.
USUAL_RESIDENT = 700 * 1024**2


def resident_bytes() -> int:
    """Return how much memory this process holds now, or a usual value if the system does not tell."""
    statm = Path("/proc/self/statm")
    if not statm.is_file() and sys.platform != "darwin":
        return USUAL_RESIDENT
    import resource  # not on Windows

    if statm.is_file():
        return int(statm.read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def available_bytes() -> int:
    """Return how much memory this machine, or the container around this process, has left.

    Files that the system keeps in memory count as free. Where neither Linux's nor POSIX's numbers exist, the result is
    too large to limit anything.
    """
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        free = 1024 * int(re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)[1])  # type: ignore[index]
    except (OSError, TypeError):
        try:
            free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (ValueError, OSError, AttributeError):  # Windows has no sysconf
            return 2**62
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError, LookupError):  # no limit: there is no such file, or it holds "max"
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        statistics = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        used = int((group / "memory.current").read_text(encoding="ascii")) - int(statistics["inactive_file"])
        free = min(free, max(0, limit - used))
    return free


def physical_memory() -> int:
    """Return the memory of the machine in bytes, or 256 GiB if the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):  # Windows has no sysconf
        return 2**38


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    if sys.platform.startswith("linux"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
