"""Every preset at a width that runs in milliseconds, for the tests that all networks share."""

from typing import Any

import torch
from torch import nn

from medseg.networks import create

_TRANSFORMER = {"taps": (1, 2), "embedding_channels": 8, "num_heads": 2, "mlp_channels": 12, "image_size": 8}

TINY: dict[str, dict[str, Any]] = {
    "unet_ronneberger2015": {"channels": (4, 8, 16)},
    "unet_padded": {"channels": (4, 8, 16)},
    "unet_padded_bilinear": {"channels": (4, 8, 8)},
    "unet_shallow": {"channels": (4, 8, 16)},
    "unet_isensee2021": {"channels": (4, 8, 16)},
    "unet_residual_encoder": {"channels": (4, 8, 16), "convolutions_per_stage": (1, 2, 1)},
    "unet3d_cicek2016": {"channels": (4, 8, 16)},
    "unet3d_prelu": {"channels": (4, 8, 16)},
    "unetplusplus_zhou2018": {"channels": (4, 8, 16)},
    "unetplusplus_preactivation": {"channels": (4, 8, 16)},
    "unetr_hatamizadeh2021": {"channels": (4, 8), **_TRANSFORMER},
    "unetr_monai": {"channels": (4, 8), **_TRANSFORMER},
    "unetr_relu": {"channels": (4, 8), **_TRANSFORMER},
}
# The spatial dimensions they are published for; the shared tests run both.
PUBLISHED_DIMS = {
    name: 3 if name.startswith(("unet3d", "unetr", "unet_residual", "unet_isensee")) else 2 for name in TINY
}


def tiny(name: str, spatial_dims: int | None = None, **overrides: Any) -> nn.Module:
    """Return preset `name` at a tiny width, 2 → 3 channels, with reproducible weights."""
    torch.manual_seed(0)
    dims = spatial_dims or PUBLISHED_DIMS[name]
    arguments = {"spatial_dims": dims, **TINY[name], **overrides}
    if dims == 3 and name in ("unet_ronneberger2015", "unet_shallow"):
        arguments["channels"] = arguments["channels"][:2]  # unpadded: three stages would need large volumes
    return create(name, 2, 3, **arguments)


def image(network: nn.Module, batch: int = 2, larger: int = 1) -> torch.Tensor:
    """Return a random batch for `network` with small valid sizes, different on each axis."""
    shape = [axis.valid_sizes(larger + 3)[larger + i % 3] for i, axis in enumerate(network.axes)]
    return torch.randn(batch, network.in_channels, *shape, generator=torch.Generator().manual_seed(1))
