"""Export the network of a bundle for other runtimes."""

from __future__ import annotations

from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from medseg import weights
from medseg.bundle.configs import format_json
from medseg.bundle.folder import BundleFolder
from medseg.bundle.golden import golden_input
from medseg.bundle.loading import load_network
from medseg.errors import BundleError, NetworkError, OptionError
from medseg.networks import Ensemble
from medseg.networks.serialization import export_onnx, export_torchscript
from medseg.plan import Plan
from medseg.volumes.files import file_sha256, read_json, replacing

FORMATS = ("torchscript", "onnx", "safetensors")
RUNNER = "run_onnx.py"
DESCRIPTION_FORMAT = "medseg network description 1"
# Largest difference of ONNX Runtime's logits from PyTorch's, as a share of their standard deviation.
PARITY = 1e-3


def export(bundle: str | Path, format: Literal["torchscript", "onnx", "safetensors"], out: str | Path) -> Path:
    """Write the network of a bundle with its promoted weights.

    TorchScript and ONNX files hold the network from a normalised tile to logits. A safetensors file holds only the
    weights, with the plan's digest as metadata.

    Beside an ONNX file, its description `<name>.json` states the steps before and after the network, and `run_onnx.py`
    performs them with NumPy and ONNX Runtime alone. The file is compared with the network before it is kept.

    Args:
        bundle: folder of the bundle.
        format: format of the file.
        out: the file, with the ending of the format (`.ts` or `.pt`, `.onnx`, `.safetensors`).

    Returns:
        Path of the file.

    Raises:
        WeightsError, BundleError: as in `medseg.load`.
        OptionError: the format is unknown.
        NetworkError: the ending does not belong to the format, the packages for ONNX are not installed, or ONNX Runtime
            gives other logits than PyTorch.
    """
    if format not in FORMATS:
        raise OptionError(f"format {format!r}: expected one of {', '.join(FORMATS)}")
    network = load_network(bundle)
    if format == "torchscript":
        return export_torchscript(network, out)
    folder = BundleFolder(Path(bundle))
    if format == "onnx":
        return _export_onnx(network, folder, Path(out))
    weights.write(out, network, {"bundle": folder.name, "plan_digest": folder.plan.digest})
    return Path(out)


class _SideBySide(nn.Module):
    """Return the logits of all members of an ensemble side by side, as `StackedBackend` does."""

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        self.members, self.in_channels, self.axes = ensemble.members, ensemble.in_channels, ensemble.axes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([member(x) for member in self.members], dim=1)


def _export_onnx(network: nn.Module, folder: BundleFolder, out: Path) -> Path:
    plan, description = folder.plan, out.with_suffix(".json")
    if description.exists():
        found = read_json(description, BundleError)
        if not isinstance(found, dict) or found.get("format") != DESCRIPTION_FORMAT:
            raise BundleError(f"{description}: is in the way and not written by medseg; choose another name for {out}")
    # nnU-Net's way blends the logits of every member before they are averaged.
    members = len(network.members) if isinstance(network, Ensemble) and plan.resampling is not None else 1
    exported = _SideBySide(network) if isinstance(network, Ensemble) and members > 1 else network
    path = export_onnx(exported, out, (1, plan.in_channels, *plan.tile))
    difference = _onnx_difference(exported, path, plan)
    if difference > PARITY:
        path.unlink()
        raise NetworkError(
            f"{path}: ONNX Runtime's logits differ from PyTorch's by {difference:.2g} standard deviations, at most "
            f"{PARITY:g} are accepted; the file was removed"
        )
    content: dict[str, Any] = {
        "format": DESCRIPTION_FORMAT,
        "network": path.name,
        "network_sha256": file_sha256(path),
        "members": members,
        "bundle": folder.name,
        "plan_digest": plan.digest,
        "parity": f"logits differ from PyTorch's by at most {difference:.2g} standard deviations",
        "steps": _steps(plan),
        "plan": plan.to_dict(),
    }
    written = {description: format_json(content) + "\n"}
    if plan.regions is None:  # the runner cannot find regions in a scan
        runner = files("medseg.bundle") / "template" / RUNNER
        written[path.with_name(RUNNER)] = runner.read_text(encoding="utf-8")
    for file, text in written.items():
        with replacing(file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return path


def _onnx_difference(network: nn.Module, path: Path, plan: Plan) -> float:
    """Return the largest difference of ONNX Runtime's logits for the golden input, in standard deviations."""
    if find_spec("onnxruntime") is None:
        raise NetworkError(f"{path}: comparing it with the network needs onnxruntime; pip install 'medseg[export]'")
    import onnxruntime

    tile = golden_input(plan.in_channels, tuple(plan.tile))
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    found = session.run(["logits"], {"image": tile.numpy()})[0]
    with torch.inference_mode():
        expected = network.eval()(tile).numpy()
    return float(np.abs(found - expected).max() / max(float(expected.std()), 1e-12))


_RESTORING = {
    None: ["Resample the logits linearly to the voxels of the scan."],
    "probabilities": [
        "Compute the probabilities (softmax; or sigmoid less one half), and treat them as logits from here on.",
        "Resample them linearly to the voxels of the scan.",
    ],
    "labels": ["Take the logits of the nearest voxel for each voxel of the scan."],
}


def _steps(plan: Plan) -> list[str]:
    """Describe the steps of a prediction in words; the values are in the plan."""
    if plan.resampling is not None:
        return [
            "Read the voxels (i, j, k) of each channel; with resampling.axes RAS, turn the array to RAS+ first.",
            "Reverse the order of the axes to (k, j, i), then apply resampling.transpose.",
            "Crop to the smallest box with every voxel that is not zero in some channel.",
            "Normalise each channel (normalization) over the box. Foreground mask: the voxels that are not zero in "
            "some channel, with holes filled; the others stay 0.",
            "Resample to round(spacing of the scan / plan.spacing * voxels) voxels per axis (resampling.image). Voxel "
            "n of the result lies at (n + 1/2) * old / new - 1/2 of the input. Clip to the input's range.",
            "Pad with 0 to at least a tile, half of it (rounded down) before the image.",
            "Predict tiles at equal distances of at most (1 - overlap) * tile.",
            "Blend logits * gaussian weights (standard deviation tile / 8, 10 in the middle) in half precision.",
            "If there are several members, average their blended logits in half precision.",
            "Resample the logits to the box (resampling.logits), in half precision again after a spline.",
            "softmax: take the class of the largest logit. sigmoid: draw the regions whose logit is positive over each "
            "other, with the values of regions_class_order.",
            "Put the labels into the whole scan and undo the order of the axes.",
        ]
    return [
        "Read the voxels (i, j, k) of each channel and reorder and flip the axes to plan.orientation.",
        "Resample linearly to plan.spacing (null: keep the scan's). The first voxels of both grids coincide; the "
        "result has round((voxels - 1) * spacing / plan.spacing + 1) voxels per axis.",
        "Normalise each channel (normalization).",
        f"Pad to at least a tile, half of it (rounded down) before the image ({plan.padding or 'with 0'}).",
        "Predict tiles in steps of floor(tile * (1 - overlap)), the last one moved back inside.",
        "Blend logits by gaussian weights (standard deviation tile / 8, at least 0.001), or by equal ones (blending).",
        *_RESTORING[plan.restoring],
        "softmax: take the class of the largest logit. sigmoid: draw the regions whose logit is positive over each "
        "other, in the order of the labels.",
    ]
