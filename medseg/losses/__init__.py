"""Losses with a weight a voxel; for all others use `monai.losses`."""

from medseg.losses.cross_entropy import WeightedCrossEntropyLoss
from medseg.losses.deep_supervision import DeepSupervisionLoss
from medseg.losses.dice_ce import WeightedDiceCELoss

__all__ = ["DeepSupervisionLoss", "WeightedCrossEntropyLoss", "WeightedDiceCELoss"]
