"""Published layouts whose weights load into medseg's networks."""

from collections.abc import Mapping

from torch import Tensor

from medseg.weights.layouts.convolutional import (
    UNET3D_PRELU,
    UNET_NNUNET,
    UNET_PADDED,
    UNET_PADDED_BILINEAR,
    UNET_PLUS_PLUS_PREACTIVATION,
    UNET_RESIDUAL_ENCODER,
    UNET_SHALLOW,
)
from medseg.weights.layouts.layout import Layout
from medseg.weights.layouts.transformer import UNETR_MONAI, UNETR_RELU

LAYOUTS = (
    UNET3D_PRELU,
    UNET_SHALLOW,
    UNET_PADDED,  # before the bilinear one, whose keys are a subset of these
    UNET_PADDED_BILINEAR,
    UNET_PLUS_PLUS_PREACTIVATION,
    UNETR_RELU,
    UNETR_MONAI,
    UNET_RESIDUAL_ENCODER,
    UNET_NNUNET,
)

__all__ = ["LAYOUTS", "Layout", "detect"]


def detect(state: Mapping[str, Tensor]) -> Layout | None:
    """Return the published layout of a state dict, or None if it has our own keys or unknown ones."""
    return next((layout for layout in LAYOUTS if layout.recognizes(state)), None)
