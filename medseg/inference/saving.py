"""The files of one segmentation: labels, maps and the record of how they were made."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medseg.errors import VolumeError
from medseg.plan import Plan
from medseg.versions import software_versions
from medseg.volumes import DICOM_SEG_SUFFIX, replacing, staged, stem_of, suffix_of, write_volume

if TYPE_CHECKING:
    from medseg.inference.segmentation import Segmentation


# Maps hold numbers that a DICOM Segmentation cannot, and probabilities some that PNG cannot.
MAP_SUFFIX_OF_DICOM_SEG = ".nii.gz"
PROBABILITY_SUFFIX_OF_PNG = ".tif"
# What Windows takes in no file name, and a slash.
NOT_IN_NAMES = re.compile(r'[\\/:*?"<>|\x00-\x1f]')


def map_names(has_entropy: bool, probability_labels: Iterable[str]) -> list[str]:
    """What the maps beside a segmentation are called."""
    return ["entropy"] * has_entropy + [f"probability_{label}" for label in probability_labels]


def map_path(path: Path, what: str) -> Path:
    """Where a map of that name lies beside a segmentation."""
    suffix = MAP_SUFFIX_OF_DICOM_SEG if is_dicom_seg(path) else suffix_of(path)
    if suffix == ".png" and what.startswith("probability_"):
        suffix = PROBABILITY_SUFFIX_OF_PNG
    return path.with_name(f"{_stem(path)}_{NOT_IN_NAMES.sub('_', what)}{suffix}")


def provenance_path(path: str | Path) -> Path:
    """Where the record of a saved segmentation lies: beside it, with .json for its image suffix."""
    return Path(path).with_name(_stem(Path(path)) + ".json")


def is_dicom_seg(path: Path) -> bool:
    """Whether a segmentation of that name is a DICOM Segmentation."""
    return path.suffix.lower() == DICOM_SEG_SUFFIX


def has_our_record(path: Path) -> bool:
    """Whether medseg's record lies beside the segmentation at `path`.

    Raises:
        VolumeError: a `.json` is there that something else wrote, such as a BIDS sidecar, and must not be replaced.
    """
    beside = provenance_path(path)
    if not beside.is_file():
        return False
    try:
        found = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not (isinstance(found, dict) and found.keys() >= {"notice", "plan_sha256"}):
        raise VolumeError(f"{beside}: exists and was not written by medseg; choose another output folder")
    return True


def save_segmentation(segmentation: Segmentation, path: Path) -> dict[str, Any]:
    """Write all files of a segmentation; they take their places together, once each of them is whole.

    Maps of the segmentation that was there before are removed where they are not replaced: they belong to its labels.

    Args:
        segmentation: what to write.
        path: of the labels; its suffix chooses the format.

    Returns:
        The record beside them.

    Raises:
        VolumeError: a file cannot be written, or the `.json` is there and not medseg's; nothing is changed then.
    """
    replaced = _maps_beside(path) if has_our_record(path) else []
    maps = map_names(segmentation.entropy is not None, segmentation.probabilities or ())
    record = {
        **segmentation.provenance, "output": path.name, "maps": maps, "volumes_ml": segmentation.volumes_ml(),
    }  # fmt: skip
    if segmentation.intervals_ml is not None:
        record["volume_intervals_ml"] = dict(segmentation.intervals_ml)
    with staged(path) as target:
        record["warnings"] = [*record.get("warnings", ()), *_write_labels(segmentation, target)]
        if segmentation.entropy is not None:
            write_volume(map_path(target, "entropy"), segmentation.entropy, like=segmentation.scan)
        for label, probability in (segmentation.probabilities or {}).items():
            file = map_path(target, f"probability_{label}")
            write_volume(file, probability.astype(np.float32), like=segmentation.scan)
        with replacing(provenance_path(target)) as temporary:
            # A file name that is no Unicode holds what UTF-8 cannot: JSON has an escape for it, which looks the same.
            text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    for stale in {map_path(path, name) for name in replaced} - {map_path(path, name) for name in maps}:
        with suppress(OSError):
            stale.unlink(missing_ok=True)
    return record


def _maps_beside(path: Path) -> list[str]:
    """Names of the maps that medseg wrote beside the segmentation at `path`, as its record says."""
    made = json.loads(provenance_path(path).read_text(encoding="utf-8"))
    names = made.get("maps") if made.get("output") == path.name else None
    return [str(name) for name in names] if isinstance(names, list) else []


def _write_labels(segmentation: Segmentation, path: Path) -> list[str]:
    """Write the labels; what the user should know about the file."""
    if not is_dicom_seg(path):
        write_volume(path, segmentation.array, like=segmentation.scan)
        return []
    from medseg.volumes.dicom.seg import SegmentationAlgorithm, write_dicom_seg

    made = segmentation.provenance
    algorithm = SegmentationAlgorithm(
        name=str(made.get("bundle") or made.get("plan") or "medseg"),
        version=str(made.get("versions", {}).get("medseg", "unknown")),
        serial_number="+".join(made.get("weights_sha256", ())) or "unknown",
    )
    return write_dicom_seg(path, segmentation.array, segmentation.scan, segmentation.labels, algorithm)


def _stem(path: Path) -> str:
    return path.stem if is_dicom_seg(path) else stem_of(path)


NOTICE = "Research use only. Not a medical device; not for diagnosis or treatment."


@dataclass(frozen=True)
class ModelFacts:
    """Where a network's weights came from.

    Args:
        bundle: name or folder of the bundle.
        weights_sha256: digest of each weights file, several for an ensemble.
    """

    bundle: str = ""
    weights_sha256: tuple[str, ...] = ()


def record(
    plan: Plan, facts: ModelFacts, settings: Mapping[str, Any], sources: Sequence[str],
    input_sha256: Sequence[str | None], seconds: Mapping[str, float], warnings: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """How one segmentation was made, as plain data."""
    return {
        "schema_version": 1,
        "notice": NOTICE,
        "bundle": facts.bundle or plan.name,
        "weights_sha256": list(facts.weights_sha256),
        "plan": plan.name,
        "plan_sha256": plan.digest,
        "input": list(sources),
        "input_sha256": list(input_sha256),
        "labels": dict(plan.labels),
        **settings,
        "versions": software_versions(),
        "machine": platform.machine(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "warnings": list(warnings),
    }
