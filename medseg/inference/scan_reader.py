"""Reading scans by MONAI's `LoadImaged` as `medseg predict` reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import ImageReader
from monai.utils import ensure_tuple

from medseg.inference.scan import Scan, check_one_grid
from medseg.volumes import read_volume


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
