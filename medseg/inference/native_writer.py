"""Writing what `RestoreToNatived` made by MONAI's `SaveImaged`, as `medseg predict` writes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import ImageWriter
from monai.utils import MetaKeys

from medseg.volumes import SUFFIXES, Grid, Volume, suffix_of, write_volume
from medseg.volumes.nifti import read_nifti_header


class NativeWriter(ImageWriter):
    """A `writer` for `SaveImaged` that keeps the scan's grid: shape, affine, sform, qform, their codes, and units.

    MONAI's own writer sets both codes to 1, no units, and drops a last axis of one voxel. The file is written whole or
    not at all, in the smallest type that holds its labels.

    Args:
        **options: what `SaveImaged` hands to every writer; the type is that of the array.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()

    def set_data_array(self, data_array: Any, channel_dim: int | None = 0, **options: Any) -> None:
        """Take the first channel of an array (C, *native grid), all of (*native grid) where channel_dim is None."""
        array = data_array.numpy(force=True) if isinstance(data_array, torch.Tensor) else np.asarray(data_array)
        self.data_obj = array if channel_dim is None else np.take(array, 0, axis=channel_dim)

    def set_metadata(self, meta_dict: Mapping[str, Any] | None, **options: Any) -> None:
        """Take the affine and, where the scan is a NIfTI file, its header."""
        meta = meta_dict or {}
        known, affine = np.asarray(meta.get(MetaKeys.AFFINE, np.eye(4)), dtype=np.float64), np.eye(4)
        if known.shape == (3, 3):
            affine[:2, :2], affine[:2, 3] = known[:2, :2], known[:2, 2]
        else:
            affine = known
        array, scan = self.data_obj, Path(str(meta.get("filename_or_obj", "")))
        # of the file itself: in the metadata MONAI's Spacing has replaced the voxel sizes by the model grid's
        header = read_nifti_header(scan) if scan.is_file() and SUFFIXES.get(suffix_of(scan)) == "nifti" else None
        self.like = Volume(array, Grid(array.shape, affine), header=header)

    def write(self, filename: Any, verbose: bool = True, **options: Any) -> None:
        """Write the file, in the format of its name."""
        super().write(filename, verbose=verbose)
        write_volume(Path(filename), self.like.array, self.like)
