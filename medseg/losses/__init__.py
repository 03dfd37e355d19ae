"""Losses with per-voxel weights, which MONAI lacks; for all others use `monai.losses`."""

from medseg.losses.weighted import DeepSupervisionLoss, WeightedCrossEntropyLoss, WeightedDiceCELoss

__all__ = ["DeepSupervisionLoss", "WeightedCrossEntropyLoss", "WeightedDiceCELoss"]
