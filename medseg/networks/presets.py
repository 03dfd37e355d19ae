"""Networks by name: each preset is one published variant, and every argument can be overridden."""

from typing import Any

from torch import nn

from medseg.errors import NetworkError
from medseg.networks.unet3d import UNet3D

_PRESETS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    # Çiçek et al. 2016, Figure 2 and Section 3: 19,069,955 parameters at 3 → 3 channels
    "unet3d_cicek2016": (
        UNet3D,
        {
            "channels": (64, 128, 256, 512),
            "norm": "batch_current",
            "norm_affine": False,
            "activation": "relu",
            "padding": "valid",
            "upsampling_bias": False,
        },
    ),
    # the padded re-implementation with batch normalisation and PReLU: 19,077,859 parameters at 3 → 3 channels
    "unet3d_prelu": (
        UNet3D,
        {"channels": (64, 128, 256, 512), "norm": "batch", "activation": "prelu", "padding": "same"},
    ),
}


def list_presets() -> list[str]:
    """Return the names `create` accepts, sorted."""
    return sorted(_PRESETS)


def create(name: str, in_channels: int, out_channels: int, **overrides: Any) -> nn.Module:
    """Return a new network by its preset's name.

    Args:
        name: one of `list_presets()`.
        in_channels: channels of the input.
        out_channels: channels of the logits (classes, the background counted).
        **overrides: arguments of the network's class that replace the preset's, plain values as in a plan.json,
            e.g. `channels=(24, 48, 96, 192), norm="instance", padding="same"`.

    Returns:
        The network, with fresh weights, in training mode.

    Raises:
        NetworkError: the name is unknown, or an argument is unknown or cannot be used.
    """
    if name not in _PRESETS:
        raise NetworkError(f"network {name!r} is not one of: {', '.join(list_presets())}")
    network_class, arguments = _PRESETS[name]
    try:
        return network_class(in_channels, out_channels, **{**arguments, **overrides})
    except TypeError as error:
        raise NetworkError(f"{name} ({network_class.__name__}): {error}") from error
