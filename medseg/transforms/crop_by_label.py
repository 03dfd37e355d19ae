"""Random training patches centred on chosen labels, at the cost of copying the patch."""

import warnings
from bisect import bisect_right
from collections.abc import Hashable, Mapping, Sequence
from copy import deepcopy
from functools import cache
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.meta_obj import get_track_meta
from monai.transforms import MapTransform, Randomizable
from monai.transforms.traits import MultiSampleTrait
from monai.utils import ImageMetaKey, MetaKeys

from medseg.errors import ShapeError
from medseg.transforms.meta_tensor import case_name
from medseg.transforms.voxel_index import VoxelIndex

Ratios = Sequence[float] | Mapping[Any, float] | None


def checked_ratios(ratios: Ratios) -> dict[int, float] | None:
    """Positive ratios by label value, from a sequence by label value or a mapping (JSON's string keys too).

    Raises:
        ValueError: a ratio is negative, or none is positive.
    """
    if ratios is None:
        return None
    pairs = ratios.items() if isinstance(ratios, Mapping) else enumerate(ratios)
    checked = {int(label): float(ratio) for label, ratio in pairs}
    if not checked or min(checked.values()) < 0 or not 0 < sum(checked.values()) < float("inf"):
        raise ValueError(f"ratios must be non-negative with a positive sum, found {ratios}")
    return {label: ratio for label, ratio in checked.items() if ratio > 0}


def choose_label(state: np.random.RandomState, odds: Mapping[int, float]) -> int:
    """One key of `odds`, with probability in proportion to its value (all positive)."""
    cumulative = list(accumulate(odds.values()))
    rank = bisect_right(cumulative, state.random_sample() * cumulative[-1])
    return list(odds)[min(rank, len(cumulative) - 1)]  # rounding may reach the very end


def crop_patch(
    image: Any,
    start: Sequence[int],
    size: Sequence[int],
    padding_value: float = 0.0,
    meta: Mapping[str, Any] | None = None,
) -> torch.Tensor:
    """Copy the patch of (C, …) whose first voxel is `start`; voxels outside the image hold `padding_value`.

    Args:
        image: tensor, array, or anything with a shape that gives arrays when sliced (memory maps, HDF5 data sets);
            nothing outside the patch is read.
        start: first voxel an axis; negative where the patch begins before the image.
        size: patch in voxels.
        padding_value: what lies outside the image.
        meta: entries added to the patch's meta data.

    Returns:
        (C, *size), contiguous, never sharing memory with `image`; a MetaTensor whose affine is the image's moved to
        the patch's first voxel, or a plain tensor where MONAI tracks no meta data.
    """
    # without its meta data: MetaTensor's bookkeeping at every step would cost more than copying a small patch
    source = image.as_tensor() if isinstance(image, MetaTensor) else image
    extents = tuple(source.shape[1:])
    if len(extents) != len(size):
        where = case_name(image) or "image"
        raise ShapeError(f"{where} must have a channel and {len(size)} spatial axes, found {tuple(source.shape)}")
    inside = tuple(slice(max(s, 0), min(s + n, extent)) for s, n, extent in zip(start, size, extents, strict=True))
    piece = _copy(source[(slice(None), *inside)])
    if tuple(piece.shape[1:]) != tuple(size):
        piece = _padded(piece, [max(-s, 0) for s in start], size, padding_value)
    if not get_track_meta():
        return piece
    patch = piece.as_subclass(MetaTensor)
    patch.copy_meta_from(image if isinstance(image, MetaTensor) else _without_meta(piece.ndim))
    patch.meta[MetaKeys.AFFINE] = _moved(patch.meta[MetaKeys.AFFINE], start)
    patch.meta.update(meta or {})
    return patch


@cache
def _without_meta(ndim: int) -> MetaTensor:
    """Any MetaTensor with MONAI's default meta data, which are slow to build anew for every patch."""
    return MetaTensor(torch.zeros((1,) * ndim))


def _moved(affine: torch.Tensor, start: Sequence[int]) -> torch.Tensor:
    """The affine of a grid that begins at voxel `start` of the affine's own grid."""
    out = np.array(affine.numpy(force=True), np.float64)  # on tensors of 16 numbers NumPy is several times faster
    out[:-1, -1] += out[:-1, : len(start)] @ start
    return torch.from_numpy(out)


def _padded(piece: torch.Tensor, before: Sequence[int], size: Sequence[int], padding_value: float) -> torch.Tensor:
    out = piece.new_full((piece.shape[0], *size), padding_value)
    out[(slice(None), *(slice(b, b + n) for b, n in zip(before, piece.shape[1:], strict=True)))] = piece
    return out


def _copy(view: Any) -> torch.Tensor:
    if isinstance(view, torch.Tensor):
        return view.clone(memory_format=torch.contiguous_format)
    # native byte order: torch reads no other, and NIfTI files mapped into memory may be big-endian
    return torch.from_numpy(np.array(view, dtype=view.dtype.newbyteorder("="), order="C", subok=False))


class RandCropByLabel(Randomizable, MultiSampleTrait):
    """Cut `num_samples` patches whose centres fall on a label drawn by `ratios`, uniformly within the label.

    A draw picks label l with probability ratios[l] / Σ ratios, then one of its voxels, each with probability
    1 / count(l). The patch is centred there (for an even size n, n//2 voxels come before the centre) and shifted, if
    need be, to lie inside the image, as MONAI does; along an axis shorter than the patch the image is padded on both
    sides instead. Where the case has no voxel of the label drawn, the centre is uniform over the indexed voxels (over
    the whole image if there are none): such draws are counted in `num_fallbacks` (a process) and marked in the
    patch's meta data, `crop_label` = -1; the first of them warns, naming the case.

    With a precomputed index (`LabelVoxelIndexd`) a draw reads nothing but the patch, also from memory-mapped arrays.

    Args:
        spatial_size: patch in voxels, one number for all axes or one an axis.
        ratios: how often each label is the centre: one number a label value from 0 on, or {label: number}; numbers ≥ 0
            with a positive sum. None = every label present in the case equally often.
        num_samples: patches a call, ≥ 1.
        padding_value: what surrounds an image smaller than the patch.

    Returns:
        (call) a list of `num_samples` patches (C, *spatial_size); MetaTensors carry the patch's affine.
    """

    def __init__(
        self,
        spatial_size: Sequence[int] | int,
        ratios: Ratios = None,
        num_samples: int = 1,
        padding_value: float = 0.0,
    ) -> None:
        self.spatial_size = spatial_size
        self.ratios = checked_ratios(ratios)
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, found {num_samples}")
        self.num_samples = num_samples
        self.padding_value = padding_value
        self.num_fallbacks = 0
        self.centres: list[tuple[int, ...]] = []
        self.starts: list[tuple[int, ...]] = []
        self.labels: list[int] = []
        self.size: tuple[int, ...] = ()
        self.shape: tuple[int, ...] = ()

    def randomize(self, index: VoxelIndex, img: Any = None) -> None:
        """Draw the patches: sets `centres`, `labels` (-1 = fallback) and `starts` (first voxel, negative where padded).

        `img` only names the case in a warning.
        """
        self.shape, self.size = index.shape, _patch_size(self.spatial_size, index.shape)
        self.centres, self.starts, self.labels = [], [], []
        for _ in range(self.num_samples):
            label, centre = self._draw(index, img)
            self.labels.append(label)
            self.centres.append(centre)
            self.starts.append(
                tuple(
                    min(max(c - n // 2, 0), extent - n) if extent >= n else -((n - extent) // 2)
                    for c, n, extent in zip(centre, self.size, index.shape, strict=True)
                )
            )

    def _draw(self, index: VoxelIndex, img: Any) -> tuple[int, tuple[int, ...]]:
        wanted = dict.fromkeys(index.labels, 1.0) if self.ratios is None else self.ratios
        if wanted:
            label = choose_label(self.R, wanted)
            if count := index.count(label):
                return label, index.position(label, int(self.R.randint(count, dtype=np.int64)))
            if not self.num_fallbacks:
                warnings.warn(
                    f"{case_name(img) or 'a case'} has no voxel of label {label}, which ratios ask for: its patch is "
                    "centred anywhere instead (warned once; see num_fallbacks and the patches' crop_label)",
                    stacklevel=2,
                )
        self.num_fallbacks += 1
        counts = {label: float(index.count(label)) for label in index.labels}
        if counts:
            label = choose_label(self.R, counts)
            return -1, index.position(label, int(self.R.randint(index.count(label), dtype=np.int64)))
        return -1, tuple(int(self.R.randint(extent)) for extent in index.shape)

    def __call__(
        self,
        img: Any,
        label: Any = None,
        index: VoxelIndex | None = None,
        allowed: Any = None,
        randomize: bool = True,
    ) -> list[torch.Tensor]:
        """Cut the patches out of `img` (C, …), after drawing them from `index` or from `label` (1, …) itself."""
        if randomize:
            index = _checked_index(index, img if label is None else label, allowed)
            self.randomize(index, img)
        return self.cut(img, self.padding_value)

    def cut(self, img: Any, padding_value: float) -> list[torch.Tensor]:
        """The patches drawn last, of `img`."""
        shape = tuple((img.as_tensor() if isinstance(img, MetaTensor) else img).shape[1:])
        if shape != self.shape:
            where = case_name(img) or "image"
            raise ShapeError(f"{where} must have the label map's spatial shape {self.shape}, found {shape}")
        return [
            crop_patch(img, start, self.size, padding_value, {"crop_label": label, ImageMetaKey.PATCH_INDEX: i})
            for i, (start, label) in enumerate(zip(self.starts, self.labels, strict=True))
        ]


class RandCropByLabeld(Randomizable, MapTransform, MultiSampleTrait):
    """Dictionary form of `RandCropByLabel`: the same patches of every key, one sample dictionary a patch.

    The index is taken from `index_key` where `LabelVoxelIndexd` put one, else computed from the label map at each
    call (tens of milliseconds for 256³). Neither it nor the allowed region travels into the samples; other keys are
    copied into each. Use it with `CacheDataset(copy_cache=False)`: the input is never changed, so copying the cached
    volume before each draw would be the dearest step.

    Args:
        keys: what is cropped; all of the label map's spatial shape.
        label_key: key of the label map, (1, …) integers.
        spatial_size, ratios, num_samples: see `RandCropByLabel`.
        index_key: key of the precomputed index, `{label_key}_voxel_index` unless told.
        allowed_key: key of a (1, …) region in which centres must lie; a precomputed index must have been given it.
        padding_value: what surrounds an image smaller than the patch; one number, or one a key.
        allow_missing_keys: skip keys a case lacks.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_key: str,
        spatial_size: Sequence[int] | int,
        ratios: Ratios = None,
        num_samples: int = 1,
        index_key: str | None = None,
        allowed_key: str | None = None,
        padding_value: float | Sequence[float] = 0.0,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.label_key = label_key
        self.index_key = index_key or f"{label_key}_voxel_index"
        self.allowed_key = allowed_key
        values = [padding_value] * len(self.keys) if isinstance(padding_value, int | float) else list(padding_value)
        if len(values) != len(self.keys):
            raise ValueError(f"padding_value needs one number a key ({len(self.keys)}), found {values}")
        self.padding_values = values
        self.cropper = RandCropByLabel(spatial_size, ratios, num_samples)

    @property
    def num_fallbacks(self) -> int:
        """Draws of this process that found no voxel of the label wanted."""
        return self.cropper.num_fallbacks

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> "RandCropByLabeld":
        super().set_random_state(seed, state)
        self.cropper.set_random_state(seed, state)
        return self

    def randomize(self, data: Mapping[Hashable, Any]) -> None:
        """Draw the patches of a case."""
        if self.index_key not in data and self.label_key not in data:
            raise KeyError(
                f"RandCropByLabeld needs the label map {self.label_key!r} or its index {self.index_key!r}, "
                f"found keys {sorted(map(str, data))}"
            )
        label = data.get(self.label_key)
        allowed = None if self.allowed_key is None else data[self.allowed_key]
        index = _checked_index(data.get(self.index_key), label, allowed)
        self.cropper.randomize(index, next((data[key] for key in self.keys if key in data), label))
        if label is not None and self.index_key in data:
            _check_fresh(label, self.cropper.centres[0], self.cropper.labels[0])

    def __call__(self, data: Mapping[Hashable, Any]) -> list[dict[Hashable, Any]]:
        self.randomize(data)
        d = {key: value for key, value in data.items() if key not in (self.index_key, self.allowed_key)}
        if self.allowed_key in self.keys:
            d[self.allowed_key] = data[self.allowed_key]
        samples: list[dict[Hashable, Any]] = [
            {key: value if key in self.keys else deepcopy(value) for key, value in d.items()}
            for _ in range(self.cropper.num_samples)
        ]
        for key, padding_value in self.key_iterator(d, self.padding_values):
            for sample, patch in zip(samples, self.cropper.cut(d[key], padding_value), strict=True):
                sample[key] = patch
        return samples


def _checked_index(index: VoxelIndex | None, label: Any, allowed: Any) -> VoxelIndex:
    if index is None:
        return VoxelIndex.from_label(label, allowed)
    if allowed is not None and not index.restricted:
        raise ValueError(
            "an allowed region is given but the voxel index knows none: give it to LabelVoxelIndexd as well"
        )
    return index


def _check_fresh(label: Any, centre: tuple[int, ...], drawn: int) -> None:
    """One voxel tells, sooner or later, that the label map was moved after it was indexed."""
    if drawn < 0:
        return
    voxels = label.as_tensor() if isinstance(label, MetaTensor) else label
    try:
        found = int(voxels[(0, *centre)])
    except IndexError:
        found = None
    if found != drawn:
        raise ValueError(
            f"{case_name(label) or 'the case'}: the voxel index says label {drawn} is at {centre}, found {found} in a "
            f"label map of shape {tuple(voxels.shape)}: it was changed after LabelVoxelIndexd, which must come after "
            "the last step that moves it"
        )


def _patch_size(spatial_size: Sequence[int] | int, shape: Sequence[int]) -> tuple[int, ...]:
    size = (spatial_size,) * len(shape) if isinstance(spatial_size, int) else tuple(int(n) for n in spatial_size)
    if len(size) != len(shape) or min(size) < 1:
        raise ShapeError(f"spatial_size needs a positive number for each of {len(shape)} axes, found {size}")
    return size


RandCropByLabelD = RandCropByLabelDict = RandCropByLabeld
