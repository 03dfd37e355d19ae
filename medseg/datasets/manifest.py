"""The record behind a dataset manifest, and the rules that its content must follow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from medseg.errors import ManifestError, did_you_mean

SCHEMA_VERSION = 1
_REQUIRED = ("schema_version", "name", "spatial_dims", "channels", "labels", "files", "cases")
_OPTIONAL = (
    "description", "ignore_label", "file_values", "folds", "patients_cross_folds", "fold_sets", "splits", "test_fold",
    "source", "licence", "citations",
)  # fmt: skip
_SOURCE_KEYS = ("url", "md5", "size_mb", "archive", "page", "generator", "arguments")


@dataclass(frozen=True)
class Channel:
    """One image channel: its name and its modality ("MR", "CT", "EM", …), which decides the normalisation."""

    name: str
    modality: str


@dataclass(frozen=True)
class Case:
    """One case. All cases of a patient must be in the same fold."""

    id: str
    patient: str


@dataclass(frozen=True)
class Split:
    """Ids of the training and validation cases of one fold, listed one by one."""

    training: tuple[str, ...]
    validation: tuple[str, ...]


@dataclass(frozen=True)
class FilePatterns:
    """Paths below the dataset's folder, in which ``{case}`` stands for the case id.

    Attributes:
        image: one pattern per channel.
        label: pattern of the label maps.
        instances: pattern of the instance maps, if the dataset has any.
    """

    image: tuple[str, ...]
    label: str
    instances: str | None = None

    def paths(self, root: Path, case_id: str) -> dict[str, list[Path]]:
        """Return the files of a case by role: "image" (one per channel), "label" and, if declared, "instances"."""
        files = {"image": [root / pattern.format(case=case_id) for pattern in self.image]}
        files["label"] = [root / self.label.format(case=case_id)]
        if self.instances is not None:
            files["instances"] = [root / self.instances.format(case=case_id)]
        return files


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
        ignore_label: value of voxels that count neither in the loss nor in the metrics.
        file_values: label value of each value in the label files; None if the files hold the label values themselves.
        folds: validation cases of each fold. The folds contain every case exactly once, or there are none.
        test_fold: number of the fold that is used neither for training nor for validation.
        fold_sets: other folds of the same dataset by name, which may leave cases out; `with_folds` chooses one.
        splits: training and validation cases of each fold, if the dataset lists both; `folds` is empty then.
        path: the file that the manifest was read from.
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
    splits: Mapping[int, Split] = field(default_factory=dict)
    fold_sets: Mapping[str, Mapping[int, tuple[str, ...]]] = field(default_factory=dict)

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
        if case_id not in self.case_ids:
            raise ManifestError(f"{self.name}: no case {case_id!r}; the {len(self.cases)} case ids are in {self.path}")
        return self.files.paths(Path(root), case_id)


def shortened(names: Sequence[str]) -> str:
    """Return the first five names and the number of the others, for an error message."""
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def parse_manifest(content: Any, path: Path) -> Manifest:
    """Check the content of a manifest and build the record.

    Args:
        content: the parsed YAML or JSON.
        path: the file it came from, for error messages.

    Raises:
        ManifestError: the content breaks a rule. The message names the first one.
    """
    try:
        return _manifest(content, path)
    except ManifestError as error:
        raise ManifestError(f"{path}: {error}") from None


def _manifest(content: Any, path: Path) -> Manifest:
    if not isinstance(content, dict):
        raise ManifestError(f"a manifest must be a mapping of keys; found {type(content).__name__}")
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ManifestError(f"unknown schema_version; found {version!r}, expected {SCHEMA_VERSION}")
    _check_keys(content, _REQUIRED, _OPTIONAL, "the manifest")
    channels = tuple(_channel(item, number) for number, item in enumerate(_list(content, "channels")))
    labels = _labels(content["labels"])
    ignore_label = _optional_int(content, "ignore_label")
    if ignore_label in labels.values():
        raise ManifestError(f"ignore_label {ignore_label} is also a value of labels; choose another value")
    cases = tuple(_case(item) for item in _list(content, "cases"))
    _check_unique((case.id for case in cases), "cases: id")
    may_cross = content.get("patients_cross_folds", False)
    if not isinstance(may_cross, bool):
        raise ManifestError(f"patients_cross_folds must be true or false; found {may_cross!r}")
    folds, splits = _folds(content.get("folds") or {}, cases, may_cross), _splits(content.get("splits") or {}, cases)
    _check_every_case_in(folds, cases)
    if folds and splits:
        raise ManifestError("folds and splits are both given; keep one of them")
    test_fold = _optional_int(content, "test_fold")
    if test_fold is not None and test_fold not in folds:
        raise ManifestError(f"test_fold {test_fold} does not exist; found folds {sorted(folds)}")
    fold_sets = _fold_sets(content.get("fold_sets") or {}, cases, test_fold)
    return Manifest(
        name=_text(content, "name"),
        description=" ".join(str(content.get("description") or "").split()),
        spatial_dims=_spatial_dims(content["spatial_dims"]),
        channels=channels,
        labels=labels,
        files=_patterns(content["files"], len(channels), "files"),
        cases=cases,
        folds=folds,
        test_fold=test_fold,
        ignore_label=ignore_label,
        file_values=_file_values(content.get("file_values"), labels, ignore_label),
        source=_source(content.get("source") or {}, len(channels)),
        licence=str(content.get("licence") or ""),
        citations=tuple(str(item) for item in content.get("citations") or ()),
        path=path,
        splits=splits,
        fold_sets=fold_sets,
    )


def _spatial_dims(value: Any) -> int:
    if value not in (2, 3):
        raise ManifestError(f"spatial_dims must be 2 or 3; found {value!r}")
    return int(value)


def _channel(item: Any, number: int) -> Channel:
    where = f"channels[{number}]"
    _check_keys(item, ("name", "modality"), (), where)
    return Channel(name=_text(item, "name", where), modality=_text(item, "modality", where))


def _labels(item: Any) -> dict[str, int]:
    if not isinstance(item, dict) or len(item) < 2:
        raise ManifestError(
            f"labels must map names to values, with the background and at least one more; found {item!r}"
        )
    for name, value in item.items():
        if not isinstance(name, str) or not _is_int(value) or value < 0:
            raise ManifestError(f"labels: each name needs a whole number of 0 or more; found {name!r}: {value!r}")
    _check_unique(item.values(), "labels: value")
    if 0 not in item.values():
        raise ManifestError("labels: no name has the value 0; add `background: 0`")
    return dict(item)


def _file_values(item: Any, labels: Mapping[str, int], ignore_label: int | None) -> dict[int, int] | None:
    if item is None:
        return None
    if not isinstance(item, dict) or not all(isinstance(value, int) for pair in item.items() for value in pair):
        raise ManifestError(f"file_values must map whole numbers in the files to values of labels; found {item!r}")
    allowed = {*labels.values()} | ({ignore_label} if ignore_label is not None else set())
    unknown = sorted(set(item.values()) - allowed)
    if unknown:
        raise ManifestError(f"file_values map to {unknown}, which are not values of labels; expected {sorted(allowed)}")
    return dict(item)


def _case(item: Any) -> Case:
    record = {"id": item} if not isinstance(item, dict) else item
    _check_keys(record, ("id",), ("patient",), "cases")
    case_id, patient = record["id"], record.get("patient", record["id"])
    for value in (case_id, patient):
        if not isinstance(value, str) or not value:
            raise ManifestError(f"cases: {value!r} is not text; YAML reads 001 as a number, so put ids into quotes")
    if case_id != PurePosixPath(case_id).name or "\\" in case_id:
        raise ManifestError(f"cases: the id {case_id!r} leads to another folder; use a name without slashes")
    return Case(id=case_id, patient=patient)


def _folds(
    item: Any, cases: tuple[Case, ...], patients_may_cross: bool = False, where: str = "folds"
) -> dict[int, tuple[str, ...]]:
    if not isinstance(item, dict):
        raise ManifestError(f"{where} must map numbers to lists of case ids; found {item!r}")
    for number, ids in item.items():
        if not (_is_int(number) and isinstance(ids, list) and ids):
            raise ManifestError(f"{where}: each number needs a list of at least one case id; found {number!r}: {ids!r}")
    _check_unique((case_id for ids in item.values() for case_id in ids), f"{where}: case")
    fold_of_patient: dict[str, int] = {}
    for number, ids in item.items():
        for patient in _patients(ids, cases, f"{where}: fold {number}"):
            first = fold_of_patient.setdefault(patient, number)
            if first != number and not patients_may_cross:
                raise ManifestError(
                    f"{where}: patient {patient!r} is in folds {first} and {number}, so the network would be trained "
                    "and validated on one patient; put all cases of a patient into one fold, or declare "
                    "patients_cross_folds: true"
                )
    return {number: tuple(item[number]) for number in sorted(item)}


def _check_every_case_in(folds: Mapping[int, tuple[str, ...]], cases: tuple[Case, ...]) -> None:
    left_out = [case.id for case in cases if folds and not any(case.id in ids for ids in folds.values())]
    if left_out:
        raise ManifestError(f"folds: {shortened(left_out)} in no fold; add them to one or remove them from cases")


def _fold_sets(item: Any, cases: tuple[Case, ...], test_fold: int | None) -> dict[str, dict[int, tuple[str, ...]]]:
    if not isinstance(item, dict) or not all(isinstance(name, str) for name in item):
        raise ManifestError(f"fold_sets must map names to folds; found {item!r}")
    sets = {name: _folds(folds, cases, where=f"fold_sets: {name}") for name, folds in item.items()}
    for name, folds in sets.items():
        if test_fold is not None and test_fold not in folds:
            raise ManifestError(f"fold_sets: {name} lacks the test fold {test_fold}; found folds {sorted(folds)}")
    return sets


def _splits(item: Any, cases: tuple[Case, ...]) -> dict[int, Split]:
    if not isinstance(item, dict):
        raise ManifestError(f"splits must map numbers to training and validation cases; found {item!r}")
    splits = {}
    for number, parts in item.items():
        where = f"splits: split {number}"
        if not _is_int(number):
            raise ManifestError(f"splits must be numbered; found {number!r}")
        _check_keys(parts, ("training", "validation"), (), where)
        for part in ("training", "validation"):
            if not isinstance(parts[part], list):
                raise ManifestError(f"{where}: {part} must be a list of case ids; found {parts[part]!r}")
        if not parts["training"]:
            raise ManifestError(f"{where}: no training cases; add at least one")
        _check_unique([*parts["training"], *parts["validation"]], f"{where}: case")
        seen = {*_patients(parts["training"], cases, where)}
        shared = sorted(seen & {*_patients(parts["validation"], cases, where)})
        if shared:
            raise ManifestError(f"{where}: patient {shortened(shared)} in both training and validation; keep one")
        splits[number] = Split(tuple(parts["training"]), tuple(parts["validation"]))
    return dict(sorted(splits.items()))


def _patients(ids: Iterable[str], cases: tuple[Case, ...], where: str) -> list[str]:
    """Return the patient of each case id; refuse an id that is not among the cases."""
    patients = {case.id: case.patient for case in cases}
    for case_id in ids:
        if case_id not in patients:
            raise ManifestError(f"{where}: case {case_id!r} is not among the cases; correct the id or add the case")
    return [patients[case_id] for case_id in ids]


def _patterns(item: Any, num_channels: int, where: str) -> FilePatterns:
    _check_keys(item, ("image", "label"), ("instances",), where)
    images = item["image"] if isinstance(item["image"], list) else [item["image"]]
    if len(images) != num_channels:
        raise ManifestError(
            f"{where}: image needs one pattern per channel; found {len(images)} patterns for {num_channels} channels"
        )
    for pattern in [*images, item["label"], *([item["instances"]] if "instances" in item else [])]:
        _check_pattern(pattern, where)
    _check_unique(images, f"{where}: image pattern")
    return FilePatterns(image=tuple(images), label=item["label"], instances=item.get("instances"))


def _check_pattern(pattern: Any, where: str) -> None:
    try:
        has_case = isinstance(pattern, str) and pattern.format(case="A") != pattern.format(case="B")
    except (KeyError, IndexError, ValueError):
        has_case = False
    if not has_case:
        raise ManifestError(f"{where}: pattern {pattern!r} must contain {{case}} and no other braces")
    if ".." in PurePosixPath(pattern).parts or PurePosixPath(pattern).is_absolute():
        raise ManifestError(f"{where}: pattern {pattern!r} leads outside the dataset's folder; use a path below it")


def _source(item: Any, num_channels: int) -> Source:
    _check_keys(item, (), _SOURCE_KEYS, "source")
    archive = item.get("archive") or {}
    _check_keys(archive, (), ("folder", "image", "label", "instances"), "source.archive")
    layout = {key: value for key, value in archive.items() if key != "folder"}
    if "url" in item and "md5" not in item:
        raise ManifestError(
            "source: url has no md5; add the md5 of the archive, so that a damaged download is detected"
        )
    return Source(
        url=item.get("url"),
        md5=item.get("md5"),
        size_mb=item.get("size_mb"),
        archive_folder=archive.get("folder"),
        archive_files=_patterns(layout, num_channels, "source.archive") if layout else None,
        page=item.get("page"),
        generator=item.get("generator"),
        arguments=dict(item.get("arguments") or {}),
    )


def _check_keys(item: Any, required: Iterable[str], optional: Iterable[str], where: str) -> None:
    if not isinstance(item, dict):
        raise ManifestError(f"{where} must be a mapping of keys; found {item!r}")
    known = [*required, *optional]
    for key in item:
        if key not in known:
            hint = did_you_mean(str(key), known) or f"; known keys are {', '.join(known)}"
            raise ManifestError(f"{where} has the unknown key {key!r}{hint}")
    absent = [key for key in required if item.get(key) is None]
    if absent:
        raise ManifestError(f"{where} lacks {', '.join(absent)}")


def _check_unique(values: Iterable[Any], subject: str) -> None:
    repeated = [str(value) for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise ManifestError(f"{subject} given twice: {shortened(repeated)}")


def _list(content: Mapping[str, Any], key: str) -> list[Any]:
    if not isinstance(content[key], list) or not content[key]:
        raise ManifestError(f"{key} must be a list with at least one entry; found {content[key]!r}")
    return content[key]


def _text(content: Mapping[str, Any], key: str, where: str = "the manifest") -> str:
    if not isinstance(content[key], str):
        raise ManifestError(f"{where}: {key} must be text; found {content[key]!r}")
    return content[key]


def _optional_int(content: Mapping[str, Any], key: str) -> int | None:
    value = content.get(key)
    if value is not None and not _is_int(value):
        raise ManifestError(f"{key} must be a whole number; found {value!r}")
    return value


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
