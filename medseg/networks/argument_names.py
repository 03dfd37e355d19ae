"""Which arguments a network's class takes, and what those who know MONAI's networks look for."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable

from torch import nn

from medseg.errors import NetworkError

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
    """Refuse arguments that the class does not take, with the one that was probably meant.

    Args:
        what: how the message begins.
        network_class: the class.
        given: the names.

    Raises:
        NetworkError: for the first unknown one.
    """
    known = [*inspect.signature(network_class).parameters]
    for name in given:
        if name in known:
            continue
        close = difflib.get_close_matches(name, known, n=1)
        meant = MONAI_NAMES.get(name, close[0] if close else "")
        hint = f"did you mean {meant}?" if meant in known else f"known are {', '.join(known)}"
        raise NetworkError(f"{what}: unknown argument {name!r}; {hint}")
