"""Starting a training from weights that exist."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from medseg import weights


def load_initial_weights(network: torch.nn.Module, path: str | Path | None) -> torch.nn.Module:
    """Load `path` into `network` for fine-tuning; None or an empty string leaves the fresh weights.

    A file trained for another number of classes or input channels is adapted (see `medseg.weights.load_into`) and
    what was adapted is said in a warning.

    Raises:
        WeightsError: the file is absent or does not fit in any other way.
    """
    if path:
        report = weights.load_into(network, path, adapt=True)
        warnings.warn(f"training starts from {path}: {report}", stacklevel=2)
    return network
