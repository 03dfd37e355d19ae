"""Check the content of a manifest file, build the record from it, and write a record as a file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from medseg.datasets.manifest import Case, Channel, FilePatterns, Manifest, Source, Split, shortened
from medseg.errors import ManifestError, OptionError, did_you_mean
from medseg.volumes import replacing

SCHEMA_VERSION = 1
_REQUIRED = ("schema_version", "name", "spatial_dims", "channels", "labels", "cases")
_OPTIONAL = (
    "description", "regions", "regions_class_order", "ignore_label", "file_values", "file_colors", "files", "folds",
    "patients_cross_folds", "fold_sets", "splits", "test_fold",
    "source", "licence", "citations",
)  # fmt: skip
_SOURCE_KEYS = ("url", "md5", "size_mb", "archive", "page", "generator", "arguments")


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


def manifest_content(manifest: Manifest) -> dict[str, Any]:
    """Return a manifest as the content of a file, without keys at their defaults; ``parse_manifest`` reads it."""
    optional: dict[str, Any] = {
        "description": manifest.description,
        "regions": {name: list(values) for name, values in manifest.regions.items()},
        "regions_class_order": list(manifest.regions_class_order),
        "ignore_label": manifest.ignore_label,
    }
    if manifest.file_values is not None:
        values = dict(manifest.file_values)
        if manifest.has_colored_labels:
            optional["file_colors"] = {f"#{color:06x}": value for color, value in values.items()}
        else:
            optional["file_values"] = values
    if manifest.files is not None:
        optional["files"] = _patterns_content(manifest.files)
    patients = {case.id: case.patient for case in manifest.cases}
    rest = {
        "cases": [_case_content(case) for case in manifest.cases],
        "test_fold": manifest.test_fold,
        "folds": {number: list(ids) for number, ids in manifest.folds.items()},
        "fold_sets": {
            name: {number: list(ids) for number, ids in folds.items()} for name, folds in manifest.fold_sets.items()
        },
        "splits": {
            number: {"training": list(split.training), "validation": list(split.validation)}
            | ({"test": list(split.test)} if split.test else {})
            for number, split in manifest.splits.items()
        },
        "licence": manifest.licence,
        "citations": list(manifest.citations),
        "patients_cross_folds": any(
            len({number for number, ids in manifest.folds.items() for case in ids if patients[case] == patient}) > 1
            for patient in set(patients.values())
        ),
    }
    source = {key: getattr(manifest.source, key) for key in ("url", "md5", "size_mb", "page", "generator")}
    if manifest.source.archive_files is not None or manifest.source.archive_folder is not None:
        layout = _patterns_content(manifest.source.archive_files) if manifest.source.archive_files else {}
        source["archive"] = {"folder": manifest.source.archive_folder, **layout}
    source = {key: value for key, value in (source | {"arguments": dict(manifest.source.arguments)}).items() if value}
    content = {
        "schema_version": SCHEMA_VERSION,
        "name": manifest.name,
        "spatial_dims": manifest.spatial_dims,
        "channels": [{"name": channel.name, "modality": channel.modality} for channel in manifest.channels],
        "labels": dict(manifest.labels),
    }
    content |= {key: value for key, value in optional.items() if value not in (None, "", {}, [])}
    return content | {
        key: value for key, value in {**rest, "source": source}.items() if value not in (None, "", {}, [], False)
    }


def _patterns_content(patterns: FilePatterns) -> dict[str, Any]:
    content: dict[str, Any] = {
        "image": list(patterns.image) if len(patterns.image) > 1 else patterns.image[0],
        "label": patterns.label,
    }
    return content if patterns.instances is None else content | {"instances": patterns.instances}


def _case_content(case: Case) -> Any:
    content: dict[str, Any] = {"id": case.id}
    if case.patient != case.id:
        content["patient"] = case.patient
    if case.files is not None:
        content |= _patterns_content(case.files)
    if case.labels is not None:
        content["labels"] = list(case.labels)
    return content if len(content) > 1 else case.id


def to_yaml(manifest: Manifest) -> str:
    """Return a manifest as the text of a file."""
    return yaml.safe_dump(
        manifest_content(manifest), sort_keys=False, allow_unicode=True, width=100, default_flow_style=None
    )


def write_manifest(manifest: Manifest, path: Path | str) -> None:
    """Write a manifest as YAML, atomically.

    Raises:
        OptionError: the file exists already. Nothing is overwritten.
        VolumeError: the folder cannot be written.
    """
    path = Path(path)
    if path.exists() or path.is_symlink():
        raise OptionError(f"{path}: exists already and is not overwritten; choose another file or move it away")
    with replacing(path) as temporary:
        temporary.write_text(to_yaml(manifest), encoding="utf-8")


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
    regions, class_order = _regions(content.get("regions"), content.get("regions_class_order"), labels)
    patterns = _patterns(content["files"], len(channels), "files") if content.get("files") is not None else None
    cases = tuple(_case(item, len(channels), labels, patterns) for item in _list(content, "cases"))
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
        files=patterns,
        cases=cases,
        folds=folds,
        test_fold=test_fold,
        ignore_label=ignore_label,
        file_values=_file_values(content, labels, ignore_label),
        source=_source(content.get("source") or {}, len(channels)),
        licence=str(content.get("licence") or ""),
        citations=tuple(str(item) for item in content.get("citations") or ()),
        path=path,
        splits=splits,
        fold_sets=fold_sets,
        regions=regions,
        regions_class_order=class_order,
        has_colored_labels=content.get("file_colors") is not None,
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


def _regions(item: Any, order: Any, labels: Mapping[str, int]) -> tuple[dict[str, tuple[int, ...]], tuple[int, ...]]:
    if not item:
        if order:
            raise ManifestError("regions_class_order is given without regions; add regions, or remove it")
        return {}, ()
    if not isinstance(item, dict):
        raise ManifestError(f"regions must map names to lists of label values or names; found {item!r}")
    known, of_name = set(labels.values()) - {0}, {name: value for name, value in labels.items() if value != 0}
    regions: dict[str, tuple[int, ...]] = {}
    for name, members in item.items():
        members = members if isinstance(members, list | tuple) else [members]
        values: list[Any] = [of_name.get(member, member) if isinstance(member, str) else member for member in members]
        unknown = [str(member) for member, value in zip(members, values, strict=True) if value not in known]
        if unknown or not values or not isinstance(name, str):
            shown = ", ".join(f"{label} ({value})" for label, value in of_name.items())
            raise ManifestError(
                f"regions: {name!r} names the unknown label {', '.join(unknown) or members}; expected some of {shown}"
            )
        regions[name] = tuple(dict.fromkeys(values))
    return regions, _class_order(order, regions)


def _class_order(order: Any, regions: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Check nnU-Net's `regions_class_order`: each region needs a value of its own, which only later regions cover."""
    if not isinstance(order, list | tuple) or len(order) != len(regions) or not all(_is_int(v) for v in order):
        raise ManifestError(
            f"regions_class_order needs one label value per region ({len(regions)}); found {order!r}; list the value "
            "that each region gets in a label map, the largest region first"
        )
    _check_unique(order, "regions_class_order: value")
    for value, (name, values) in zip(order, regions.items(), strict=True):
        if value not in values:
            raise ManifestError(f"regions_class_order: {value} is no value of the region {name!r}; found {values}")
    return tuple(order)


def _file_values(
    content: Mapping[str, Any], labels: Mapping[str, int], ignore_label: int | None
) -> dict[int, int] | None:
    item, colors = content.get("file_values"), content.get("file_colors")
    if item is not None and colors is not None:
        raise ManifestError("file_values and file_colors are both given; keep one of them")
    if colors is not None:
        item = _colors(colors)
    if item is None:
        return None
    key = "file_colors" if colors is not None else "file_values"
    if not isinstance(item, dict) or not all(_is_int(value) for pair in item.items() for value in pair):
        raise ManifestError(f"{key} must map whole numbers in the files to values of labels; found {item!r}")
    allowed = {*labels.values()} | ({ignore_label} if ignore_label is not None else set())
    unknown = sorted(set(item.values()) - allowed)
    if unknown:
        raise ManifestError(f"{key} map to {unknown}, which are not values of labels; expected {sorted(allowed)}")
    return dict(item)


def _colors(item: Any) -> dict[int, Any]:
    if not isinstance(item, dict) or not item:
        raise ManifestError(f'file_colors must map colours such as "#804080" to values of labels; found {item!r}')
    for color in item:
        if not isinstance(color, str) or not re.fullmatch("#[0-9a-fA-F]{6}", color):
            raise ManifestError(f'file_colors: a colour must be text such as "#804080"; found {color!r}')
    values = {int(color[1:], 16): value for color, value in item.items()}
    if len(values) < len(item):
        raise ManifestError(f"file_colors: a colour is given twice; found {sorted(item)}")
    return values


def _case(item: Any, num_channels: int, labels: Mapping[str, int], patterns: FilePatterns | None) -> Case:
    record = {"id": item} if not isinstance(item, dict) else item
    _check_keys(record, ("id",), ("patient", "image", "label", "instances", "labels"), "cases")
    case_id, patient = record["id"], record.get("patient", record["id"])
    for value in (case_id, patient):
        if not isinstance(value, str) or not value:
            raise ManifestError(f"cases: {value!r} is not text; YAML reads 001 as a number, so put ids into quotes")
    if case_id != PurePosixPath(case_id).name or "\\" in case_id:
        raise ManifestError(f"cases: the id {case_id!r} leads to another folder; use a name without slashes")
    files = {key: record[key] for key in ("image", "label", "instances") if key in record}
    if not files and patterns is None:
        raise ManifestError(f"cases: {case_id} lists no files, and there is no key files; add image and label")
    annotated = record.get("labels")
    if annotated is not None:
        unknown = [name for name in annotated if name not in labels] if isinstance(annotated, list) else annotated
        if unknown or not annotated:
            raise ManifestError(
                f"cases: labels of {case_id} must list names of labels; found {annotated!r}, expected some of "
                f"{', '.join(labels)}"
            )
    return Case(
        id=case_id,
        patient=patient,
        files=_patterns(files, num_channels, f"cases: {case_id}", is_one_case=True) if files else None,
        labels=None if annotated is None else tuple(annotated),
    )


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
        _check_keys(parts, ("training", "validation"), ("test",), where)
        parts = {"test": [], **parts}
        for part in ("training", "validation", "test"):
            if not isinstance(parts[part], list):
                raise ManifestError(f"{where}: {part} must be a list of case ids; found {parts[part]!r}")
        if not parts["training"]:
            raise ManifestError(f"{where}: no training cases; add at least one")
        _check_unique([*parts["training"], *parts["validation"], *parts["test"]], f"{where}: case")
        seen = {*_patients(parts["training"], cases, where)}
        for part in ("validation", "test"):
            shared = sorted(seen & {*_patients(parts[part], cases, where)})
            if shared:
                raise ManifestError(f"{where}: patient {shortened(shared)} in both training and {part}; keep one")
        splits[number] = Split(tuple(parts["training"]), tuple(parts["validation"]), tuple(parts["test"]))
    return dict(sorted(splits.items()))


def _patients(ids: Iterable[str], cases: tuple[Case, ...], where: str) -> list[str]:
    """Return the patient of each case id; refuse an id that is not among the cases."""
    patients = {case.id: case.patient for case in cases}
    for case_id in ids:
        if case_id not in patients:
            raise ManifestError(f"{where}: case {case_id!r} is not among the cases; correct the id or add the case")
    return [patients[case_id] for case_id in ids]


def _patterns(item: Any, num_channels: int, where: str, is_one_case: bool = False) -> FilePatterns:
    _check_keys(item, ("image", "label"), ("instances",), where)
    images = item["image"] if isinstance(item["image"], list) else [item["image"]]
    if len(images) not in (1, num_channels):
        raise ManifestError(
            f"{where}: image needs one pattern per channel, or one for a file with all channels; found {len(images)} "
            f"patterns for {num_channels} channels"
        )
    for pattern in [*images, item["label"], *([item["instances"]] if "instances" in item else [])]:
        _check_pattern(pattern, where, is_one_case)
    _check_unique(images, f"{where}: image pattern")
    return FilePatterns(image=tuple(images), label=item["label"], instances=item.get("instances"))


def _check_pattern(pattern: Any, where: str, is_one_case: bool) -> None:
    if not isinstance(pattern, str) or not pattern:
        raise ManifestError(f"{where}: {pattern!r} is not the path of a file; write it as text")
    if not is_one_case and ("{case}" not in pattern or set("{}") & set(pattern.replace("{case}", ""))):
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
