"""Read the values, the file name and the spacing of an array that may be one of MONAI's MetaTensors.

Nothing here imports MONAI, which takes seconds: where nobody has imported it, no array can be a MetaTensor.
"""

import sys
from typing import Any

import numpy as np


def is_meta_tensor(array: Any) -> bool:
    """Return True for a MetaTensor of MONAI."""
    known = getattr(sys.modules.get("monai.data.meta_tensor"), "MetaTensor", None)
    return known is not None and isinstance(array, known)


def without_meta(array: Any) -> Any:
    """Return the plain tensor inside a MetaTensor, sharing its memory; return any other array as it is."""
    return array.as_tensor() if is_meta_tensor(array) else array


def case_name(array: Any) -> str:
    """Return the file that an array was read from, for messages; empty if the array does not know it."""
    return str(array.meta.get("filename_or_obj", "")) if is_meta_tensor(array) else ""


def spacing_of(array: Any) -> np.ndarray | None:
    """Return the voxel size in mm of each spatial axis of a channel-first MetaTensor; None for other arrays."""
    return np.asarray(array.pixdim, dtype=float)[: array.ndim - 1] if is_meta_tensor(array) else None
