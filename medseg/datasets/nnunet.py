"""Raw data sets of nnU-Net and the Decathlon read as manifests: `dataset.json` beside `imagesTr` and `labelsTr`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medseg.datasets.manifest import SCHEMA_VERSION, Manifest, parse_manifest
from medseg.errors import ManifestError
from medseg.volumes import read_grid, stem_of, suffix_of

DATASET_FILE, SPLITS_FILE = "dataset.json", "splits_final.json"
MODALITIES = {"mri": "MR", "mr": "MR", "ct": "CT", "pet": "PET"}


def is_dataset_json(content: Any) -> bool:
    """Whether plain data is a `dataset.json` rather than a manifest of medseg's that is written as JSON."""
    return (
        isinstance(content, dict)
        and "schema_version" not in content
        and bool({"channel_names", "modality"} & {*content})
    )


def parse_dataset_json(content: Mapping[str, Any], path: Path) -> Manifest:
    """The manifest that a `dataset.json` of nnU-Net (version 1 or 2) or of the Decathlon amounts to.

    Cases are the label maps of `labelsTr`. Folds are those of `splits_final.json` beside it or, as nnU-Net makes them
    where there is none, five shuffled with seed 12345 (``default_folds``); fold k validates in both.

    Raises:
        ManifestError: a key is absent, the labels are regions, or the folders do not hold what the file says.
    """
    try:
        return parse_manifest(_manifest_content(content, path.parent), path)
    except ManifestError as error:
        line = str(error).removeprefix(f"{path}: ")
        raise ManifestError(f"{path}: {line}") from None


def default_folds(case_ids: list[str]) -> dict[int, list[str]]:
    """nnU-Net's own five folds: scikit-learn's ``KFold(5, shuffle=True, random_state=12345)`` over the sorted ids.

    With fewer than five cases there are none, and every case trains.
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
        raise ManifestError(f'channel_names must be like {{"0": "CT"}}, numbered from 0; found {names!r}')
    if "dataset" in content:
        raise ManifestError("dataset lists files one by one, which medseg does not read; write a manifest instead")
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
        "channels": [{"name": name, "modality": MODALITIES.get(name.lower(), name)} for name in channels],
        "labels": labels,
        "ignore_label": ignored,
        "files": _patterns(folder, case_ids, len(channels), suffix_of(files[0])),
        "cases": case_ids,
        "folds": _folds(folder / SPLITS_FILE, case_ids),
        "licence": str(content.get("licence") or content.get("license") or ""),
        "citations": [str(content["reference"])] if content.get("reference") else [],
    }


def _labels(item: Any) -> dict[str, int]:
    """Name → value; version 1 and the Decathlon write value → name."""
    if not isinstance(item, Mapping):
        raise ManifestError(f'labels must be like {{"background": 0, "tumour": 1}}, found {item!r}')
    if all(isinstance(value, str) for value in item.values()):
        try:
            return {name: int(value) for value, name in item.items()}
        except ValueError:
            raise ManifestError(f"labels must lead from names to whole numbers, found {dict(item)}") from None
    regions = [str(name) for name, value in item.items() if isinstance(value, list)]
    if regions:
        raise ManifestError(
            f"labels: {', '.join(regions)} are regions of several values, which a manifest cannot say; "
            "give each value a name in labels"
        )
    return {str(name): value for name, value in item.items()}


def _label_files(folder: Path, content: Mapping[str, Any]) -> list[Path]:
    below = folder / "labelsTr"
    if not below.is_dir():
        raise ManifestError(f"no folder labelsTr beside it in {folder}; a raw nnU-Net data set has one")
    ending = str(content.get("file_ending") or "")
    if ending and not suffix_of(f"case{ending}"):
        raise ManifestError(f"file_ending {ending!r} is no format medseg reads; convert the files to .nii.gz")
    files = sorted(file for file in below.iterdir() if suffix_of(file) and not file.name.startswith("."))
    files = [file for file in files if not ending or file.name.endswith(ending)]
    if not files:
        raise ManifestError(f"{below} holds no label map{f' that ends in {ending}' if ending else ''}")
    endings = {suffix_of(file) for file in files}
    if len(endings) > 1:
        raise ManifestError(f"{below} holds {' and '.join(sorted(endings))} files; keep one kind")
    expected = content.get("numTraining")
    if isinstance(expected, int) and expected != len(files):
        raise ManifestError(f"numTraining is {expected}, but {below} holds {len(files)} label maps; correct either")
    return files


def _patterns(folder: Path, case_ids: list[str], num_channels: int, suffix: str) -> dict[str, Any]:
    plain, numbered = f"imagesTr/{{case}}{suffix}", [f"imagesTr/{{case}}_{c:04d}{suffix}" for c in range(num_channels)]
    has_plain = any((folder / plain.format(case=case)).is_file() for case in case_ids)
    has_numbered = any((folder / numbered[0].format(case=case)).is_file() for case in case_ids)
    if has_plain and not has_numbered:
        if num_channels > 1:
            raise ManifestError(
                f"{folder / plain.format(case=case_ids[0])} is one file for {num_channels} channels; split it into "
                "_0000, _0001, … (nnUNetv2_convert_MSD_dataset does)"
            )
        return {"image": plain, "label": f"labelsTr/{{case}}{suffix}"}
    return {"image": numbered, "label": f"labelsTr/{{case}}{suffix}"}


def _folds(splits: Path, case_ids: list[str]) -> dict[int, list[str]]:
    if not splits.is_file():
        return default_folds(case_ids)
    try:
        content = json.loads(splits.read_text(encoding="utf-8"))
        return {number: [str(case) for case in split["val"]] for number, split in enumerate(content)}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ManifestError(f"{splits}: not a list of train and val ({error}); remove it or write it again") from None
