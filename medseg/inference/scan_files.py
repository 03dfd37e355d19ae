"""The scans to predict, as the list of dictionaries MONAI's data sets take."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from medseg.inference.cases import find_cases
from medseg.volumes import check_input


def scan_files(inputs: Iterable[str | Path], num_channels: int = 1) -> list[dict[str, Any]]:
    """One `{"image": files, "case": name}` a case that the inputs name (see `find_cases`).

    Raises:
        VolumeError: as `find_cases`, or an input is absent, empty or may not be read.
    """
    cases = find_cases(inputs, num_channels)
    for case in cases:
        for path in case.paths:
            check_input(path)
    return [{"image": [str(path) for path in case.paths], "case": case.name} for case in cases]
