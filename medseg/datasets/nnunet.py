"""Read raw datasets of nnU-Net and the Decathlon: `dataset.json` beside `imagesTr` and `labelsTr`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medseg.datasets.layouts.label_values import dimensions
from medseg.datasets.layouts.modality import modality_of_name
from medseg.datasets.manifest import Case, FilePatterns, Manifest
from medseg.datasets.manifest_content import SCHEMA_VERSION, parse_manifest
from medseg.errors import ManifestError, one_line
from medseg.volumes import stem_of, suffix_of
from medseg.volumes.files import read_json

DATASET_FILE, SPLITS_FILE, TEST_FOLDER = "dataset.json", "splits_final.json", "imagesTs"


def is_dataset_json(content: Any) -> bool:
    """Return True for the content of a `dataset.json`, False for a medseg manifest written as JSON."""
    return (
        isinstance(content, dict)
        and "schema_version" not in content
        and bool({"channel_names", "modality"} & {*content})
    )


def parse_dataset_json(content: Mapping[str, Any], path: Path) -> Manifest:
    """Convert a `dataset.json` of nnU-Net (version 1 or 2) or of the Decathlon to a manifest.

    The cases are the label maps in `labelsTr`. Folds come from `splits_final.json` beside it, whose training and
    validation cases are used as written. Without that file they are nnU-Net's default folds (``default_folds``). In
    both programs, fold k is the fold to validate on.

    Raises:
        ManifestError: a key is missing, the labels are regions, or the folders do not contain what the file says.
    """
    try:
        return replace(parse_manifest(_manifest_content(content, path.parent), path), folder=path.parent)
    except ManifestError as error:
        splits = path.with_name(SPLITS_FILE)
        if str(error).startswith(f"{splits}: "):
            raise
        line = str(error).removeprefix(f"{path}: ")
        file = splits if line.startswith(("folds", "splits")) else path
        raise ManifestError(f"{file}: {line}") from None


def test_images(manifest: Manifest, root: Path) -> tuple[Case, ...]:
    """Return the images in `imagesTs` as cases without a label map, with ids such as `imagesTs/case_001`.

    Args:
        manifest: a data set whose training images lie in `imagesTr`; of others, nothing is returned.
        root: its folder.
    """
    patterns = () if manifest.files is None else manifest.files.image
    if not patterns or not all(pattern.startswith("imagesTr/{case}") for pattern in patterns):
        return ()
    patterns = tuple(pattern.replace("imagesTr/", f"{TEST_FOLDER}/", 1) for pattern in patterns)
    ending = patterns[0].removeprefix(f"{TEST_FOLDER}/{{case}}")
    names = [path.name.removesuffix(ending) for path in sorted((root / TEST_FOLDER).glob(f"*{ending}"))]
    files = [FilePatterns(tuple(pattern.replace("{case}", name) for pattern in patterns), "") for name in names]
    return tuple(
        Case(f"{TEST_FOLDER}/{name}", f"{TEST_FOLDER}/{name}", each)
        for name, each in zip(names, files, strict=True)
        if not name.startswith(".")
    )


def default_folds(case_ids: list[str]) -> dict[int, list[str]]:
    """Return nnU-Net's default folds: scikit-learn's ``KFold(5, shuffle=True, random_state=12345)`` on the sorted ids.

    Fewer than five cases give no folds, so that every case is used for training.
    """
    ids = sorted(case_ids)
    if len(ids) < 5:
        return {}
    order = np.arange(len(ids))
    np.random.RandomState(12345).shuffle(order)
    return {number: [ids[i] for i in sorted(part)] for number, part in enumerate(np.array_split(order, 5))}


def _manifest_content(content: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    names = content.get("channel_names", content.get("modality"))
    if not isinstance(names, Mapping) or sorted(names) != sorted(str(number) for number in range(len(names))):
        raise ManifestError(f'channel_names must be numbered from 0, as in {{"0": "CT"}}; found {names!r}')
    channels = [str(names[str(number)]) for number in range(len(names))]
    files = _listed_files(content["dataset"]) if "dataset" in content else _found_files(folder, content, len(channels))
    cases = files["cases"]
    case_ids = [case if isinstance(case, str) else case["id"] for case in cases]
    first = files["files"]["label"].replace("{case}", cases[0]) if "files" in files else cases[0]["label"]
    labels, regions = _labels(content.get("labels"), content.get("regions_class_order"))
    ignored = labels.pop("ignore", None)
    return {
        "schema_version": SCHEMA_VERSION,
        "name": str(content.get("name") or folder.resolve().name),
        "description": str(content.get("description") or ""),
        "spatial_dims": dimensions(folder / first)[0],
        "channels": [{"name": name, "modality": modality_of_name(name) or name} for name in channels],
        "labels": labels,
        "ignore_label": ignored,
        **regions,
        **files,
        **_folds_or_splits(folder / SPLITS_FILE, case_ids),
        "licence": str(content.get("licence") or content.get("license") or ""),
        "citations": [str(content["reference"])] if content.get("reference") else [],
    }


def _labels(item: Any, class_order: Any) -> tuple[dict[str, int], dict[str, Any]]:
    """Return the value of each name, and the keys `regions` and `regions_class_order` if labels are regions.

    Version 1 and the Decathlon write values and names the other way round. With regions, a value that is no region of
    its own has no name in nnU-Net, and is called after its number.
    """
    if not isinstance(item, Mapping):
        raise ManifestError(f'labels must be like {{"background": 0, "tumour": 1}}; found {item!r}')
    if all(isinstance(value, str) for value in item.values()):
        try:
            return {name: int(value) for value, name in item.items()}, {}
        except ValueError:
            raise ManifestError(f"labels must map names to whole numbers; found {dict(item)}") from None
    members: dict[str, list[Any]] = {
        str(name): value if isinstance(value, list) else [value] for name, value in item.items()
    }
    if not any(len(values) > 1 for values in members.values()):
        return {name: values[0] if values else -1 for name, values in members.items()}, {}
    ignored = members.pop("ignore", None)
    background = next((name for name, values in members.items() if values == [0]), None)
    if background is None:
        raise ManifestError("labels: no name has the value 0; add `background: 0`")
    del members[background]
    name_of = {values[0]: name for name, values in members.items() if len(values) == 1}
    labels = {background: 0}
    for value in sorted({value for values in members.values() for value in values}):
        labels[name_of.get(value, f"label {value}")] = value
    return labels | ({"ignore": ignored[0]} if ignored else {}), {
        "regions": members,
        "regions_class_order": class_order,
    }


def _listed_files(item: Any) -> dict[str, Any]:
    """Return the files that the key `dataset` lists one by one."""
    try:
        cases = [
            {
                "id": str(case),
                "image": files["images"] if len(files["images"]) > 1 else files["images"][0],
                "label": files["label"],
            }
            for case, files in item.items()
        ]
    except (AttributeError, KeyError, TypeError, IndexError):
        raise ManifestError('dataset must map each case to {"images": [...], "label": ...}; correct it') from None
    if not cases:
        raise ManifestError("dataset lists no case; add one, or remove the key")
    return {"cases": sorted(cases, key=lambda case: case["id"])}


def _found_files(folder: Path, content: Mapping[str, Any], num_channels: int) -> dict[str, Any]:
    """Return patterns and cases of the label maps in `labelsTr` and the images in `imagesTr`."""
    files = _label_files(folder, content)
    case_ids = [stem_of(file) for file in files]
    return {"files": _patterns(folder, case_ids, num_channels, suffix_of(files[0])), "cases": case_ids}


def _label_files(folder: Path, content: Mapping[str, Any]) -> list[Path]:
    label_folder = folder / "labelsTr"
    if not label_folder.is_dir():
        raise ManifestError(f"no folder {label_folder}; a raw nnU-Net dataset needs one")
    ending = str(content.get("file_ending") or "")
    if ending and not suffix_of(f"case{ending}"):
        raise ManifestError(f"file_ending {ending!r} is not a format that medseg reads; convert the files to .nii.gz")
    files = sorted(file for file in label_folder.iterdir() if suffix_of(file) and not file.name.startswith("."))
    files = [file for file in files if not ending or file.name.endswith(ending)]
    if not files:
        raise ManifestError(f"{label_folder} contains no label map{f' that ends in {ending}' if ending else ''}")
    endings = {suffix_of(file) for file in files}
    if len(endings) > 1:
        raise ManifestError(f"{label_folder} contains {' and '.join(sorted(endings))} files; keep one format")
    expected = content.get("numTraining")
    if isinstance(expected, int) and expected != len(files):
        raise ManifestError(
            f"numTraining does not match {label_folder}; found {len(files)} label maps, expected {expected}; correct "
            "the number or the folder"
        )
    return files


def _patterns(folder: Path, case_ids: list[str], num_channels: int, suffix: str) -> dict[str, Any]:
    label = f"labelsTr/{{case}}{suffix}"
    plain = f"imagesTr/{{case}}{suffix}"
    numbered = [f"imagesTr/{{case}}_{channel:04d}{suffix}" for channel in range(num_channels)]
    is_found = {
        pattern: any((folder / pattern.format(case=case)).is_file() for case in case_ids)
        for pattern in (plain, *numbered[:2])
    }
    if is_found[plain] and not is_found[numbered[0]]:
        return {"image": plain, "label": label}
    if num_channels > 1 and is_found[numbered[0]] and not is_found[numbered[1]]:
        first = next(path for case in case_ids if (path := folder / numbered[0].format(case=case)).is_file())
        if dimensions(first)[1] == num_channels:  # colours in one file
            return {"image": numbered[0], "label": label}
    return {"image": numbered, "label": label}


def _folds_or_splits(file: Path, case_ids: list[str]) -> dict[str, Any]:
    """Return the manifest's key `folds` if the splits partition the cases, otherwise the key `splits`."""
    if not file.is_file():
        return {"folds": default_folds(case_ids)}
    try:
        content = read_json(file, ManifestError)
        splits = [{part: [str(case) for case in split[part]] for part in ("train", "val")} for split in content]
    except (TypeError, KeyError) as error:
        raise ManifestError(
            f"splits must be a list of {{train, val}} ({one_line(error)}); correct the file or remove it"
        ) from None
    validated = [case for split in splits for case in split["val"]]
    is_partition = sorted(validated) == sorted(case_ids) and all(
        split["val"] and sorted(split["train"] + split["val"]) == sorted(case_ids) for split in splits
    )
    if is_partition:
        return {"folds": {number: split["val"] for number, split in enumerate(splits)}}
    return {
        "splits": {
            number: {"training": split["train"], "validation": split["val"]} for number, split in enumerate(splits)
        }
    }
