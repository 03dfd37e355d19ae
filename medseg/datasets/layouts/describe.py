"""Recognise how a folder arranges a data set, and describe it as a manifest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medseg.datasets.layouts import bids, case_folders, two_folders
from medseg.datasets.layouts.folder_layout import CaseFiles, Layout, relative
from medseg.datasets.layouts.label_table import LabelTable, find_table, read_table
from medseg.datasets.layouts.label_values import (
    are_pictures,
    dimensions,
    label_scheme,
    named_scheme,
    read_label_values,
)
from medseg.datasets.layouts.modality import modality_of_image, modality_of_name
from medseg.datasets.manifest import Manifest, Split
from medseg.datasets.manifest_content import SCHEMA_VERSION, parse_manifest
from medseg.datasets.stratified_folds import stratified_folds
from medseg.errors import GeometryError, ManifestError, VolumeError
from medseg.volumes import read_channel_grid, read_label_map

FINDERS: tuple[Callable[[Path], Layout | None], ...] = (bids.find, two_folders.find, case_folders.find)
_COLORS = ("red", "green", "blue")


def describe_layout(
    folder: Path,
    labels: Path | None = None,
    ignored: int | None = None,
    modality: str | None = None,
    problems: list[str] | None = None,
) -> Manifest:
    """Describe a folder that has no manifest and no `dataset.json`; see ``describe_dataset``."""
    layout = find_layout(folder)
    found = list(layout.problems)
    if not layout.cases:
        raise ManifestError(found[0] if found else f"{folder}: holds no case; add images and label maps")
    table = find_table(folder) if labels is None else read_table(labels)
    _check_colors(layout, table)
    label_of = {case.id: case.label for case in layout.cases}
    values, unreadable = read_label_values(label_of, are_colors=table is not None and table.has_colors)
    found += unreadable
    if problems is not None:
        problems += found
    elif found:
        raise ManifestError(found[0] + (f" (and {len(found) - 1} more such problems)" if len(found) > 1 else ""))
    cases = [case for case in layout.cases if case.id in values]
    if not cases:
        raise ManifestError(found[0])
    occurring = set[int]().union(*values.values())
    if table is not None:
        scheme = named_scheme(table, occurring, ignored)
    else:
        scheme = label_scheme(occurring, folder, are_pictures([case.label for case in cases]), ignored)
    spatial_dims, channels = _channels(layout, cases, modality)
    content: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "name": folder.resolve().name,
        "description": f"{len(cases)} cases from {layout.kind}.",
        "spatial_dims": spatial_dims,
        "channels": channels,
        **scheme.content,
        **_files(layout, cases),
    }
    manifest = replace(parse_manifest(content, folder), folder=folder, present_values=values)
    parts = {part: tuple(case for case in ids if case in values) for part, ids in layout.splits.items()}
    if parts.get("training") and parts.get("validation"):
        split = Split(parts["training"], parts["validation"], parts.get("test", ()))
        return replace(manifest, splits={0: split})
    if parts.get("training") and parts.get("test"):
        folds = stratified_folds([case for case in manifest.cases if case.id in parts["training"]], values)
        tested = {len(folds): parts["test"]}
        return replace(manifest, folds={**{n: tuple(ids) for n, ids in folds.items()}, **tested}, test_fold=len(folds))
    return with_stratified_folds(manifest)


def with_stratified_folds(manifest: Manifest) -> Manifest:
    """Return the data set with folds by patient in which every label is as evenly spread as possible."""
    values = manifest.present_values
    if values is None:
        root = manifest.folder
        assert root is not None  # only manifests of a folder are described
        label_of = {case.id: manifest.paths(root, case.id)["label"][0] for case in manifest.cases}
        values, problems = read_label_values(label_of, manifest.has_colored_labels)
        if problems:
            raise ManifestError(problems[0] + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""))
    folds = stratified_folds(manifest.cases, values)
    return replace(manifest, folds={number: tuple(ids) for number, ids in folds.items()}, splits={}, test_fold=None)


def _check_colors(layout: Layout, table: LabelTable | None) -> None:
    """Refuse label maps in colours without a table of them."""
    first = layout.cases[0].label
    if (table is None or not table.has_colors) and are_pictures([first]):
        try:
            read_label_map(first)
        except VolumeError as error:
            if read_channel_grid(first)[1] == 3:
                raise ManifestError(
                    f"{first}: is a label map in colours, of which no table says what they are; give a file with the "
                    "columns name, r, g and b with --labels, or save label values"
                ) from error


def find_layout(folder: Path) -> Layout:
    """Return the layout of a folder.

    Raises:
        ManifestError: it has none that medseg knows, or several.
    """
    layouts = [layout for find in FINDERS if (layout := find(folder)) is not None]
    with_cases = [layout for layout in layouts if layout.cases]
    if len(with_cases) > 1:
        raise ManifestError(
            f"{folder}: can be read as {' and as '.join(layout.kind for layout in with_cases)}; move one of them to "
            "another folder, or write a manifest"
        )
    if with_cases or layouts:
        return (with_cases or layouts)[0]
    raise ManifestError(
        f"{folder}: no layout of a data set that medseg knows; expected folders such as images and labels, imagesTr "
        "and labelsTr with dataset.json, one folder per case, BIDS folders sub-*, or manifest.yaml"
    )


def _channels(layout: Layout, cases: Sequence[CaseFiles], modality: str | None) -> tuple[int, list[dict[str, str]]]:
    """Return the number of spatial axes, and name and modality of each channel, of the first readable case."""
    error: Exception | None = None
    for case in cases:
        try:
            facts = [dimensions(path) for path in case.images]
            break
        except (VolumeError, GeometryError) as reason:
            error = error or reason
    else:
        raise ManifestError(f"{error}; no image of the data set can be read")
    spatial_dims, num_channels = facts[0]
    if len(case.images) > 1 or (layout.channels and num_channels == 1):
        names = [f"channel {int(name)}" if name.isdecimal() else name for name in layout.channels]
    elif num_channels == 3 and are_pictures(case.images):
        names = list(_COLORS)
    else:
        names = [f"channel {number}" for number in range(num_channels)] if num_channels > 1 else ["image"]
    modalities = [modality or modality_of_name(name) or modality_of_image(case.images[0]) for name in names]
    return spatial_dims, [
        {"name": name, "modality": modality} for name, modality in zip(names, modalities, strict=True)
    ]


def _files(layout: Layout, cases: Sequence[CaseFiles]) -> dict[str, Any]:
    """Return the keys `files` and `cases`: patterns if they describe every case, otherwise the files of each case."""
    folder = layout.folder
    first = cases[0]
    patterns = [path.replace(first.id, "{case}") for path in relative([*first.images, first.label], folder)]
    if all(
        [pattern.replace("{case}", case.id) for pattern in patterns] == relative([*case.images, case.label], folder)
        for case in cases
    ):
        files = {"image": patterns[:-1] if len(patterns) > 2 else patterns[0], "label": patterns[-1]}
        return {"files": files, "cases": [_case(case) for case in cases]}
    return {
        "cases": [
            {
                **_case(case),
                "image": relative(case.images, folder) if len(case.images) > 1 else relative(case.images, folder)[0],
                "label": relative([case.label], folder)[0],
            }
            for case in cases
        ]
    }


def _case(case: CaseFiles) -> dict[str, str]:
    return {"id": case.id, "patient": case.patient or case.id}
