"""Export the network of a bundle for other runtimes."""

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
    """Write the network of a bundle with its promoted weights.

    TorchScript and ONNX files hold the network from a normalised tile to logits; the steps before and after it are
    described by the bundle's plan. A safetensors file holds only the weights, with the plan's digest as metadata.

    Args:
        bundle: folder of the bundle.
        format: format of the file.
        out: the file, with the ending of the format (`.ts` or `.pt`, `.onnx`, `.safetensors`).

    Returns:
        Path of the file.

    Raises:
        WeightsError, BundleError: as in `medseg.load`.
        OptionError: the format is unknown.
        NetworkError: the ending does not belong to the format, or the packages for ONNX are not installed.
    """
    if format not in FORMATS:
        raise OptionError(f"format {format!r}: expected one of {', '.join(FORMATS)}")
    network = load_network(bundle)
    if format == "torchscript":
        return export_torchscript(network, out)
    if format == "onnx":
        return export_onnx(network, out)
    folder = BundleFolder(Path(bundle))
    weights.write(out, network, {"bundle": folder.name, "plan_digest": folder.plan.digest})
    return Path(out)
