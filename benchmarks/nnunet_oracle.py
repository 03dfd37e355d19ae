"""Segment a scan with nnU-Net's own predictor, for comparisons with imported models."""

from __future__ import annotations

import contextlib
import importlib
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from medseg.volumes import read_volume

VARIANTS = "nnunetv2.training.nnUNetTrainer.variants"
# Modules of trainers beside nnUNetTrainer itself. nnU-Net finds a trainer by importing all of its modules, one of which
# needs timm and so torchvision.
MODULES = {"nnUNetTrainerBN": f"{VARIANTS}.network_architecture.nnUNetTrainerBN"}


def nnunet_labels(
    model: Path, files: Sequence[str | Path], mirroring: bool = False, folds: Sequence[str] | None = None
) -> np.ndarray:
    """Return the labels of nnU-Net's predictor in fp32 on the CPU, with a step of half a tile.

    Args:
        model: folder of the model.
        files: one file per channel.
        mirroring: average over mirrored tiles.
        folds: None takes all folders `fold_*`.

    Returns:
        Labels in the axis order of the file.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        from nnunetv2.inference import predict_from_raw_data

        predict_from_raw_data.recursive_find_trainer_class_by_name = trainer_class
        predictor = predict_from_raw_data.nnUNetPredictor(
            tile_step_size=0.5, use_gaussian=True, use_mirroring=mirroring, device=torch.device("cpu"), allow_tqdm=False
        )
        # nnU-Net itself does not find the folder fold_all.
        found = folds or [folder.name.removeprefix("fold_") for folder in sorted(model.glob("fold_*"))]
        predictor.initialize_from_trained_model_folder(str(model), found, "checkpoint_final.pth")
        reader = predictor.plans_manager.image_reader_writer_class()
        image, properties = reader.read_images([str(file) for file in files])
        labels = predictor.predict_single_npy_array(image, properties)
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder) / f"labels{predictor.dataset_json['file_ending']}"
            reader.write_seg(labels, str(written), properties)
            return np.asarray(read_volume(written).array).astype(np.uint8)


def trainer_class(name: str) -> type:
    """Return a trainer of nnU-Net by its name."""
    module = importlib.import_module(MODULES.get(name, "nnunetv2.training.nnUNetTrainer.nnUNetTrainer"))
    return getattr(module, name if name in MODULES else "nnUNetTrainer")
