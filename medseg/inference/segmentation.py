"""The result of a prediction."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medseg.errors import GeometryError, VolumeError
from medseg.volumes import Volume, replacing, stem_of, suffix_of, write_volume


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Labels on the scan's own grid.

    Args:
        array: integers in the axis order of the file the scan came from.
        labels: value of each label by name, background included.
        scan: the scan's first channel; its grid and header are what a saved file gets.
        provenance: how the segmentation was made, written beside every saved file.
        entropy: (i, j, k) uint8, 0 sure to 255 undecided; None unless asked for.
        probabilities: half-precision map by label; None unless asked for.
        intervals_ml: smallest and largest likely volume by label; None unless asked for.
    """

    array: np.ndarray
    labels: Mapping[str, int]
    scan: Volume
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)
    entropy: np.ndarray | None = field(default=None, repr=False)
    probabilities: Mapping[str, np.ndarray] | None = field(default=None, repr=False)
    intervals_ml: Mapping[str, Sequence[float]] | None = None

    def __post_init__(self) -> None:
        if tuple(self.array.shape) != self.scan.grid.shape:
            raise GeometryError(
                f"{self.scan.name}: segmentation of shape {self.array.shape} is not on the scan's grid "
                f"{self.scan.grid.shape}"
            )

    @property
    def affine(self) -> np.ndarray:
        """Voxel index to mm (RAS+), the scan's own."""
        return self.scan.grid.affine

    def volumes_ml(self) -> dict[str, float]:
        """Volume of each label but the background, in millilitres; 0 where a label is absent."""
        counts = np.bincount(self.array.ravel(), minlength=max(self.labels.values()) + 1)
        voxel_ml = self.scan.grid.voxel_volume_mm3 / 1000
        return {name: float(counts[value] * voxel_ml) for name, value in self.labels.items() if value != 0}

    def save(self, path: str | Path) -> Path:
        """Write the segmentation with the scan's geometry, and how it was made in a `.json` beside it.

        An entropy map goes to `<name>_entropy` and probabilities to `<name>_probability_<label>` beside it.

        Args:
            path: the suffix chooses the format.

        Raises:
            VolumeError: the file cannot be written, or the `.json` is there and not medseg's; nothing half-written is
                left.
        """
        path = Path(path)
        check_record_is_ours(path)
        write_volume(path, self.array, like=self.scan)
        maps = map_names(self.entropy is not None, self.probabilities or ())
        if self.entropy is not None:
            write_volume(map_path(path, "entropy"), self.entropy, like=self.scan)
        for label, probability in (self.probabilities or {}).items():
            write_volume(map_path(path, f"probability_{label}"), probability.astype(np.float32), like=self.scan)
        found: dict[str, Any] = {"maps": maps, "volumes_ml": self.volumes_ml()}
        if self.intervals_ml is not None:
            found["volume_intervals_ml"] = dict(self.intervals_ml)
        write_provenance(provenance_path(path), {**self.provenance, **found})
        return path

    def show(self, path: str | Path | None = None) -> Any:
        """Draw three planes through the middle of the segmentation; return the figure, or save it to `path`."""
        from medseg.figures import three_planes

        return three_planes(self.scan.array, self.array, self.affine, labels=self.labels, path=path)

    def _repr_png_(self) -> bytes | None:
        """The picture a notebook shows; None where matplotlib is not installed."""
        from medseg.figures import three_planes_png

        try:
            return three_planes_png(self.scan.array, self.array, self.affine, labels=self.labels)
        except ImportError:
            return None


def map_names(has_entropy: bool, probability_labels: Iterable[str]) -> list[str]:
    """What the maps beside a segmentation are called."""
    return ["entropy"] * has_entropy + [f"probability_{label}" for label in probability_labels]


def map_path(path: Path, what: str) -> Path:
    """Where a map of that name lies beside a segmentation."""
    return path.with_name(f"{stem_of(path)}_{what}{suffix_of(path)}")


def provenance_path(path: str | Path) -> Path:
    """Where the record of a saved segmentation lies: beside it, with .json for its image suffix."""
    return Path(path).with_name(stem_of(path) + ".json")


def check_record_is_ours(path: Path) -> None:
    """Refuse to replace a `.json` that something else wrote, such as a BIDS sidecar.

    Raises:
        VolumeError: one lies where the record of the segmentation at `path` would go.
    """
    beside = provenance_path(path)
    if not beside.is_file():
        return
    try:
        found = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not (isinstance(found, dict) and found.keys() >= {"notice", "plan_sha256"}):
        raise VolumeError(f"{beside}: exists and was not written by medseg; choose another output folder")


def write_provenance(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as JSON, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
