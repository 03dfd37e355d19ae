"""Compute the map of intensities that normalises a channel, from a scheme and the voxels of the channel."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from medseg.errors import PlanError, ShapeError, VolumeError

Normalization = Mapping[str, Any] | Sequence[Mapping[str, Any]]

# scheme: (required parameters, optional parameters with their defaults)
_SCHEMES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "z_score": ((), {"mean": None, "std": None, "foreground": "all", "outside": "normalized"}),
    "ct": (("lower", "upper", "mean", "std"), {}),
    "percentile": (
        (),
        {"lower": 0.5, "upper": 99.5, "out_min": 0.0, "out_max": 1.0, "clip": True, "foreground": "all"},
    ),
    "window": (("lower", "upper"), {"out_min": 0.0, "out_max": 1.0, "clip": True}),
    "none": ((), {}),
    "sequence": (("steps",), {}),
}

# Float32 keeps 16 of its 24 bits for contrast if values are at most so many times larger than their contrast.
SAFE_RATIO = 256
SAFE_SCALES = (1e-30, 1e30)
EXACT_IN_FLOAT32 = 2**24
# Among fewer voxels than this, one that differs is no surprise.
FEW_VOXELS = 64
CHUNK = 1 << 20


class ChannelNormalizer:
    """Normalise plain tensors; see `NormalizeIntensityByModality`, which is the same as a transform of MONAI.

    Args:
        normalization: one scheme per channel, or a single one for all channels.

    Raises:
        PlanError: a scheme or parameter is unknown, a parameter is missing, or a value is outside its range.
    """

    def __init__(self, normalization: Normalization) -> None:
        self.is_shared = isinstance(normalization, Mapping)
        entries = [normalization] if isinstance(normalization, Mapping) else list(normalization)
        self.normalization = [checked_scheme(entry, channel) for channel, entry in enumerate(entries)]

    def scalings(self, img: torch.Tensor, mask: torch.Tensor | None = None, case: str = "") -> list[ChannelScaling]:
        """Compute the scaling of every channel of (C, …) from its finite voxels."""
        entries = self.normalization * img.shape[0] if self.is_shared else self.normalization
        if len(entries) != img.shape[0]:
            raise ShapeError(
                f"{case or 'image'}: the image must have {len(entries)} channels, one per normalization, found shape "
                f"{tuple(img.shape)}; the channel axis comes first"
            )
        return [scaling_of(img[c], entry, mask, f"{case or 'image'} channel {c}") for c, entry in enumerate(entries)]

    def normalized(
        self, source: torch.Tensor, inside: torch.Tensor | None = None, case: str = ""
    ) -> tuple[torch.Tensor, list[ChannelScaling]]:
        """Return the normalised image in float32, and the scaling of each channel.

        Args:
            source: (C, …).
            inside: (…), non-zero inside, for schemes whose foreground is `mask`.
            case: name of the image in messages.
        """
        entries = self.normalization * len(source) if self.is_shared else self.normalization
        offsets = [
            contrast_offset(channel.numpy(force=True), entry, f"{case or 'image'} channel {c}")
            for c, (channel, entry) in enumerate(zip(source, entries, strict=False))
        ]
        image = torch.stack(
            [channel.to(torch.float32) if not offset else (channel.to(torch.float64) - offset).to(torch.float32)
             for channel, offset in zip(source, offsets, strict=False)]
        ) if len(offsets) == len(source) else source.to(torch.float32)  # fmt: skip
        scalings = self.scalings(image, inside, case)
        channels = []
        for c, scaling in enumerate(scalings):
            x = _finite(image[c], scaling.fill, f"{case or 'image'} channel {c}")
            if math.isfinite(scaling.lower) or math.isfinite(scaling.upper):
                x = x.clamp(scaling.lower, scaling.upper)
            channels.append(scaling.apply(x, out=None))
        # `inverse` returns the intensities that were given.
        recorded = [replace(s, shift=s.shift + offset) for s, offset in zip(scalings, offsets, strict=True)]
        return torch.stack(channels), recorded


@dataclass(frozen=True)
class ChannelScaling:
    """Map of one channel of one image: y = (min(max(x, lower), upper) − shift) / scale, with NaN replaced by `fill`.

    With `keeps_zero`, voxels that are zero stay zero.
    """

    shift: float = 0.0
    scale: float = 1.0
    lower: float = -math.inf
    upper: float = math.inf
    fill: float = 0.0
    keeps_zero: bool = False

    def apply(self, x: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        """Return (x − shift) / scale of a float32 tensor; without the clip.

        Args:
            x: the voxels.
            out: receives the result, which may be x itself; None allocates it.
        """
        if self.keeps_zero:
            zeros = x == 0
            return replace(self, keeps_zero=False).apply(x, out).masked_fill_(zeros, 0.0)
        if abs(self.shift) <= SAFE_RATIO * self.scale and SAFE_SCALES[0] < self.scale < SAFE_SCALES[1]:
            return torch.sub(x, self.shift, out=out).div_(self.scale)
        out = torch.empty_like(x) if out is None else out
        for source, target in zip(x.split(1), out.split(1), strict=True):
            target.copy_((source.to(torch.float64) - self.shift) / self.scale)
        return out


@dataclass(frozen=True)
class ScalingSequence(ChannelScaling):
    """Several maps one after the other. `shift` and `scale` are those of all together, without their clips."""

    steps: tuple[ChannelScaling, ...] = ()

    def apply(self, x: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        """Return the result of all steps, with their clips; see `ChannelScaling`."""
        for step in self.steps:
            if math.isfinite(step.lower) or math.isfinite(step.upper):
                x = out = torch.clamp(x, step.lower, step.upper, out=out)
            x = out = step.apply(x, out)
        return x


def checked_scheme(entry: Mapping[str, Any], channel: int) -> dict[str, Any]:
    """Return a scheme with its defaults.

    Raises:
        PlanError: the scheme or a parameter is unknown, missing or outside its range.
    """
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
    if scheme == "sequence":
        steps = checked["steps"]
        if not isinstance(steps, list | tuple) or not steps or not all(isinstance(step, Mapping) for step in steps):
            raise PlanError(f"{where}: sequence needs a list of schemes in steps, found {steps!r}")
        if any(step.get("scheme") == "sequence" for step in steps):
            raise PlanError(f"{where}: a step of a sequence cannot be a sequence; list its steps instead")
        return {"scheme": scheme, "steps": [checked_scheme(step, channel) for step in steps]}
    if "lower" in checked and not checked["lower"] < checked["upper"]:
        raise PlanError(f"{where}: lower must be below upper, found {checked['lower']} and {checked['upper']}")
    if checked.get("std") is not None and not checked["std"] > 0:
        raise PlanError(f"{where}: std must be positive, found {checked['std']}")
    if (checked.get("mean") is None) != (checked.get("std") is None):
        raise PlanError(f"{where}: give mean and std together, or neither")
    if "out_min" in checked and not checked["out_min"] < checked["out_max"]:
        raise PlanError(f"{where}: out_min must be below out_max, found {checked['out_min']} and {checked['out_max']}")
    if scheme == "percentile" and not 0 <= checked["lower"] < checked["upper"] <= 100:
        raise PlanError(f"{where}: percentiles must lie in 0..100, found {checked['lower']} and {checked['upper']}")
    if checked.get("foreground", "all") not in ("all", "nonzero", "mask"):
        raise PlanError(f"{where}: foreground must be all, nonzero or mask, found {checked['foreground']!r}")
    if checked.get("outside", "normalized") not in ("normalized", "unchanged"):
        raise PlanError(f"{where}: outside must be normalized or unchanged, found {checked['outside']!r}")
    if checked.get("outside") == "unchanged" and checked["foreground"] != "nonzero":
        raise PlanError(f"{where}: outside=unchanged needs foreground=nonzero, found {checked['foreground']!r}")
    return {"scheme": scheme, **checked}


def scaling_of(x: torch.Tensor, entry: Mapping[str, Any], mask: torch.Tensor | None, where: str) -> ChannelScaling:
    """Compute the map of a checked scheme for one float32 channel of an image."""
    if entry["scheme"] == "sequence":
        return _scaling_of_sequence(x, entry["steps"], mask, where)
    fixed = fixed_scaling(entry)
    if fixed is not None:
        return fixed
    return scaling_from(ArrayIntensities(_considered(x, entry["foreground"], mask, where)), entry, where)


def _scaling_of_sequence(
    x: torch.Tensor, entries: Sequence[Mapping[str, Any]], mask: torch.Tensor | None, where: str
) -> ScalingSequence:
    """Compute the maps of schemes that are applied one after the other, each from the result of those before it."""
    steps: list[ChannelScaling] = []
    current, shift, scale = x, 0.0, 1.0
    for entry in entries:
        if steps:
            current = ScalingSequence(steps=tuple(steps[-1:])).apply(current, None if current is x else current)
        steps.append(scaling_of(current, entry, mask, where))
        shift, scale = shift + scale * steps[-1].shift, scale * steps[-1].scale
    return ScalingSequence(shift, scale, fill=steps[0].fill, steps=tuple(steps))


def fixed_scaling(entry: Mapping[str, Any]) -> ChannelScaling | None:
    """Return the map of a checked scheme that is the same for every image; None if it depends on the image."""
    scheme = entry["scheme"]
    if scheme == "none":
        return ChannelScaling()
    if scheme == "ct":
        return ChannelScaling(entry["mean"], entry["std"], entry["lower"], entry["upper"], fill=entry["lower"])
    if scheme == "window":
        return _rescaling(entry["lower"], entry["upper"], entry)
    if scheme == "z_score" and entry["mean"] is not None:
        return ChannelScaling(
            entry["mean"], entry["std"], fill=entry["mean"], keeps_zero=entry["outside"] == "unchanged"
        )
    return None


class Intensities(Protocol):
    """Statistics of the considered voxels of a channel, whether they are in memory or not."""

    @property
    def count(self) -> int:
        """Number of voxels."""
        ...

    def extremes(self) -> tuple[float, float]:
        """Return the smallest and the largest value."""
        ...

    def inner_extremes(self) -> tuple[float, float]:
        """Return the second smallest and the second largest value."""
        ...

    def mean_and_std(self) -> tuple[float, float]:
        """Return the mean and the population standard deviation."""
        ...

    def percentiles(self, percents: Sequence[float]) -> list[float]:
        """Return percentiles by linear interpolation, as `numpy.percentile`."""
        ...


@dataclass(frozen=True)
class ArrayIntensities:
    """Statistics of float32 voxels in memory.

    Args:
        values: finite voxels, any shape.
    """

    values: torch.Tensor

    @property
    def count(self) -> int:
        """See `Intensities`."""
        return self.values.numel()

    def extremes(self) -> tuple[float, float]:
        """See `Intensities`."""
        return float(self.values.min()), float(self.values.max())

    def inner_extremes(self) -> tuple[float, float]:
        """See `Intensities`."""
        flat = self.values.reshape(-1)
        return float(flat.topk(2, largest=False).values[1]), float(flat.topk(2).values[1])

    def mean_and_std(self) -> tuple[float, float]:
        """See `Intensities`."""
        return _mean_and_std(self.values)

    def percentiles(self, percents: Sequence[float]) -> list[float]:
        """See `Intensities`."""
        return [float(level) for level in np.percentile(self.values.cpu().numpy(), list(percents))]


def scaling_from(considered: Intensities, entry: Mapping[str, Any], where: str) -> ChannelScaling:
    """Compute the map of a checked scheme from statistics of a channel.

    Args:
        considered: statistics of the voxels that the scheme considers.
        entry: a scheme whose map depends on the image.
        where: image and channel, for messages.
    """
    if considered.count == 0:
        _warn(f"{where}: no finite voxel in the foreground ({entry['foreground']}), the channel is left unscaled")
        return ChannelScaling()
    lowest, highest = considered.extremes()
    if lowest == highest:
        _warn(f"{where}: constant intensity {lowest:g}, so that the result is constant, too")
        out = entry.get("out_min", 0.0)
        return ChannelScaling(lowest - out, 1.0, lowest, lowest, fill=lowest)
    if entry["scheme"] == "z_score":
        mean, std = considered.mean_and_std()
        _check_scale(std, lowest, highest, where)
        count = considered.count
        if count >= FEW_VOXELS and max(highest - mean, mean - lowest) ** 2 > count * std**2 / 2:
            _warn_of_one_voxel(where, lowest, highest)
        return ChannelScaling(mean, std, fill=mean, keeps_zero=entry["outside"] == "unchanged")
    lower, upper = considered.percentiles([entry["lower"], entry["upper"]])
    if lower == upper:
        _warn(
            f"{where}: percentiles {entry['lower']} and {entry['upper']} are both {lower:g}; the channel is "
            "scaled by its extremes"
        )
        lower, upper = lowest, highest
    _check_scale(upper - lower, lowest, highest, where)
    if considered.count >= FEW_VOXELS and _has_one_outlier(considered, lower, upper):
        _warn_of_one_voxel(where, lowest, highest)
    return _rescaling(lower, upper, entry)


def contrast_offset(array: np.ndarray, entry: Mapping[str, Any], where: str) -> float:
    """Return what to subtract from a channel before it becomes float32, so that its contrast survives.

    Float32 has 24 bits. Values of 4·10⁹ with a contrast of some hundreds would become equal.

    Args:
        array: the voxels as stored.
        entry: the scheme, which must not depend on absolute intensities; for the others the offset is 0.
        where: image and channel, for messages.

    Raises:
        VolumeError: the voxels differ by less than float32 can tell.
    """
    if not array.size or not may_need_offset(array.dtype, entry):
        return 0.0
    return offset_of_range(float(array.min()), float(array.max()), array.dtype, where)


def may_need_offset(dtype: np.dtype, entry: Mapping[str, Any]) -> bool:
    """Return True if the extremes of a channel decide whether `contrast_offset` is 0."""
    is_relative = entry["scheme"] == "percentile" or (entry["scheme"] == "z_score" and entry.get("mean") is None)
    if not is_relative or entry.get("foreground") == "nonzero" or dtype.kind not in "uif":
        return False
    return dtype.itemsize > (4 if dtype.kind == "f" else 2)


def offset_of_range(lowest: float, highest: float, dtype: np.dtype, where: str) -> float:
    """Return the offset of `contrast_offset` from the extremes of a channel.

    Args:
        lowest: smallest voxel.
        highest: largest voxel.
        dtype: as stored.
        where: image and channel, for messages.
    """
    largest, contrast = max(abs(lowest), abs(highest)), highest - lowest
    if contrast == 0 or not math.isfinite(contrast) or (dtype.kind != "f" and largest <= EXACT_IN_FLOAT32):
        return 0.0
    if contrast < np.finfo(np.float32).tiny:
        raise VolumeError(
            f"{where}: intensities from {lowest!r} to {highest!r} are too close for float32; rescale them"
        )
    return lowest if largest > SAFE_RATIO * contrast else 0.0


def _mean_and_std(x: torch.Tensor) -> tuple[float, float]:
    """Compute mean and population standard deviation, in float64 where float32 cannot hold squares or contrast."""
    variance, mean = (float(value) for value in torch.var_mean(x, correction=0))
    std = math.sqrt(variance)
    if SAFE_SCALES[0] ** 0.5 < std < SAFE_SCALES[1] ** 0.5 and abs(mean) <= SAFE_RATIO * std:
        return mean, std
    parts = x.reshape(-1).split(CHUNK)
    mean = sum(float(part.sum(dtype=torch.float64)) for part in parts) / x.numel()
    variance = sum(float((part.to(torch.float64) - mean).square().sum()) for part in parts) / x.numel()
    return mean, math.sqrt(variance)


def _check_scale(scale: float, lowest: float, highest: float, where: str) -> None:
    if not 0 < scale <= torch.finfo(torch.float32).max:
        raise VolumeError(
            f"{where}: intensities from {lowest:g} to {highest:g} cannot be normalised, their scale is {scale:g}; "
            "rescale them, or replace voxels that are errors"
        )


def _has_one_outlier(considered: Intensities, lower: float, upper: float) -> bool:
    """Return True if one voxel makes more than half of the distance between two percentiles."""
    second_lowest, second_highest = considered.inner_extremes()
    return max(second_lowest - lower, upper - second_highest) > (upper - lower) / 2


def _warn_of_one_voxel(where: str, lowest: float, highest: float) -> None:
    _warn(
        f"{where}: one voxel rules the scale of the intensities, from {lowest:g} to {highest:g}; replace it "
        "if it is an error"
    )


def _rescaling(lower: float, upper: float, entry: Mapping[str, Any]) -> ChannelScaling:
    """Map [lower, upper] to [out_min, out_max]."""
    scale = (upper - lower) / (entry["out_max"] - entry["out_min"])
    bounds = (lower, upper) if entry["clip"] else (-math.inf, math.inf)
    return ChannelScaling(lower - entry["out_min"] * scale, scale, *bounds, fill=lower)


def _considered(x: torch.Tensor, foreground: str, mask: torch.Tensor | None, where: str) -> torch.Tensor:
    """Return the finite voxels that the statistics are computed from."""
    keep = torch.isfinite(x)
    if foreground == "nonzero":
        keep &= x != 0
    elif foreground == "mask":
        if mask is None or mask.shape != x.shape:
            found = "none" if mask is None else tuple(mask.shape)
            raise ShapeError(
                f"{where}: the foreground is a mask, which must have shape {tuple(x.shape)}, found {found}"
            )
        keep &= mask != 0
    return x if bool(keep.all()) else x[keep]


def _finite(x: torch.Tensor, replacement: float, where: str) -> torch.Tensor:
    """Replace NaN by `replacement` and ±inf by the extreme finite voxels, and warn; return a finite array as it is."""
    finite = torch.isfinite(x)
    if bool(finite.all()):
        return x
    warnings.warn(f"{where}: {int((~finite).sum())} voxels are NaN or infinite and were replaced", stacklevel=3)
    rest = x[finite]
    low, high = (float(rest.min()), float(rest.max())) if rest.numel() else (replacement, replacement)
    return torch.nan_to_num(x, nan=replacement, posinf=high, neginf=low)


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=6)
