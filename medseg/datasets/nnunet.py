"""Read raw datasets of nnU-Net and the Decathlon: `dataset.json` beside `imagesTr` and `labelsTr`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medseg.datasets.manifest import SCHEMA_VERSION, Manifest, parse_manifest
from medseg.errors import ManifestError, one_line
from medseg.volumes import read_grid, stem_of, suffix_of

DATASET_FILE, SPLITS_FILE = "dataset.json", "splits_final.json"
_MODALITIES = {"mri": "MR", "mr": "MR", "ct": "CT", "pet": "PET"}


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
        return parse_manifest(_manifest_content(content, path.parent), path)
    except ManifestError as error:
        line = str(error).removeprefix(f"{path}: ")
        file = path.with_name(SPLITS_FILE) if line.startswith(("folds", "splits")) else path
        raise ManifestError(f"{file}: {line}") from None


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
    if "dataset" in content:
        raise ManifestError("dataset lists the files one by one, which medseg does not read; write a manifest instead")
    channels = [str(names[str(number)]) for number in range(len(names))]
    files = _label_files(folder, content)
    case_ids = [stem_of(file) for file in files]
    labels = _labels(content.get("labels"))
    ignored = labels.pop("ignore", None)
    return {
        "schema_version": SCHEMA_VERSION,
        "name": str(content.get("name") or folder.resolve().name),
        "description": str(content.get("description") or ""),
        "spatial_dims": read_grid(files[0]).spatial_dims,
        "channels": [{"name": name, "modality": _MODALITIES.get(name.lower(), name)} for name in channels],
        "labels": labels,
        "ignore_label": ignored,
        "files": _patterns(folder, case_ids, len(channels), suffix_of(files[0])),
        "cases": case_ids,
        **_folds_or_splits(folder / SPLITS_FILE, case_ids),
        "licence": str(content.get("licence") or content.get("license") or ""),
        "citations": [str(content["reference"])] if content.get("reference") else [],
    }


def _labels(item: Any) -> dict[str, int]:
    """Return the value of each name. Version 1 and the Decathlon write them the other way round."""
    if not isinstance(item, Mapping):
        raise ManifestError(f'labels must be like {{"background": 0, "tumour": 1}}; found {item!r}')
    if all(isinstance(value, str) for value in item.values()):
        try:
            return {name: int(value) for value, name in item.items()}
        except ValueError:
            raise ManifestError(f"labels must map names to whole numbers; found {dict(item)}") from None
    regions = [str(name) for name, value in item.items() if isinstance(value, list)]
    if regions:
        raise ManifestError(
            f"labels: {', '.join(regions)} are regions of several values, which a manifest cannot describe; give each "
            "value its own name"
        )
    return {str(name): value for name, value in item.items()}


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
    plain = f"imagesTr/{{case}}{suffix}"
    numbered = [f"imagesTr/{{case}}_{channel:04d}{suffix}" for channel in range(num_channels)]
    has_plain = any((folder / plain.format(case=case)).is_file() for case in case_ids)
    has_numbered = any((folder / numbered[0].format(case=case)).is_file() for case in case_ids)
    if has_plain and not has_numbered:
        if num_channels > 1:
            raise ManifestError(
                f"{folder / plain.format(case=case_ids[0])} is one file for {num_channels} channels; split it into "
                "_0000, _0001, … with nnUNetv2_convert_MSD_dataset"
            )
        return {"image": plain, "label": f"labelsTr/{{case}}{suffix}"}
    return {"image": numbered, "label": f"labelsTr/{{case}}{suffix}"}


def _folds_or_splits(file: Path, case_ids: list[str]) -> dict[str, Any]:
    """Return the manifest's key `folds` if the splits partition the cases, otherwise the key `splits`."""
    if not file.is_file():
        return {"folds": default_folds(case_ids)}
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
        splits = [{part: [str(case) for case in split[part]] for part in ("train", "val")} for split in content]
    except (OSError, ValueError, TypeError, KeyError) as error:
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
