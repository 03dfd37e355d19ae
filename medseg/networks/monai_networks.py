"""Build networks of MONAI by name, for models that were trained with them.

They keep their own classes, so that the weights keep their keys. Only the classes listed here are built. Their
arguments are plain values, and MONAI looks up the names of layers in its own tables.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from typing import Any

from torch import nn

from medseg.errors import NetworkError, first_line
from medseg.networks.size_limit import WithoutInitialization, check_size

PREFIX = "monai."
# They return one tensor in eval mode, of the spatial size of their input.
MONAI_CLASSES = (
    "AttentionUnet", "BasicUNet", "DynUNet", "SegResNet", "SegResNetDS", "SwinUNETR", "UNETR", "UNet", "VNet",
)  # fmt: skip

# MONAI calls it when the network runs.
_NEED_EINOPS = ("SwinUNETR", "UNETR")


def list_monai_networks() -> list[str]:
    """Return the names that `create_monai_network` accepts, e.g. `monai.SegResNet`."""
    return [f"{PREFIX}{name}" for name in MONAI_CLASSES]


def create_monai_network(
    name: str,
    in_channels: int,
    out_channels: int,
    max_bytes: int | None = None,
    initialize: bool = True,
    **arguments: Any,
) -> nn.Module:
    """Create a network of MONAI.

    Args:
        name: `monai.` and the name of the class.
        in_channels, out_channels, max_bytes, initialize: see `medseg.networks.create`.
        **arguments: of the class, as plain values.

    Returns:
        The network in training mode.

    Raises:
        NetworkError: the name or an argument is not possible, or MONAI needs a package that is not installed.
    """
    # Beside this module's functions, because medseg.networks is imported without MONAI's networks.
    import monai.networks.nets as nets
    from monai.utils import OptionalImportError

    from medseg.networks.presets import check_argument_names

    short = name.removeprefix(PREFIX)
    if short not in MONAI_CLASSES:
        raise NetworkError(f"network {name!r}: not known; expected one of {', '.join(list_monai_networks())}")
    if short in _NEED_EINOPS and find_spec("einops") is None:
        raise NetworkError(f"{name}: needs the package einops, which is not installed; pip install einops")
    network_class: type[nn.Module] = getattr(nets, short)
    check_argument_names(name, network_class, arguments)
    build = partial(network_class, in_channels=in_channels, out_channels=out_channels, **arguments)
    try:
        check_size(name, build, max_bytes)
        with nullcontext() if initialize else WithoutInitialization():
            return build()
    except OptionalImportError as error:
        raise NetworkError(f"{name}: needs a package that is not installed: {first_line(error)}; install it") from error
    except NetworkError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, AssertionError, NotImplementedError) as error:
        raise NetworkError(f"{name}: cannot be built with these arguments: {first_line(error)}") from error
