"""The published layouts whose weights load into our networks."""

from collections.abc import Mapping

from torch import Tensor

from medseg.weights.layouts.layout import Layout
from medseg.weights.layouts.residual_encoder import UNET_RESIDUAL_ENCODER
from medseg.weights.layouts.unet import UNET_PADDED, UNET_PADDED_BILINEAR, UNET_SHALLOW
from medseg.weights.layouts.unet3d import UNET3D_PRELU
from medseg.weights.layouts.unet_plus_plus import UNET_PLUS_PLUS_PREACTIVATION
from medseg.weights.layouts.unetr import UNETR_MONAI, UNETR_RELU

LAYOUTS = (
    UNET3D_PRELU,
    UNET_SHALLOW,
    UNET_PADDED,  # before the bilinear one, whose keys are a part of its own
    UNET_PADDED_BILINEAR,
    UNET_PLUS_PLUS_PREACTIVATION,
    UNETR_RELU,
    UNETR_MONAI,
    UNET_RESIDUAL_ENCODER,
)

__all__ = ["LAYOUTS", "Layout", "detect"]


def detect(state: Mapping[str, Tensor]) -> Layout | None:
    """Return the published layout of `state`, or None if it is none of them (our own keys, or unknown ones)."""
    return next((layout for layout in LAYOUTS if layout.recognizes(state)), None)
