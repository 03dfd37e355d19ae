"""Normalise intensities by modality: per channel one clip and one affine map, which can be inverted."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.meta_obj import get_track_meta
from monai.transforms import InvertibleTransform, MapTransform
from monai.utils import TraceKeys, convert_to_tensor

from medseg.transforms.meta_tensor import case_name, without_meta
from medseg.transforms.normalization import ChannelNormalizer, Normalization

_RECORDED = ("shift", "scale")  # what `inverse` needs

# Without this, PersistentDataset(track_meta=True) could not read the keys of inverse traces from its own files.
torch.serialization.add_safe_globals([TraceKeys])


class NormalizeIntensityByModality(ChannelNormalizer, InvertibleTransform):
    """Normalise each channel by its own scheme; takes any real dtype and returns float32.

    A scheme is a dictionary `{"scheme": name, parameter: value}`. x̄ and s are the mean and the population standard
    deviation of the considered finite voxels.

    * `z_score`: (x − x̄) / s, or with fixed `mean` and `std`. `foreground` chooses the considered voxels: `all`, the
      `nonzero` ones, or those inside a `mask` that is given to the call. All voxels are mapped, also the background,
      unless `outside` is `unchanged`: then voxels that are zero stay zero, as in MONAI's
      `NormalizeIntensity(nonzero=True)`.
    * `ct`: clip to [`lower`, `upper`] in HU (for example the data set's percentiles 0.5 and 99.5), then subtract `mean`
      and divide by `std`, those of the data set's foreground (Isensee et al. 2021).
    * `percentile`: map the image's own percentiles `lower` = 0.5 and `upper` = 99.5 to `out_min` = 0 and `out_max` = 1;
      `clip` = true clips to this range; `foreground` as above.
    * `window`: map the fixed window [`lower`, `upper`] to [`out_min`, `out_max`]; `clip` = true.
    * `none`: convert to float32 only.
    * `sequence`: apply the schemes of the list `steps` one after the other, each to the result of the one before.

    A constant channel becomes zero (with `percentile`: `out_min`). NaN and ±inf are left out of the statistics. NaN
    becomes the mean (`z_score`), the lower bound (`ct`, `percentile`, `window`) or 0 (`none`). ±inf becomes the largest
    or smallest finite voxel. Each of these cases warns and names the file, and so does one voxel that makes most of the
    scale, such as an error of 3·10³⁸.

    `inverse` undoes the affine map; clipped voxels become the bounds. Zeros that were left unchanged are mapped, too.

    Args:
        normalization: one dictionary per channel, or a single one for all channels.
        spatial_dims: number of spatial axes of an image. A volume with one axis more is a stack of images along its
            last axis, each with its own statistics. None normalises every image as a whole.

    Raises:
        PlanError: a scheme or parameter is unknown, a parameter is missing, or a value is outside its range.
        ShapeError: (call) the number of channels is not the number of dictionaries, or a mask is missing.
        VolumeError: (call) the scale of a channel is 0 or infinite.
    """

    def __init__(self, normalization: Normalization, spatial_dims: int | None = None) -> None:
        super().__init__(normalization)
        self.spatial_dims = spatial_dims

    def __call__(self, img: Any, mask: Any = None) -> torch.Tensor:
        """Normalise an image.

        Args:
            img: (C, …) array, tensor or MetaTensor.
            mask: (1, …), non-zero inside, for schemes whose foreground is `mask`.
        """
        case, source = case_name(img), convert_to_tensor(without_meta(img))
        inside = None if mask is None else convert_to_tensor(without_meta(mask))[0]
        if self.spatial_dims is None or source.ndim - 2 != self.spatial_dims:
            out, scalings = self.normalized(source, inside, case)
            return self._recorded(out, img, {name: [getattr(s, name) for s in scalings] for name in _RECORDED})
        slices = [
            self.normalized(source[..., n], None if inside is None else inside[..., n], case)
            for n in range(source.shape[-1])
        ]
        extra = {name: [[getattr(s, name) for s in scalings] for _, scalings in slices] for name in _RECORDED}
        return self._recorded(torch.stack([out for out, _ in slices], -1), img, extra)

    def _recorded(self, out: torch.Tensor, img: Any, extra: Mapping[str, Any]) -> torch.Tensor:
        """Return the result with the image's metadata and the values that `inverse` needs."""
        if not get_track_meta():
            return out
        result = MetaTensor(out)
        if isinstance(img, MetaTensor):
            result.copy_meta_from(img)
        self.push_transform(result, extra_info=dict(extra))
        return result

    def inverse(self, data: Any) -> torch.Tensor:
        """Undo the affine map with the values recorded in the MetaTensor."""
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
        normalization, spatial_dims: see `NormalizeIntensityByModality`.
        mask_key: key of the (1, …) mask for schemes whose foreground is `mask`.
        allow_missing_keys: skip keys that a case lacks.
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


NormalizeIntensityByModalityD = NormalizeIntensityByModalityDict = NormalizeIntensityByModalityd
