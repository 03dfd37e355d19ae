"""Where compiled models are kept between runs."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """`MEDSEG_CACHE_DIR`, or medseg's folder among the caches of this user as the system keeps them.

    It may not exist or not be writable: what is kept there saves time and nothing else.
    """
    if chosen := os.environ.get("MEDSEG_CACHE_DIR"):
        return Path(chosen)
    try:
        home = Path.home()
    except RuntimeError:  # a user without a home, as in some containers
        return Path(tempfile.gettempdir()) / f"medseg-{os.getpid()}"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "medseg" / "cache"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "medseg"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "medseg"


def is_writable(folder: Path) -> bool:
    """Whether files can be made there; the folder is created."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
