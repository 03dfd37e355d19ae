"""Run nnU-Net's own prediction of a preprocessed scan, with any network and any grid.

`nnUNetPredictor` and `LabelManager` are those of nnU-Net 2. Only its plans are replaced by the size of the tile.
Mirroring is off, as in all other methods that are measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn


def is_installed() -> bool:
    """Return True if nnU-Net is installed, as `make bench` does."""
    return find_spec("nnunetv2") is not None


class NNUNetPeer:
    """nnU-Net's sliding window, resampling of logits and decision.

    Args:
        network: returns logits.
        tile: in voxels, one size per axis.
        classes: number of classes, background included.
        device: where it predicts.
    """

    def __init__(
        self, network: nn.Module, tile: Sequence[int], classes: int, device: str | torch.device = "cpu"
    ) -> None:
        with redirect_stdout(StringIO()):  # it prints remarks on environment variables of its training
            from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
            from nnunetv2.utilities.label_handling.label_handling import LabelManager

            self.predictor: Any = nnUNetPredictor(
                tile_step_size=0.5,
                use_gaussian=True,
                use_mirroring=False,
                device=torch.device(device),
                allow_tqdm=False,
            )
        names = {"background": 0, **{f"class_{n}": n for n in range(1, classes)}}
        self.predictor.label_manager = LabelManager(names, None)
        self.predictor.configuration_manager = SimpleNamespace(patch_size=list(tile))
        self.predictor.network = network

    def labels(self, image: torch.Tensor, native: Sequence[int], spacing: Sequence[float]) -> np.ndarray:
        """Return the labels (*native) of a preprocessed image (C, …) with voxels of 1 mm.

        Args:
            image: (C, …).
            native: shape of the native grid in voxels.
            spacing: of the native grid in mm.
        """
        from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

        logits = self.predictor.predict_sliding_window_return_logits(image)
        # These are the arguments that nnU-Net's planner writes for logits.
        logits = resample_data_or_seg_to_shape(
            logits, list(native), [1.0] * 3, list(spacing), is_seg=False, order=1, order_z=0, force_separate_z=None
        )
        return np.asarray(self.predictor.label_manager.convert_logits_to_segmentation(logits))
