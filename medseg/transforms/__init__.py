"""Transforms MONAI lacks, or lacks in label-safe form: array and dictionary forms, each imported when first used."""

from importlib import import_module
from typing import Any

_MODULES = {
    "intensity": "NormalizeIntensityByModality",
    "crop_by_label": "RandCropByLabel",
    "voxel_index": "LabelVoxelIndex",
    "elastic.transform": "RandElasticDeformation",
    "boundary_weight": "BoundaryWeightMap",
    "restore.native": "RestoreToNative",
    "labelled_slices": "KeepLabelledSlices",
    "slice_spacing": "SliceSpacing",
}

_HOMES = {
    f"{transform}{suffix}": module for module, transform in _MODULES.items() for suffix in ("", "d", "D", "Dict")
} | {
    "VoxelIndex": "voxel_index",
    "boundary_weight_map": "boundary_weight",
    "normalization_for_modality": "intensity",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
