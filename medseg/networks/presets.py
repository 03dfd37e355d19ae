"""Create networks by name: each preset is a published variant, and every argument can be overridden."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from contextlib import nullcontext
from functools import partial
from typing import Any

from torch import nn

from medseg.errors import NetworkError, did_you_mean
from medseg.networks.monai_networks import PREFIX, create_monai_network
from medseg.networks.size_limit import WithoutInitialization, check_size
from medseg.networks.unet import UNet, UNet3D
from medseg.networks.unet_plus_plus import UNetPlusPlus
from medseg.networks.unetr import UNETR

# MONAI's names of arguments that have another name here.
MONAI_NAMES = {
    "feature_size": "channels",
    "filters": "channels",
    "features": "channels",
    "kernel_size": "kernel_sizes",
    "num_res_units": "residual",
    "res_block": "residual",
    "act": "activation",
    "norm_name": "norm",
    "hidden_size": "embedding_channels",
    "mlp_dim": "mlp_channels",
    "img_size": "image_size",
    "upsample": "upsampling",
    "deep_supervision": "heads",
}


def check_argument_names(what: str, network_class: type[nn.Module], given: Iterable[str]) -> None:
    """Refuse arguments that a network does not take, and propose the name that was probably meant.

    Args:
        what: beginning of the error message.
        network_class: class of the network.
        given: names of the arguments.

    Raises:
        NetworkError: a name is unknown.
    """
    known = [*inspect.signature(network_class).parameters]
    for name in given:
        if name in known:
            continue
        hint = did_you_mean(MONAI_NAMES.get(name, name), known) or f"; expected one of {', '.join(known)}"
        raise NetworkError(f"{what}: unknown argument {name!r}{hint}")


_PRESETS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    # Ronneberger et al. 2015, Figure 1: 31,030,658 parameters at 1 → 2 channels
    "unet_ronneberger2015": (
        UNet,
        {
            "channels": (64, 128, 256, 512, 1024),
            "norm": "none",
            "padding": "valid",
            "dropout": 0.5,
            "initialization": "he_normal",
        },
    ),
    # The padded re-implementation with batch normalisation: 31,036,546 parameters at 1 → 2 channels
    "unet_padded": (
        UNet,
        {"channels": (64, 128, 256, 512, 1024), "norm": "batch", "conv_bias": False, "odd_sizes": "pad"},
    ),
    # The same with bilinear upsampling: 17,261,890 parameters at 1 → 2 channels
    "unet_padded_bilinear": (
        UNet,
        {
            "channels": (64, 128, 256, 512, 512),
            "norm": "batch",
            "conv_bias": False,
            "upsampling": "linear",
            "align_corners": True,
            "odd_sizes": "pad",
        },
    ),
    # The re-implementation with three poolings, whose logits pass ReLU and BN: 8,563,078 parameters at 1 → 2 channels
    "unet_shallow": (
        UNet,
        {
            "channels": (64, 128, 256, 512),
            "norm": "batch",
            "order": "conv_act_norm",
            "padding": "valid",
            "upsampling_kernel_size": 3,
            "head": "conv_act_norm",
            "head_kernel_size": 3,
        },
    ),
    # The U-Net of nnU-Net (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z) with its 3D stages: 31,194,050
    # parameters at 1 → 2 channels (nnU-Net builds 1,544 more, heads for deep supervision)
    "unet_isensee2021": (
        UNet,
        {
            "spatial_dims": 3,
            "channels": (32, 64, 128, 256, 320, 320),
            "norm": "instance",
            "activation": "leaky_relu",
            "downsampling": "strided",
            "initialization": "he_normal",
        },
    ),
    # The residual-encoder U-Net of nnU-Net (Isensee et al. 2024, arXiv:2404.09556) with its 3D stages: 102,348,226
    # parameters at 1 → 2 channels (nnU-Net builds 1,544 more, heads for deep supervision)
    "unet_residual_encoder": (
        UNet,
        {
            "spatial_dims": 3,
            "channels": (32, 64, 128, 256, 320, 320),
            "convolutions_per_stage": (1, 3, 4, 6, 6, 6),
            "decoder_convolutions": 1,
            "norm": "instance",
            "activation": "leaky_relu",
            "residual": True,
        },
    ),
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
    # The padded re-implementation with batch normalisation and PReLU: 19,077,859 parameters at 3 → 3 channels
    "unet3d_prelu": (
        UNet3D,
        {"channels": (64, 128, 256, 512), "norm": "batch", "activation": "prelu", "padding": "same"},
    ),
    # Zhou et al. 2018 with one head: 9,042,177 parameters at 3 → 1 channels (heads="all": 9,042,276)
    "unetplusplus_zhou2018": (UNetPlusPlus, {"channels": (32, 64, 128, 256, 512), "norm": "none"}),
    # The pre-activation re-implementation with its four heads: 47,195,340 parameters at 3 → 3 channels
    "unetplusplus_preactivation": (
        UNetPlusPlus,
        {
            "channels": (64, 128, 256, 512, 1024),
            "norm": "batch",
            "node_order": "norm_act_conv",
            "upsampling_kernel_size": 4,
            "head": "norm_act_conv",
            "head_kernel_size": 3,
            "heads": "all",
        },
    ),
    # Hatamizadeh et al. 2021 with the authors' decoder, 1 → 14 channels at 96³: 92,579,758 parameters in convolutions
    # and linear layers (the 92.58 M the authors publish), 92,784,046 in all
    "unetr_hatamizadeh2021": (UNETR, {"image_size": 96, "taps": (3, 6, 9, 12)}),
    # The same as MONAI builds it, with skips taken one block later
    "unetr_monai": (UNETR, {"image_size": 96, "taps": (4, 7, 10, 12)}),
    # The plain re-implementation: 148,955,299 parameters at 4 → 3 channels and 128³ voxels
    "unetr_relu": (
        UNETR,
        {
            "image_size": 128,
            "channels": (64, 128, 256, 512),
            "mlp_channels": 2048,
            "mlp_activation": "relu",
            "qkv_bias": True,
            "taps": (3, 6, 9, 12),
            "encoder_norm": "unused",
            "norm_eps": 1e-6,
            "position_std": 0.0,
            "norm": "batch",
            "norm_affine": True,
            "activation": "relu",
            "conv_bias": True,
            "upsampling_bias": True,
            "residual": False,
            "dropout": 0.1,
        },
    ),
}


def list_presets() -> list[str]:
    """Return the names `create` accepts, sorted."""
    return sorted(_PRESETS)


def create(
    name: str,
    in_channels: int,
    out_channels: int,
    *,
    max_bytes: int | None = None,
    initialize: bool = True,
    **overrides: Any,
) -> nn.Module:
    """Create a network from a preset.

    Args:
        name: one of `list_presets()`, or a network of MONAI such as `monai.SegResNet`; see
            `medseg.networks.monai_networks`.
        in_channels: channels of the input.
        out_channels: channels of the logits, which are the classes including the background.
        max_bytes: limit of the parameters, checked before memory is allocated; None for the physical memory.
        initialize: False leaves the values of the parameters undefined, for a network into which weights are loaded at
            once. It saves the time of drawing them.
        **overrides: arguments of the network's class that replace the preset's, as plain values like those of a
            plan.json, e.g. `channels=(24, 48, 96, 192), norm="instance", padding="same"`.

    Returns:
        The network in training mode.

    Raises:
        NetworkError: the name is unknown, or an argument is unknown or not possible.
    """
    if name not in _PRESETS and not name.startswith(PREFIX):
        raise NetworkError(f"network {name!r}: no such preset; expected one of {', '.join(list_presets())}")
    for argument, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
        if not isinstance(channels, int) or channels < 1:
            raise NetworkError(f"{name}: {argument}={channels!r}: expected a positive integer")
    if name.startswith(PREFIX):
        return create_monai_network(name, in_channels, out_channels, max_bytes, initialize, **overrides)
    network_class, arguments = _PRESETS[name]
    check_argument_names(f"{name} ({network_class.__name__})", network_class, overrides)
    build = partial(network_class, in_channels, out_channels, **{**arguments, **overrides})
    try:
        check_size(name, build, max_bytes)
        with nullcontext() if initialize else WithoutInitialization():
            return build()
    except TypeError as error:
        raise NetworkError(f"{name} ({network_class.__name__}): {error}") from error
