"""The transforms that the conformance tests cover, with sample data and an exact comparison."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from medseg import transforms
from medseg.transforms import VoxelIndex


@dataclass(frozen=True)
class Entry:
    """One transform to test.

    Args:
        make: returns a new transform with the given `allow_missing_keys`.
        keys: keys that it needs.
        label_keys: keys of label maps that it changes, without new label values.
        added_labels: label values that it may add all the same (background of a ridge, padding of a crop).
        moves_grid: True if the output has another grid, and so another affine, than the input.
        inverse_tolerance: largest error of call and inverse for images of unit variance; None without an inverse.
        needs_affine: True if it takes MetaTensors only.
    """

    name: str
    make: Callable[[bool], Any]
    keys: tuple[str, ...]
    label_keys: tuple[str, ...] = ()
    added_labels: tuple[int, ...] = ()
    moves_grid: bool = False
    inverse_tolerance: float | None = None
    needs_affine: bool = False


BOTH = ("image", "label")

ENTRIES = [
    Entry(
        "normalize z-score",
        lambda missing: transforms.NormalizeIntensityByModalityd(
            "image", {"scheme": "z_score"}, allow_missing_keys=missing
        ),
        ("image",),
        inverse_tolerance=1e-5,
    ),
    Entry(
        "normalize channels separately",
        lambda missing: transforms.NormalizeIntensityByModalityd(
            "image",
            [
                {"scheme": "percentile", "lower": 0, "upper": 100},
                {"scheme": "ct", "lower": -50, "upper": 60, "mean": 1, "std": 2},
            ],
            allow_missing_keys=missing,
        ),
        ("image",),
        inverse_tolerance=1e-5,
    ),
    Entry("voxel index", lambda missing: transforms.LabelVoxelIndexd("label", allow_missing_keys=missing), ("label",)),
    Entry(
        "crop by label",
        lambda missing: transforms.RandCropByLabeld(
            BOTH, "label", 4, {0: 1, 1: 2, 2: 2}, num_samples=2, allow_missing_keys=missing
        ),
        BOTH,
        label_keys=("label",),
        moves_grid=True,
    ),
    Entry(
        "crop by label with padding",
        lambda missing: transforms.RandCropByLabeld(
            BOTH, "label", 10, [1, 2, 2], num_samples=2, allow_missing_keys=missing
        ),
        BOTH,
        label_keys=("label",),
        added_labels=(0,),
        moves_grid=True,
    ),
    Entry(
        "elastic",
        lambda missing: transforms.RandElasticDeformationd(BOTH, prob=1.0, allow_missing_keys=missing),
        BOTH,
        label_keys=("label",),
    ),
    Entry(
        "elastic with rotation, scaling and flips, with probability 0.7",
        lambda missing: transforms.RandElasticDeformationd(
            BOTH, prob=0.7, allow_missing_keys=missing, rotation_range=0.3, scale_range=0.2, flip=(0, 1)
        ),
        BOTH,
        label_keys=("label",),
    ),
    Entry(
        "boundary weight map",
        lambda missing: transforms.BoundaryWeightMapd("label", "weight", allow_missing_keys=missing),
        ("label",),
        label_keys=("label",),
        added_labels=(0,),
    ),
    Entry(
        "boundary weight map in mm",
        lambda missing: transforms.BoundaryWeightMapd(
            "label", "weight", spacing="affine", sigma_unit="mm", allow_missing_keys=missing
        ),
        ("label",),
        label_keys=("label",),
        added_labels=(0,),
        needs_affine=True,
    ),
    Entry(
        "keep labelled slices",
        lambda missing: transforms.KeepLabelledSlicesd("label", 0.3, axes=(0,), allow_missing_keys=missing),
        ("label",),
        label_keys=("label",),
        added_labels=(255,),
    ),
    Entry(  # the image serves as logits of two classes on their native grid
        "restore to native",
        lambda missing: transforms.RestoreToNatived("image", label_values=[0, 1], allow_missing_keys=missing),
        ("image",),
        needs_affine=True,
    ),
]

AFFINE = torch.tensor(
    [[-2.0, 0.1, 0.0, 10.0], [0.1, 1.0, 0.0, -20.0], [0.0, 0.0, 3.0, 5.0], [0.0, 0.0, 0.0, 1.0]], dtype=torch.float64
)
SHAPES = {2: (12, 9), 3: (11, 12, 9)}


def case(
    dims: int,
    number: int = 0,
    shape: Sequence[int] | None = None,
    values: Sequence[int] = (0, 1, 2),
    affine: torch.Tensor = AFFINE,
) -> dict[str, Any]:
    """Make a sample: a two-channel image, a label map with all `values`, and a name."""
    shape = SHAPES[dims] if shape is None else tuple(shape)
    generator = np.random.default_rng(number)
    image = generator.standard_normal((2, *shape), dtype=np.float32)
    label = np.full((1, *shape), values[0], np.uint8)
    for value in values[1:]:
        corner = [int(generator.integers(0, max(n - 3, 1))) for n in shape]
        label[(0, *(slice(c, c + 4) for c in corner))] = value
    meta = {
        "filename_or_obj": f"case_{number}.nii.gz",
        "original_affine": affine.clone(),
        "spatial_shape": list(shape),
    }
    return {
        "image": MetaTensor(torch.from_numpy(image), affine=affine.clone(), meta=dict(meta)),
        "label": MetaTensor(torch.from_numpy(label), affine=affine.clone(), meta=dict(meta)),
        "name": f"case {number}",
    }


def assert_identical(a: Any, b: Any, where: str = "result") -> None:
    """Assert equal types, values bit for bit, affines and (for samples) keys."""
    assert type(a) is type(b), f"{where}: {type(a)} and {type(b)}"
    if isinstance(a, Mapping):
        assert list(a) == list(b), f"{where}: keys {list(a)} and {list(b)}"
        for key in a:
            assert_identical(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_identical(x, y, f"{where}[{i}]")
    elif isinstance(a, VoxelIndex):
        assert a.shape == b.shape, where
        assert_identical(a.voxels, b.voxels, where)
    elif isinstance(a, torch.Tensor | np.ndarray):
        x, y = torch.as_tensor(a), torch.as_tensor(b)
        assert (x.dtype, x.shape) == (y.dtype, y.shape), f"{where}: {x.dtype}{x.shape} and {y.dtype}{y.shape}"
        assert np.array_equal(x.numpy(force=True), y.numpy(force=True), equal_nan=x.is_floating_point()), where
        if isinstance(a, MetaTensor):
            assert_identical(a.affine, b.affine, f"{where}.affine")
    else:
        assert a == b, where


def snapshot(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a deep copy with the metadata and applied operations of every MetaTensor."""
    kept: dict[str, Any] = copy.deepcopy(dict(data))
    for key, value in data.items():
        if isinstance(value, MetaTensor):
            kept[f"{key} meta"] = copy.deepcopy(dict(value.meta))
            kept[f"{key} operations"] = copy.deepcopy(value.applied_operations)
    return kept


def samples_of(result: Any) -> list[dict[str, Any]]:
    """Return the list of a multi-sample transform, or a single dictionary as a list."""
    return result if isinstance(result, list) else [result]
