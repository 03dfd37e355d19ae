"""Reading scans by MONAI's `LoadImaged` as `medseg predict` reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import ImageReader, ImageWriter
from monai.utils import MetaKeys, ensure_tuple

from medseg.inference.cases import find_cases
from medseg.inference.scan import Scan, check_one_grid
from medseg.volumes import Grid, Volume, check_input, read_header, read_volume, write_volume


class ScanReader(ImageReader):
    """A `reader` for `LoadImaged`: the formats and the checks of `medseg predict`, a file a channel.

    MONAI's own readers need a package more for NRRD and MetaImage, and take voxels that are not numbers.
    """

    def verify_suffix(self, filename: Any) -> bool:
        """Whether to try; a file that is none medseg reads is refused by name."""
        return True

    def read(self, data: Any, **options: Any) -> list[Path]:
        """The files, still to be read: an error here would have MONAI try its other readers."""
        return [Path(file) for file in ensure_tuple(data)]

    def get_data(self, img: Sequence[Path]) -> tuple[np.ndarray, dict[str, Any]]:
        """The channels (C, *native grid) in float32, and their metadata.

        Raises:
            VolumeError: a file cannot be read, or holds voxels that are not finite.
            GeometryError: the channels lie on different grids.
        """
        volumes = [read_volume(path) for path in img]
        check_one_grid(volumes)
        image = Scan(tuple(volumes)).to_tensor()
        return image.numpy(), {**image.meta, "affine": image.affine.numpy(), "original_channel_dim": 0}


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
        header = read_header(scan) if scan.is_file() else None
        self.like = Volume(array, Grid(array.shape, affine), header=header)

    def write(self, filename: Any, verbose: bool = True, **options: Any) -> None:
        """Write the file, in the format of its name."""
        super().write(filename, verbose=verbose)
        write_volume(Path(filename), self.like.array, self.like)


def scan_files(inputs: Iterable[str | Path], num_channels: int = 1) -> list[dict[str, Any]]:
    """One `{"image": files, "case": name}` a case that the inputs name (see `find_cases`).

    Raises:
        VolumeError: as `find_cases`, or an input is absent, empty or may not be read.
    """
    cases = find_cases(inputs, num_channels)
    for case in cases:
        for path in case.paths:
            check_input(path)
    return [{"image": [str(path) for path in case.paths], "case": case.name} for case in cases]
