"""Which structures are evaluated, and what the values in the files mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medseg.datasets import Manifest, read_manifest
from medseg.errors import EvaluationError
from medseg.evaluation.confusion import label_regions, present_values

Labels = Mapping[str, int | Sequence[int]]


@dataclass(frozen=True)
class Structures:
    """The structures to evaluate.

    Args:
        regions: name → label values, background left out; None takes every value above 0 that occurs.
        known: values that may occur, background included; None allows any.
        patients: case id → patient.
        file_values: value in a reference file → label, where the two differ.
        ignored: label whose voxels in the reference do not count; None has none.
    """

    regions: dict[str, tuple[int, ...]] | None = None
    known: frozenset[int] | None = None
    patients: Mapping[str, str] = field(default_factory=dict)
    file_values: Mapping[int, int] | None = None
    ignored: int | None = None

    def translated(self, label_map: np.ndarray, role: str) -> tuple[np.ndarray, list[int]]:
        """A label map in the structures' values, and the values in it that are unknown.

        References may hold the manifest's file values (as 255 for cells); predictions are expected in label values,
        and either is accepted for the other when that is what all its values mean.
        """
        if self.known is None:
            return label_map, []
        values = {int(value) for value in present_values(label_map.ravel(order="K"))}
        as_labels, as_file = values <= self.known, self.file_values is not None and values <= set(self.file_values)
        if self.file_values is not None and as_file and (role == "reference" or not as_labels):
            return _mapped(label_map, self.file_values), []
        return label_map, sorted(values - self.known)

    def without_ignored(self, prediction: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Both label maps with background wherever the reference says "ignore"."""
        if self.ignored is None:
            return prediction, reference
        ignored = reference == self.ignored
        if not ignored.any():
            return prediction, reference
        return np.where(ignored, 0, prediction).astype(prediction.dtype), np.where(ignored, 0, reference).astype(
            reference.dtype
        )


def structures_of(labels: Labels | Manifest | str | Path | None) -> Structures:
    """The structures of a mapping name → value or values, or of a manifest given as its name, path or object.

    Raises:
        EvaluationError: no structure above background.
        ManifestError: the manifest cannot be read.
    """
    if labels is None:
        return Structures()
    if isinstance(labels, str | Path):
        labels = read_manifest(labels)
    if not isinstance(labels, Manifest):
        regions = _foreground(labels)
        return Structures(regions, _known(regions))
    regions = _foreground(labels.labels)
    ignored = labels.ignore_label
    known = _known(regions) | ({ignored} if ignored is not None else set())
    patients = {case.id: case.patient for case in labels.cases}
    return Structures(regions, known, patients, labels.file_values, ignored)


def manifest_references(manifest: Manifest, folder: Path) -> dict[str, Path]:
    """Case id → label map for a folder laid out as the manifest says, below its root or all in one folder; else {}."""
    ids = manifest.case_ids
    below_root = {case: folder / manifest.files.label.format(case=case) for case in ids}
    in_one_folder = {case: folder / path.name for case, path in below_root.items()}
    for paths in (below_root, in_one_folder):
        found = {case: path for case, path in paths.items() if path.exists()}
        if found and len(set(found.values())) == len(found):
            return found
    return {}


def _known(regions: Mapping[str, tuple[int, ...]]) -> frozenset[int]:
    return frozenset({0}.union(*regions.values()))


def _foreground(labels: Labels) -> dict[str, tuple[int, ...]]:
    regions = {name: values for name, values in label_regions(labels).items() if values != (0,)}
    if not regions:
        raise EvaluationError(f"no label above background 0 to evaluate, found {dict(labels)}")
    return regions


def _mapped(label_map: np.ndarray, file_values: Mapping[int, int]) -> np.ndarray:
    result = np.zeros_like(label_map, dtype=np.int32)
    for stored, label in file_values.items():
        result[label_map == stored] = label
    return result
