"""The record behind a dataset manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from medseg.errors import ManifestError, did_you_mean


@dataclass(frozen=True)
class Channel:
    """One image channel: its name and its modality ("MR", "CT", "EM", …), which decides the normalisation."""

    name: str
    modality: str


@dataclass(frozen=True)
class Split:
    """Ids of the training and validation cases of one fold, and of test cases, listed one by one."""

    training: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...] = ()


@dataclass(frozen=True)
class FilePatterns:
    """Paths below the dataset's folder, in which ``{case}`` stands for the case id.

    Attributes:
        image: one pattern per channel, or one pattern if every file holds all channels.
        label: pattern of the label maps; empty for images without any, such as those of a test set.
        instances: pattern of the instance maps, if the dataset has any.
    """

    image: tuple[str, ...]
    label: str
    instances: str | None = None

    def paths(self, root: Path, case_id: str) -> dict[str, list[Path]]:
        """Return the files of a case by role: "image", one per channel, and "label" and "instances" if declared."""
        files = {"image": self.image}
        if self.label:
            files["label"] = (self.label,)
        if self.instances is not None:
            files["instances"] = (self.instances,)
        return {
            role: [root / pattern.replace("{case}", case_id) for pattern in patterns]
            for role, patterns in files.items()
        }


@dataclass(frozen=True)
class Case:
    """One case. All cases of a patient must be in the same fold.

    Attributes:
        id: name of the case.
        patient: name of the patient, who may have several cases.
        files: the files of this case, if the manifest's patterns do not describe them.
        labels: names of the labels that were annotated in this case; None for all. Other structures are part of its
            background.
    """

    id: str
    patient: str
    files: FilePatterns | None = None
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Source:
    """Origin of the files: an archive to download, a generator to run, or a web page that explains how to get them."""

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
    """Description of one dataset.

    Attributes:
        labels: value of each label in training, by name; the background is 0.
        files: patterns of the files of every case; None if each case lists its own.
        ignore_label: value of voxels that count neither in the loss nor in the metrics.
        file_values: label value of each value in the label files; None if the files hold the label values themselves.
            The value of a colour (see ``has_colored_labels``) is 65536·red + 256·green + blue.
        folds: validation cases of each fold. The folds contain every case exactly once, or there are none.
        test_fold: number of the fold that is used neither for training nor for validation.
        fold_sets: other folds of the same dataset by name, which may leave cases out; `with_folds` chooses one.
        splits: training and validation cases of each fold, if the dataset lists both; `folds` is empty then.
        path: the file that the manifest was read from.
        regions: structures that overlap, as the values of the labels they consist of, by name. If there are any, the
            network learns them (sigmoid) instead of the labels.
        regions_class_order: the label value that a predicted region gets in a label map, one per region, in the order
            of ``regions``. A later region is drawn over an earlier one, as in nnU-Net.
        has_colored_labels: the label files are pictures in which each colour is a label.
        folder: the folder that the files lie in, if the manifest was made from it.
        present_values: values that occur in the label file of each case by id, if all of them were read.
    """

    name: str
    description: str
    spatial_dims: int
    channels: tuple[Channel, ...]
    labels: Mapping[str, int]
    files: FilePatterns | None
    cases: tuple[Case, ...]
    folds: Mapping[int, tuple[str, ...]]
    test_fold: int | None
    ignore_label: int | None
    file_values: Mapping[int, int] | None
    source: Source
    licence: str
    citations: tuple[str, ...]
    path: Path | None = None
    splits: Mapping[int, Split] = field(default_factory=dict)
    fold_sets: Mapping[str, Mapping[int, tuple[str, ...]]] = field(default_factory=dict)
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    regions_class_order: tuple[int, ...] = ()
    has_colored_labels: bool = False
    folder: Path | None = None
    present_values: Mapping[str, frozenset[int]] | None = field(default=None, compare=False, repr=False)

    @cached_property
    def _case_by_id(self) -> dict[str, Case]:
        return {case.id: case for case in self.cases}

    @property
    def structures(self) -> dict[str, tuple[int, ...]]:
        """Label values of each structure to segment, by name: the regions, or every label but the background."""
        if self.regions:
            return dict(self.regions)
        return {name: (value,) for name, value in self.labels.items() if value != 0}

    def annotated_structures(self, case: Case) -> list[str]:
        """Return the structures of which a case shows every voxel: those whose labels were all annotated."""
        if case.labels is None:
            return list(self.structures)
        values = {self.labels[name] for name in case.labels}
        return [name for name, of_structure in self.structures.items() if values.issuperset(of_structure)]

    @property
    def has_channels_in_one_file(self) -> bool:
        """Return whether one image file holds all channels of a case."""
        patterns = self.files or self.cases[0].files
        return patterns is not None and len(patterns.image) < len(self.channels)

    @property
    def case_ids(self) -> tuple[str, ...]:
        """All case ids, in the order of the manifest."""
        return tuple(case.id for case in self.cases)

    @property
    def channel_names(self) -> tuple[str, ...]:
        """One distinct name per channel: repeated names get a number, as in "rgb", "rgb 2", "rgb 3"."""
        names = [channel.name for channel in self.channels]
        counts = [names[: number + 1].count(name) for number, name in enumerate(names)]
        return tuple(name if count == 1 else f"{name} {count}" for name, count in zip(names, counts, strict=True))

    @property
    def values_in_files(self) -> tuple[int, ...]:
        """Values that a label file may hold, sorted."""
        return tuple(sorted(self.label_of_value))

    @property
    def label_of_value(self) -> dict[int, int]:
        """The label value, or the ignore label, of each value that a label file may hold."""
        if self.file_values is not None:
            return dict(self.file_values)
        ignored = () if self.ignore_label is None else (self.ignore_label,)
        return {value: value for value in (*self.labels.values(), *ignored)}

    def with_folds(self, name: str) -> Manifest:
        """Return the dataset with the folds of one of its fold sets; cases that the set leaves out are not in it.

        Raises:
            ManifestError: the manifest has no fold set of that name.
        """
        if name not in self.fold_sets:
            hint = did_you_mean(name, self.fold_sets) or f"; fold sets are {', '.join(self.fold_sets) or 'none'}"
            raise ManifestError(f"{self.name}: no fold set {name!r}{hint}")
        folds = self.fold_sets[name]
        kept = {case_id for ids in folds.values() for case_id in ids}
        return replace(self, cases=tuple(case for case in self.cases if case.id in kept), folds=folds)

    def paths(self, root: Path | str, case_id: str) -> dict[str, list[Path]]:
        """Return the files of a case below ``root`` by role, whether they exist or not.

        Raises:
            ManifestError: the manifest has no such case.
        """
        if case_id not in self._case_by_id:
            raise ManifestError(f"{self.name}: no case {case_id!r}; the {len(self.cases)} case ids are in {self.path}")
        patterns = self._case_by_id[case_id].files or self.files
        assert patterns is not None  # a manifest without patterns lists the files of every case
        return patterns.paths(Path(root), case_id)


def shortened(names: Sequence[str]) -> str:
    """Return the first five names and the number of the others, for an error message."""
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
