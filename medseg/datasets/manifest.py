"""The record behind a data manifest: one data set as plain, frozen values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from medseg.errors import ManifestError, did_you_mean

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


REQUIRED = ("schema_version", "name", "spatial_dims", "channels", "labels", "files", "cases")
OPTIONAL = ("description", "ignore_label", "file_values", "folds", "test_fold", "source", "licence", "citations")
SOURCE_KEYS = ("url", "md5", "size_mb", "archive", "page", "generator", "arguments")


def parse_manifest(content: Any, path: Path) -> Manifest:
    """Check plain data and build the record.

    Raises:
        ManifestError: the first rule it breaks.
    """
    try:
        return _manifest(content, path)
    except ManifestError as error:
        raise ManifestError(f"{path}: {error}") from None


def _manifest(content: Any, path: Path) -> Manifest:
    if not isinstance(content, dict):
        raise ManifestError(f"a manifest is a mapping of keys, found {type(content).__name__}")
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ManifestError(f"schema_version must be {SCHEMA_VERSION}, found {version!r}; use a medseg that reads it")
    _check_keys(content, REQUIRED, OPTIONAL, "the manifest")
    channels = tuple(_channel(item, number) for number, item in enumerate(_list(content, "channels")))
    _check_unique((channel.name for channel in channels), "channels: name")
    labels = _labels(content["labels"])
    ignore_label = _optional_int(content, "ignore_label")
    if ignore_label in labels.values():
        raise ManifestError(f"ignore_label {ignore_label} is also a value of labels; choose another")
    cases = tuple(_case(item) for item in _list(content, "cases"))
    _check_unique((case.id for case in cases), "cases: id")
    folds = _folds(content.get("folds") or {}, cases)
    test_fold = _optional_int(content, "test_fold")
    if test_fold is not None and test_fold not in folds:
        raise ManifestError(f"test_fold {test_fold} is none of the folds {sorted(folds)}")
    return Manifest(
        name=_text(content, "name"),
        description=" ".join(str(content.get("description") or "").split()),
        spatial_dims=_one_of(content["spatial_dims"], (2, 3), "spatial_dims"),
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
    )


def _channel(item: Any, number: int) -> Channel:
    where = f"channels[{number}]"
    _check_keys(item, ("name", "modality"), (), where)
    return Channel(name=_text(item, "name", where), modality=_text(item, "modality", where))


def _labels(item: Any) -> dict[str, int]:
    if not isinstance(item, dict) or len(item) < 2:
        raise ManifestError("labels must map names to values, the background and at least one more")
    for name, value in item.items():
        if not isinstance(name, str) or not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ManifestError(f"labels: {name!r}: {value!r} must be a name and a whole number of 0 or more")
    _check_unique(item.values(), "labels: value")
    if 0 not in item.values():
        raise ManifestError("labels: no name has value 0; add `background: 0`")
    return dict(item)


def _file_values(item: Any, labels: Mapping[str, int], ignore_label: int | None) -> dict[int, int] | None:
    if item is None:
        return None
    allowed = {*labels.values()} | ({ignore_label} if ignore_label is not None else set())
    if not isinstance(item, dict) or not all(isinstance(value, int) for pair in item.items() for value in pair):
        raise ManifestError("file_values must map whole numbers in the files to values of labels")
    strangers = sorted(set(item.values()) - allowed)
    if strangers:
        raise ManifestError(f"file_values lead to {strangers}, which are no values of labels")
    return dict(item)


def _case(item: Any) -> Case:
    record = {"id": item} if not isinstance(item, dict) else item
    _check_keys(record, ("id",), ("patient",), "cases")
    case_id, patient = record["id"], record.get("patient", record["id"])
    for value in (case_id, patient):
        if not isinstance(value, str) or not value:
            raise ManifestError(f"cases: {value!r} is not text; YAML reads 001 as a number, so write ids in quotes")
    if case_id != PurePosixPath(case_id).name or "\\" in case_id:
        raise ManifestError(f"cases: id {case_id!r} would leave its folder; use a plain name")
    return Case(id=case_id, patient=patient)


def _folds(item: Any, cases: tuple[Case, ...]) -> dict[int, tuple[str, ...]]:
    rule = "folds must map numbers to lists of case ids, none of them empty"
    if not isinstance(item, dict):
        raise ManifestError(f"{rule}, found {item!r}")
    for number, ids in item.items():
        if not (isinstance(number, int) and isinstance(ids, list) and ids):
            raise ManifestError(f"{rule}, found {number!r}: {ids!r}; correct it or leave the fold out")
    patients = {case.id: case.patient for case in cases}
    _check_unique((case_id for ids in item.values() for case_id in ids), "folds: case")
    fold_of_patient: dict[str, int] = {}
    for number, ids in item.items():
        for case_id in ids:
            if case_id not in patients:
                raise ManifestError(f"folds: fold {number} names {case_id!r}, which is not among the cases")
            first = fold_of_patient.setdefault(patients[case_id], number)
            if first != number:
                raise ManifestError(
                    f"folds: patient {patients[case_id]!r} is in folds {first} and {number}, so training would "
                    "see the patient it is validated on; put all cases of a patient into one fold"
                )
    left_out = [case.id for case in cases if item and not any(case.id in ids for ids in item.values())]
    if left_out:
        raise ManifestError(f"folds: {_some(left_out)} in no fold; add them to one or remove them from cases")
    return {number: tuple(item[number]) for number in sorted(item)}


def _patterns(item: Any, num_channels: int, where: str) -> FilePatterns:
    _check_keys(item, ("image", "label"), ("instances",), where)
    images = item["image"] if isinstance(item["image"], list) else [item["image"]]
    if len(images) != num_channels:
        raise ManifestError(
            f"{where}: image has {len(images)} patterns for {num_channels} channels; give one a channel"
        )
    for pattern in [*images, item["label"], *([item["instances"]] if "instances" in item else [])]:
        _check_pattern(pattern, where)
    _check_unique(images, f"{where}: image pattern")
    return FilePatterns(image=tuple(images), label=item["label"], instances=item.get("instances"))


def _check_pattern(pattern: Any, where: str) -> None:
    try:
        is_good = isinstance(pattern, str) and pattern.format(case="A") != pattern.format(case="B")
    except (KeyError, IndexError, ValueError):
        is_good = False
    if not is_good:
        raise ManifestError(f"{where}: pattern {pattern!r} must hold {{case}} and no other braces")
    if ".." in PurePosixPath(pattern).parts or PurePosixPath(pattern).is_absolute():
        raise ManifestError(f"{where}: pattern {pattern!r} must stay below the data set's folder")


def _source(item: Any, num_channels: int) -> Source:
    _check_keys(item, (), SOURCE_KEYS, "source")
    archive = item.get("archive") or {}
    _check_keys(archive, (), ("folder", "image", "label", "instances"), "source.archive")
    layout = {key: value for key, value in archive.items() if key != "folder"}
    if "url" in item and "md5" not in item:
        raise ManifestError("source: a url needs the md5 of its archive, so that a damaged download is noticed")
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
        raise ManifestError(f"{where} must be a mapping of keys, found {item!r}")
    known = [*required, *optional]
    for key in item:
        if key not in known:
            hint = did_you_mean(str(key), known) or f"; known are {', '.join(known)}"
            raise ManifestError(f"{where} has the unknown key {key!r}{hint}")
    absent = [key for key in required if item.get(key) is None]
    if absent:
        raise ManifestError(f"{where} lacks {', '.join(absent)}")


def _check_unique(values: Iterable[Any], what: str) -> None:
    twice = [str(value) for value, count in Counter(values).items() if count > 1]
    if twice:
        raise ManifestError(f"{what} given twice: {_some(twice)}")


def _list(content: Mapping[str, Any], key: str) -> list[Any]:
    if not isinstance(content[key], list) or not content[key]:
        raise ManifestError(f"{key} must be a list with at least one entry, found {content[key]!r}")
    return content[key]


def _text(content: Mapping[str, Any], key: str, where: str = "the manifest") -> str:
    if not isinstance(content[key], str):
        raise ManifestError(f"{where}: {key} must be text, found {content[key]!r}")
    return content[key]


def _optional_int(content: Mapping[str, Any], key: str) -> int | None:
    value = content.get(key)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise ManifestError(f"{key} must be a whole number, found {value!r}")
    return value


def _one_of(value: Any, allowed: tuple[int, ...], key: str) -> int:
    if value not in allowed:
        raise ManifestError(f"{key} must be one of {', '.join(map(str, allowed))}, found {value!r}")
    return int(value)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
