"""The volumes of many cases as one table: what `medseg predict --volumes` writes."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medseg.volumes import replacing

if TYPE_CHECKING:
    from medseg.inference import CaseResult


def write_volumes(results: Sequence[CaseResult], label_names: Sequence[str], path: Path) -> None:
    """Write a row a case: `case`, `status`, a column `<label>_ml` a structure (empty where the case failed), `output`.

    Args:
        results: what became of the cases.
        label_names: the structures, in the order of the columns; none for pictures, which have no volume.
        path: the CSV file, replaced whole.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "status", *(f"{name}_ml" for name in label_names), "output"])
    for result in results:
        volumes = [result.volumes_ml.get(name, "") for name in label_names]
        writer.writerow([result.case, result.status, *volumes, result.output])
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
