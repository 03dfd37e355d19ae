"""Intensity normalisation chosen by modality: one clip and one affine map a channel, so it can be undone."""

import math
import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.meta_obj import get_track_meta
from monai.transforms import InvertibleTransform, MapTransform
from monai.utils import TraceKeys, convert_to_tensor

from medseg.errors import ShapeError
from medseg.transforms.case import case_name
from medseg.transforms.intensity_scheme import ChannelScaling, checked_scheme, scaling_of

# the keys of inverse traces: without this, PersistentDataset(track_meta=True) could not read its own files back
torch.serialization.add_safe_globals([TraceKeys])

_RECORDED = ("shift", "scale")  # what `inverse` needs

Normalization = Mapping[str, Any] | Sequence[Mapping[str, Any]]


class NormalizeIntensityByModality(InvertibleTransform):
    """Normalise each channel by its own scheme; float32 in, float32 out of any real type.

    Schemes (a dictionary a channel, `{"scheme": name, parameter: value}`), with x̄ and s the mean and the population
    standard deviation of the finite voxels considered:

    * `z_score`: (x − x̄) / s; `mean` and `std` fix them; `foreground` = `all` voxels, `nonzero` ones, or those inside
      a `mask` handed to the call, are considered. All voxels are mapped, the background too.
    * `ct`: clip to [`lower`, `upper`] in HU (data set percentiles 0.5 and 99.5, say), then (x − `mean`) / `std` of
      the data set's foreground (Isensee et al. 2021).
    * `percentile`: the image's own percentiles `lower` = 0.5 and `upper` = 99.5 become `out_min` = 0 and
      `out_max` = 1; `clip` = true cuts what lies beyond; `foreground` as above.
    * `window`: the fixed window [`lower`, `upper`] becomes [`out_min`, `out_max`]; `clip` = true.
    * `none`: nothing but the conversion to float32.

    A constant channel comes out as zeros (`percentile`: `out_min`). NaN and ±inf take no part in statistics; NaN
    becomes the mean (`z_score`), the lower bound (`ct`, `percentile`, `window`) or 0 (`none`), ±inf the largest and
    smallest finite voxel. A warning that names the file says so.

    `inverse` undoes the affine part; clipped voxels come back as the bounds.

    Args:
        normalization: one dictionary a channel, or a single one for all channels.
        spatial_dims: axes of an image; a volume of one more is taken as a stack of images along its last axis, each
            with statistics of its own. None takes every image as a whole.

    Raises:
        PlanError: unknown scheme or parameter, missing parameter, or a value that cannot be used.
        ShapeError: (call) the image's channels are not as many as the dictionaries.
    """

    def __init__(self, normalization: Normalization, spatial_dims: int | None = None) -> None:
        self.spatial_dims = spatial_dims
        self.is_shared = isinstance(normalization, Mapping)
        entries = [normalization] if isinstance(normalization, Mapping) else list(normalization)
        self.normalization = [checked_scheme(entry, channel) for channel, entry in enumerate(entries)]

    def scalings(self, img: torch.Tensor, mask: torch.Tensor | None = None, case: str = "") -> list[ChannelScaling]:
        """The scaling of every channel of (C, …), before NaN and inf are replaced."""
        entries = self.normalization * img.shape[0] if self.is_shared else self.normalization
        if len(entries) != img.shape[0]:
            raise ShapeError(
                f"{case or 'image'}: normalization is given for {len(entries)} channels, found {tuple(img.shape)}: "
                "the channel axis comes first"
            )
        return [scaling_of(img[c], entry, mask, f"{case or 'image'} channel {c}") for c, entry in enumerate(entries)]

    def __call__(self, img: Any, mask: Any = None) -> torch.Tensor:
        """Normalise (C, …); `mask` (1, …), non-zero inside, for schemes whose foreground is `mask`."""
        case, source = case_name(img), _plain(img).to(torch.float32)
        inside = None if mask is None else _plain(mask)[0]
        if self.spatial_dims is None or source.ndim - 2 != self.spatial_dims:
            out, scalings = self._normalised(source, inside, case)
            return self._recorded(out, img, {name: [getattr(s, name) for s in scalings] for name in _RECORDED})
        slices = [
            self._normalised(source[..., n], None if inside is None else inside[..., n], case)
            for n in range(source.shape[-1])
        ]
        extra = {name: [[getattr(s, name) for s in scalings] for _, scalings in slices] for name in _RECORDED}
        return self._recorded(torch.stack([out for out, _ in slices], -1), img, extra)

    def _normalised(
        self, source: torch.Tensor, inside: torch.Tensor | None, case: str
    ) -> tuple[torch.Tensor, list[ChannelScaling]]:
        scalings = self.scalings(source, inside, case)
        channels = []
        for c, scaling in enumerate(scalings):
            x = _finite(source[c], scaling.fill, f"{case or 'image'} channel {c}")
            if math.isfinite(scaling.lower) or math.isfinite(scaling.upper):
                x = x.clamp(scaling.lower, scaling.upper)
            channels.append((x - scaling.shift) / scaling.scale)
        return torch.stack(channels), scalings

    def _recorded(self, out: torch.Tensor, img: Any, extra: Mapping[str, Any]) -> torch.Tensor:
        """The result with the image's metadata and what `inverse` needs."""
        if not get_track_meta():
            return out
        result = MetaTensor(out)
        if isinstance(img, MetaTensor):
            result.copy_meta_from(img)
        self.push_transform(result, extra_info=dict(extra))
        return result

    def inverse(self, data: Any) -> torch.Tensor:
        """Undo the affine part, with the values recorded on the MetaTensor."""
        applied = self.pop_transform(data)[TraceKeys.EXTRA_INFO]
        scale, shift = (torch.tensor(applied[k], dtype=data.dtype, device=data.device) for k in ("scale", "shift"))
        if scale.ndim == 2:  # (slices, C)
            shape = (data.shape[0], *(1,) * (data.ndim - 2), -1)
            return data * scale.T.reshape(shape) + shift.T.reshape(shape)
        per_channel = (-1, *(1,) * (data.ndim - 1))
        return data * scale.view(per_channel) + shift.view(per_channel)


class NormalizeIntensityByModalityd(MapTransform, InvertibleTransform):
    """Dictionary form of `NormalizeIntensityByModality`.

    Args:
        keys: images, all with the same channels.
        normalization: see the array form.
        spatial_dims: see the array form.
        mask_key: key of the (1, …) mask for schemes whose foreground is `mask`.
        allow_missing_keys: skip keys a case lacks.
    """

    def __init__(
        self,
        keys: KeysCollection,
        normalization: Normalization,
        mask_key: str | None = None,
        allow_missing_keys: bool = False,
        spatial_dims: int | None = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask_key = mask_key
        self.normalizer = NormalizeIntensityByModality(normalization, spatial_dims)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.normalizer(d[key], None if self.mask_key is None else d[self.mask_key])
        return d

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.normalizer.inverse(d[key])
        return d


def _plain(array: Any) -> torch.Tensor:
    return array.as_tensor() if isinstance(array, MetaTensor) else convert_to_tensor(array)


def _finite(x: torch.Tensor, replacement: float, where: str) -> torch.Tensor:
    """`x` with NaN replaced, and ±inf by the extreme finite voxels; said, and free when there are none."""
    finite = torch.isfinite(x)
    if bool(finite.all()):
        return x
    warnings.warn(f"{where}: {int((~finite).sum())} voxels are NaN or infinite, replaced", stacklevel=3)
    rest = x[finite]
    low, high = (float(rest.min()), float(rest.max())) if rest.numel() else (replacement, replacement)
    return torch.nan_to_num(x, nan=replacement, posinf=high, neginf=low)


NormalizeIntensityByModalityD = NormalizeIntensityByModalityDict = NormalizeIntensityByModalityd
