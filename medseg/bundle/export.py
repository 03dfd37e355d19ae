"""A bundle's network for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from medseg import weights
from medseg.bundle.folder import BundleFolder
from medseg.bundle.loading import load_network
from medseg.errors import OptionError
from medseg.networks.serialization import export_onnx, export_torchscript

FORMATS = ("torchscript", "onnx", "safetensors")


def export(bundle: str | Path, format: Literal["torchscript", "onnx", "safetensors"], out: str | Path) -> Path:
    """Write a bundle's network with its promoted weights.

    torchscript and onnx hold the network from a normalised tile to logits; the steps around it are those of the
    bundle's plan. safetensors holds the weights alone, with the plan's digest as metadata.

    Args:
        bundle: the bundle's folder.
        format: what to write.
        out: the file; its ending must be the format's (`.ts` or `.pt`, `.onnx`, `.safetensors`).

    Raises:
        WeightsError, BundleError: as `medseg.load`.
        OptionError: there is no such format.
        NetworkError: the ending is another format's, or ONNX's packages are not installed.
    """
    if format not in FORMATS:
        raise OptionError(f"format must be {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, found {format!r}")
    network = load_network(bundle)
    if format == "torchscript":
        return export_torchscript(network, out)
    if format == "onnx":
        return export_onnx(network, out)
    folder = BundleFolder(Path(bundle))
    weights.write(out, network, {"bundle": folder.name, "plan_digest": folder.plan.digest})
    return Path(out)
