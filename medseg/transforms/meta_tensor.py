"""Read the values, the file name and the spacing of an array that may be one of MONAI's MetaTensors."""

from typing import Any

import numpy as np
from monai.data import MetaTensor
from monai.utils import ImageMetaKey


def without_meta(array: Any) -> Any:
    """Return the plain tensor inside a MetaTensor, sharing its memory; return any other array as it is."""
    return array.as_tensor() if isinstance(array, MetaTensor) else array


def case_name(array: Any) -> str:
    """Return the file that an array was read from, for messages; empty if the array does not know it."""
    return str(array.meta.get(ImageMetaKey.FILENAME_OR_OBJ, "")) if isinstance(array, MetaTensor) else ""


def spacing_of(array: Any) -> np.ndarray | None:
    """Return the voxel size in mm of each spatial axis of a channel-first MetaTensor; None for other arrays."""
    return np.asarray(array.pixdim, dtype=float)[: array.ndim - 1] if isinstance(array, MetaTensor) else None
