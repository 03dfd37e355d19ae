"""The record behind a data manifest: one data set as plain, frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medseg.errors import ManifestError

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Channel:
    """One image channel: its name and its modality ("MR", "CT", "EM", …), from which planning derives normalisation."""

    name: str
    modality: str


@dataclass(frozen=True)
class Case:
    """One case; cases of the same patient must stay in the same fold."""

    id: str
    patient: str


@dataclass(frozen=True)
class FilePatterns:
    """Paths below the data set's root, with ``{case}`` where the case id goes; one image pattern a channel."""

    image: tuple[str, ...]
    label: str
    instances: str | None = None

    def paths(self, root: Path, case_id: str) -> dict[str, list[Path]]:
        """The files of a case by role: "image" (one a channel), "label" and, where declared, "instances"."""
        files = {"image": [root / pattern.format(case=case_id) for pattern in self.image]}
        files["label"] = [root / self.label.format(case=case_id)]
        if self.instances is not None:
            files["instances"] = [root / self.instances.format(case=case_id)]
        return files


@dataclass(frozen=True)
class Source:
    """Where the files come from: an archive to download, a generator to run, or a page that says how to get them."""

    url: str | None = None
    md5: str | None = None
    size_mb: float | None = None
    archive_folder: str | None = None
    archive_files: FilePatterns | None = None
    page: str | None = None
    generator: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """One data set.

    Attributes:
        labels: name → value in the label maps as training sees them; the background is 0.
        ignore_label: a value whose voxels count neither in the loss nor in the metrics.
        file_values: value stored in the label files → label, where the two differ; None where they agree.
        folds: number → case ids. Together they hold every case once, or there are none.
        test_fold: the fold that neither training nor validation may see.
        path: the file it was read from.
    """

    name: str
    description: str
    spatial_dims: int
    channels: tuple[Channel, ...]
    labels: Mapping[str, int]
    files: FilePatterns
    cases: tuple[Case, ...]
    folds: Mapping[int, tuple[str, ...]]
    test_fold: int | None
    ignore_label: int | None
    file_values: Mapping[int, int] | None
    source: Source
    licence: str
    citations: tuple[str, ...]
    path: Path | None = None

    @property
    def case_ids(self) -> tuple[str, ...]:
        """All case ids in the manifest's order."""
        return tuple(case.id for case in self.cases)

    @property
    def values_in_files(self) -> tuple[int, ...]:
        """The values that a label file may hold, sorted."""
        values = set(self.labels.values() if self.file_values is None else self.file_values)
        if self.ignore_label is not None and self.file_values is None:
            values.add(self.ignore_label)
        return tuple(sorted(values))

    def paths(self, root: Path | str, case_id: str) -> dict[str, list[Path]]:
        """The files of a case below ``root`` by role, whether they exist or not.

        Raises:
            ManifestError: no such case.
        """
        if case_id not in self.case_ids:
            raise ManifestError(f"{self.name}: has no case {case_id!r}; its {len(self.cases)} ids are in {self.path}")
        return self.files.paths(Path(root), case_id)
