"""The scans to predict, as the list of dictionaries MONAI's data sets take."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from medseg.inference.cases import find_cases


def scan_files(inputs: Iterable[str | Path], num_channels: int = 1) -> list[dict[str, Any]]:
    """One `{"image": files, "case": name}` a case that the inputs name (see `find_cases`)."""
    return [
        {"image": [str(path) for path in case.paths], "case": case.name} for case in find_cases(inputs, num_channels)
    ]
