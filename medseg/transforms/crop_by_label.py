"""Crop random training patches centred on chosen labels, at the cost of copying the patch."""

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
from medseg.transforms.meta_tensor import case_name, without_meta
from medseg.transforms.voxel_index import LabelVoxelIndexd, VoxelIndex

Ratios = Sequence[float] | Mapping[Any, float] | None


class RandCropByLabel(Randomizable, MultiSampleTrait):
    """Crop `num_samples` patches centred on labels that are drawn by `ratios`.

    A draw picks label l with probability ratios[l] / Σ ratios, then one of its voxels, each with probability
    1 / count(l). The patch is centred there (for an even size n, n//2 voxels come before the centre). If it would
    leave the image it is shifted inside, as MONAI does. Along an axis shorter than the patch the image is padded on
    both sides instead.

    If the case has no voxel of the drawn label, the centre is uniform over the indexed voxels, or over the whole image
    if no voxel is indexed. Such draws are counted in `num_fallbacks` (per process) and marked in the patch's metadata
    by `crop_label` = -1. The first of them warns and names the case.

    With a precomputed index (`LabelVoxelIndexd`) a draw reads nothing except the patch, also from memory-mapped arrays.

    Args:
        spatial_size: patch size in voxels, one number for all axes or one per axis.
        ratios: relative frequency of each label as centre: a sequence by label value from 0 on, or {label: number}.
            Numbers are ≥ 0 with a positive sum. None draws every label that the case has equally often.
        num_samples: number of patches per call, ≥ 1.
        padding_value: value around an image that is smaller than the patch.

    Returns:
        (call) a list of `num_samples` patches (C, *spatial_size); MetaTensors have the patch's affine.

    Raises:
        ValueError: `ratios` or `num_samples` is not valid; (call) an allowed region is given but the index has none.
        ShapeError: (call) image, label map and patch size do not fit together.
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
        """Draw the patches, and set `centres`, `labels` and `starts`.

        Args:
            index: positions of the labels' voxels.
            img: image that names the case in a warning, or None.

        After the call `labels` is -1 for a fallback, and `starts` (the first voxels) is negative where padding begins.
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
                    f"{case_name(img) or 'a case'}: the label map has no voxel of label {label}, which ratios name; "
                    "the patch is centred anywhere instead (warned once; num_fallbacks counts these patches)",
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
        """Draw patches and crop them from `img`.

        Args:
            img: (C, …) image.
            label: (1, …) label map to index if there is no `index`; `img` itself if None.
            index: precomputed index.
            allowed: (1, …) region in which centres must lie, or None.
            randomize: draw new patches; False crops the patches of the last draw.
        """
        if randomize:
            index = _checked_index(index, img if label is None else label, allowed)
            self.randomize(index, img)
        return self.cut(img, self.padding_value)

    def cut(self, img: Any, padding_value: float) -> list[torch.Tensor]:
        """Crop the patches of the last draw from `img`."""
        shape = tuple(without_meta(img).shape[1:])
        if shape != self.shape:
            where = case_name(img) or "image"
            raise ShapeError(f"{where}: the spatial shape must be the label map's, {self.shape}, found {shape}")
        return [
            crop_patch(img, start, self.size, padding_value, {"crop_label": label, ImageMetaKey.PATCH_INDEX: i})
            for i, (start, label) in enumerate(zip(self.starts, self.labels, strict=True))
        ]


class RandCropByLabeld(Randomizable, MapTransform, MultiSampleTrait):
    """Dictionary form of `RandCropByLabel`: crop the same patches of every key, one sample dictionary per patch.

    The index is read from `index_key` if `LabelVoxelIndexd` stored one there. Otherwise it is computed from the label
    map at each call (tens of milliseconds for 256³). The samples hold neither the index nor the allowed region; other
    keys are copied to each sample.

    Use it with `CacheDataset(copy_cache=False)`. The input is never changed, and copying the cached volume before each
    draw would be the slowest step.

    Args:
        keys: arrays to crop, all of the label map's spatial shape.
        label_key: key of the label map, (1, …) integers.
        spatial_size, ratios, num_samples: see `RandCropByLabel`.
        index_key: key of the precomputed index; None is `{label_key}_voxel_index`.
        allowed_key: key of a (1, …) region in which centres must lie. A precomputed index must be made with it, too.
        padding_value: value around an image that is smaller than the patch, one number or one per key.
        allow_missing_keys: skip keys that a case lacks.

    Raises:
        ValueError, ShapeError: see `RandCropByLabel`; ValueError also if the label map was changed after it was
            indexed.
        KeyError: (call) neither the label map nor its index is there.
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
            raise ValueError(f"padding_value must be one number or {len(self.keys)}, one per key, found {values}")
        self.padding_values = values
        self.cropper = RandCropByLabel(spatial_size, ratios, num_samples)

    def index_transform(self) -> LabelVoxelIndexd:
        """Return the transform that computes the index of this crop; make it the last one that is cached."""
        return LabelVoxelIndexd(self.label_key, self.index_key, self.allowed_key)

    @property
    def num_fallbacks(self) -> int:
        """The number of draws in this process that found no voxel of the wanted label."""
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


def crop_patch(
    image: Any,
    start: Sequence[int],
    size: Sequence[int],
    padding_value: float = 0.0,
    meta: Mapping[str, Any] | None = None,
) -> torch.Tensor:
    """Copy the patch of (C, …) that begins at voxel `start`; voxels outside the image get `padding_value`.

    Args:
        image: tensor, array, or any object with a shape that returns arrays when sliced (memory maps, HDF5 data
            sets). Nothing outside the patch is read.
        start: first voxel along each axis; negative if the patch begins before the image.
        size: shape of the patch in voxels.
        padding_value: value outside the image.
        meta: entries to add to the patch's metadata.

    Returns:
        (C, *size), contiguous, in memory of its own. A MetaTensor whose affine is that of the patch, or a plain tensor
        if MONAI tracks no metadata.
    """
    source = without_meta(image)  # MetaTensor's bookkeeping at every step would cost more than copying a small patch
    extents = tuple(source.shape[1:])
    if len(extents) != len(size):
        where = case_name(image) or "image"
        raise ShapeError(
            f"{where}: the shape must be a channel and {len(size)} spatial axes, found {tuple(source.shape)}"
        )
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
    """Return a MetaTensor with MONAI's default metadata, which is slow to build again for every patch."""
    return MetaTensor(torch.zeros((1,) * ndim))


def _moved(affine: torch.Tensor, start: Sequence[int]) -> torch.Tensor:
    """Return the affine of a grid that begins at voxel `start` of the given affine's grid."""
    out = np.array(affine.numpy(force=True), np.float64)  # for 16 numbers NumPy is several times faster than torch
    out[:-1, -1] += out[:-1, : len(start)] @ start
    return torch.from_numpy(out)


def _padded(piece: torch.Tensor, before: Sequence[int], size: Sequence[int], padding_value: float) -> torch.Tensor:
    out = piece.new_full((piece.shape[0], *size), padding_value)
    out[(slice(None), *(slice(b, b + n) for b, n in zip(before, piece.shape[1:], strict=True)))] = piece
    return out


def _copy(view: Any) -> torch.Tensor:
    if isinstance(view, torch.Tensor):
        return view.clone(memory_format=torch.contiguous_format)
    # torch reads native byte order only, and memory-mapped NIfTI files may be big-endian
    return torch.from_numpy(np.array(view, dtype=view.dtype.newbyteorder("="), order="C", subok=False))


def checked_ratios(ratios: Ratios) -> dict[int, float] | None:
    """Return the positive ratios by label value, from a sequence or from a mapping (also with JSON's string keys).

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
    """Draw one key of `odds` with a probability in proportion to its value; all values are positive."""
    cumulative = list(accumulate(odds.values()))
    rank = bisect_right(cumulative, state.random_sample() * cumulative[-1])
    return list(odds)[min(rank, len(cumulative) - 1)]  # rounding may exceed the last sum


def _checked_index(index: VoxelIndex | None, label: Any, allowed: Any) -> VoxelIndex:
    if index is None:
        return VoxelIndex.from_label(label, allowed)
    if allowed is not None and not index.restricted:
        raise ValueError(
            "an allowed region is given, but the voxel index was made without one; give it to LabelVoxelIndexd as well"
        )
    return index


def _check_fresh(label: Any, centre: tuple[int, ...], drawn: int) -> None:
    """Check the drawn voxel's label to detect a label map that was changed after it was indexed."""
    if drawn < 0:
        return
    voxels = without_meta(label)
    try:
        found = int(voxels[(0, *centre)])
    except IndexError:
        found = None
    if found != drawn:
        raise ValueError(
            f"{case_name(label) or 'label map'}: the label map was changed after it was indexed; at {centre} the index "
            f"has label {drawn}, found {found} in a label map of shape {tuple(voxels.shape)}; place LabelVoxelIndexd "
            "after the last deterministic spatial step"
        )


def _patch_size(spatial_size: Sequence[int] | int, shape: Sequence[int]) -> tuple[int, ...]:
    size = (spatial_size,) * len(shape) if isinstance(spatial_size, int) else tuple(int(n) for n in spatial_size)
    if len(size) != len(shape) or min(size) < 1:
        raise ShapeError(f"spatial_size must be {len(shape)} positive numbers, one per axis, found {size}")
    return size


RandCropByLabelD = RandCropByLabelDict = RandCropByLabeld
