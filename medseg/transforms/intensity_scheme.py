"""Normalisation schemes: what each means for one channel of one image."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from medseg.errors import PlanError, ShapeError

# scheme → (required parameters, optional parameters with their defaults)
_SCHEMES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "z_score": ((), {"mean": None, "std": None, "foreground": "all"}),
    "ct": (("lower", "upper", "mean", "std"), {}),
    "percentile": (
        (),
        {"lower": 0.5, "upper": 99.5, "out_min": 0.0, "out_max": 1.0, "clip": True, "foreground": "all"},
    ),
    "window": (("lower", "upper"), {"out_min": 0.0, "out_max": 1.0, "clip": True}),
    "none": ((), {}),
}


@dataclass(frozen=True)
class ChannelScaling:
    """y = (min(max(x, lower), upper) − shift) / scale, NaN taken as `fill`: a scheme for one channel of one image."""

    shift: float = 0.0
    scale: float = 1.0
    lower: float = -math.inf
    upper: float = math.inf
    fill: float = 0.0


def normalization_for_modality(modality: str, fingerprint: Mapping[str, float] | None = None) -> dict[str, Any]:
    """The scheme a modality is normalised with when nobody says otherwise.

    Args:
        modality: `CT` (any case) takes the data set's values; `probability` and `mask` stay as they are; all else,
            MR included, is z-scored image by image.
        fingerprint: for CT, the data set's foreground `percentile_00_5`, `percentile_99_5`, `mean` and `std` in HU.

    Raises:
        PlanError: CT without these values.
    """
    if modality.strip().lower() in ("ct", "cbct"):
        needed = {"lower": "percentile_00_5", "upper": "percentile_99_5", "mean": "mean", "std": "std"}
        missing = [name for name in needed.values() if name not in (fingerprint or {})]
        if fingerprint is None or missing:
            raise PlanError(
                f"CT is normalised with its data set's values, missing {missing}: compute a fingerprint first"
            )
        return {"scheme": "ct", **{ours: float(fingerprint[theirs]) for ours, theirs in needed.items()}}
    if modality.strip().lower() in ("probability", "mask", "none"):
        return {"scheme": "none"}
    return {"scheme": "z_score"}


def checked_scheme(entry: Mapping[str, Any], channel: int) -> dict[str, Any]:
    """The entry with its defaults, or an error that says what is wrong with it."""
    where = f"normalization of channel {channel}"
    parameters = dict(entry)
    scheme = parameters.pop("scheme", None)
    if scheme not in _SCHEMES:
        raise PlanError(f"{where}: scheme must be one of {', '.join(_SCHEMES)}, found {scheme!r}")
    required, defaults = _SCHEMES[scheme]
    missing = [name for name in required if parameters.get(name) is None]
    unknown = sorted(set(parameters) - set(required) - set(defaults))
    if missing or unknown:
        raise PlanError(f"{where}: {scheme} takes {[*required, *defaults]}; missing {missing}, unknown {unknown}")
    checked = {**defaults, **parameters}
    if "lower" in checked and not checked["lower"] < checked["upper"]:
        raise PlanError(f"{where}: lower must be below upper, found {checked['lower']} and {checked['upper']}")
    if checked.get("std") is not None and not checked["std"] > 0:
        raise PlanError(f"{where}: std must be positive, found {checked['std']}")
    if (checked.get("mean") is None) != (checked.get("std") is None):
        raise PlanError(f"{where}: give mean and std together, or neither")
    if "out_min" in checked and not checked["out_min"] < checked["out_max"]:
        raise PlanError(f"{where}: out_min must be below out_max, found {checked['out_min']} and {checked['out_max']}")
    if scheme == "percentile" and not 0 <= checked["lower"] < checked["upper"] <= 100:
        raise PlanError(f"{where}: percentiles lie in 0..100, found {checked['lower']} and {checked['upper']}")
    if checked.get("foreground", "all") not in ("all", "nonzero", "mask"):
        raise PlanError(f"{where}: foreground must be all, nonzero or mask, found {checked['foreground']!r}")
    return {"scheme": scheme, **checked}


def scaling_of(x: torch.Tensor, entry: Mapping[str, Any], mask: torch.Tensor | None, where: str) -> ChannelScaling:
    """What a checked entry comes to for the channel `x` (…), float32, of one image."""
    scheme = entry["scheme"]
    if scheme == "none":
        return ChannelScaling()
    if scheme == "ct":
        return ChannelScaling(entry["mean"], entry["std"], entry["lower"], entry["upper"], fill=entry["lower"])
    if scheme == "window":
        return _rescaling(entry["lower"], entry["upper"], entry)
    if scheme == "z_score" and entry["mean"] is not None:
        return ChannelScaling(entry["mean"], entry["std"], fill=entry["mean"])
    considered = _considered(x, entry["foreground"], mask, where)
    if considered.numel() == 0:
        _warn(f"{where}: no finite voxel in the foreground ({entry['foreground']}), left unscaled")
        return ChannelScaling()
    lowest, highest = float(considered.min()), float(considered.max())
    if lowest == highest:
        _warn(f"{where}: constant intensity {lowest:g}, nothing to scale by")
        out = entry.get("out_min", 0.0)
        return ChannelScaling(lowest - out, 1.0, lowest, lowest, fill=lowest)
    if scheme == "z_score":
        variance, mean = torch.var_mean(considered, correction=0)
        return ChannelScaling(float(mean), math.sqrt(float(variance)), fill=float(mean))
    levels = np.percentile(considered.cpu().numpy(), [entry["lower"], entry["upper"]])
    lower, upper = (float(level) for level in levels)
    if lower == upper:
        _warn(f"{where}: percentiles {entry['lower']} and {entry['upper']} are both {lower:g}, scaled by the extremes")
        lower, upper = lowest, highest
    return _rescaling(lower, upper, entry)


def _rescaling(lower: float, upper: float, entry: Mapping[str, Any]) -> ChannelScaling:
    """[lower, upper] → [out_min, out_max]."""
    scale = (upper - lower) / (entry["out_max"] - entry["out_min"])
    bounds = (lower, upper) if entry["clip"] else (-math.inf, math.inf)
    return ChannelScaling(lower - entry["out_min"] * scale, scale, *bounds, fill=lower)


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=5)


def _considered(x: torch.Tensor, foreground: str, mask: torch.Tensor | None, where: str) -> torch.Tensor:
    """The finite voxels that statistics are taken over."""
    keep = torch.isfinite(x)
    if foreground == "nonzero":
        keep &= x != 0
    elif foreground == "mask":
        if mask is None or mask.shape != x.shape:
            found = "none" if mask is None else tuple(mask.shape)
            raise ShapeError(
                f"{where}: foreground is mask, so a mask of shape {tuple(x.shape)} is needed, found {found}"
            )
        keep &= mask != 0
    return x if bool(keep.all()) else x[keep]
