"""Index the voxels of each label once per case, in an index small enough to cache."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Transform

from medseg.errors import ShapeError
from medseg.transforms.meta_tensor import without_meta

_CHUNK_VOXELS = 1 << 22


class VoxelIndex:
    """Positions of the voxels of every label, in C order over the spatial axes, as runs or as single positions.

    A label of n voxels in r runs takes min(4 n, 8 r) bytes (twice that in volumes of 2³¹ voxels or more), so that a
    background of millions of voxels takes a few kilobytes. The index is immutable. A deep copy is the object itself, so
    that `CacheDataset` does not copy it at every draw. It holds tensors and plain values only, so that `torch.load`
    with `weights_only=True` (which `PersistentDataset` uses) can read it.

    Attributes:
        shape: spatial shape in voxels.
        restricted: True if voxels outside an allowed region were left out.
        voxels: for each label value (starts, cumulative lengths) of its runs, or (positions, None).
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        voxels: dict[int, tuple[torch.Tensor, torch.Tensor | None]],
        restricted: bool = False,
    ) -> None:
        self.shape = shape
        self.voxels = voxels
        self.restricted = restricted

    @classmethod
    def from_label(cls, label: Any, allowed: Any = None) -> "VoxelIndex":
        """Index a label map in one pass; memory-mapped arrays are read piece by piece.

        Args:
            label: (1, …) integers in any array or tensor; floats must hold integers.
            allowed: (1, …) region outside which (value 0) no voxel is indexed; None indexes all voxels.

        Raises:
            ShapeError: more than one channel, or shapes differ.
            ValueError: the label map holds a value that is not an integer.
        """
        flat, shape = _flat(label, "label map")
        flat_allowed = None
        if allowed is not None:
            flat_allowed, allowed_shape = _flat(allowed, "allowed region")
            if allowed_shape != shape:
                raise ShapeError(
                    f"the allowed region must have the label map's shape {shape}, found {allowed_shape}; resample it"
                )
        starts, lengths, values = _runs(flat, flat_allowed)
        position = np.int32 if flat.size < 2**31 else np.int64
        order = np.argsort(values, kind="stable")
        labels, num_runs = np.unique(values, return_counts=True)
        voxels: dict[int, tuple[torch.Tensor, torch.Tensor | None]] = {}
        for value, end, count in zip(labels.tolist(), np.cumsum(num_runs), num_runs, strict=True):
            members = order[end - count : end]
            own_starts, own_lengths = starts[members], lengths[members]
            cumulative = np.cumsum(own_lengths)
            if 2 * len(members) < cumulative[-1]:
                runs = torch.from_numpy(own_starts.astype(position)), torch.from_numpy(cumulative.astype(position))
                voxels[int(value)] = runs
            else:
                within = np.arange(cumulative[-1]) - np.repeat(cumulative - own_lengths, own_lengths)
                positions = np.repeat(own_starts, own_lengths) + within
                voxels[int(value)] = torch.from_numpy(positions.astype(position)), None
        return cls(shape, voxels, restricted=allowed is not None)

    @property
    def labels(self) -> list[int]:
        """The label values that have at least one voxel, ascending."""
        return list(self.voxels)

    @property
    def num_bytes(self) -> int:
        """The memory of the stored positions in bytes."""
        parts = [part for pair in self.voxels.values() for part in pair if part is not None]
        return sum(part.numel() * part.element_size() for part in parts)

    def count(self, label: int) -> int:
        """Return the number of voxels of a label; 0 for a label that does not occur."""
        if label not in self.voxels:
            return 0
        starts, cumulative = self.voxels[label]
        return len(starts) if cumulative is None else int(cumulative[-1])

    def position(self, label: int, rank: int) -> tuple[int, ...]:
        """Return the spatial index of a label's `rank`-th voxel in C order, 0 ≤ rank < count(label)."""
        starts, cumulative = self.voxels[label]
        if cumulative is None:
            flat = int(starts[rank])
        else:
            ends = cumulative.numpy()
            run = int(ends.searchsorted(rank, side="right"))
            flat = int(starts[run]) + rank - (int(ends[run - 1]) if run else 0)
        position = []
        for extent in reversed(self.shape):
            flat, coordinate = divmod(flat, extent)
            position.append(coordinate)
        return tuple(reversed(position))

    def __deepcopy__(self, memo: dict[int, Any]) -> "VoxelIndex":
        return self

    def __repr__(self) -> str:
        counts = {label: self.count(label) for label in self.labels}
        return f"VoxelIndex(shape={self.shape}, voxels={counts}, restricted={self.restricted}, bytes={self.num_bytes})"


torch.serialization.add_safe_globals([VoxelIndex])


class LabelVoxelIndex(Transform):
    """Compute the `VoxelIndex` of a label map; deterministic, so that caching data sets keep it.

    See `VoxelIndex.from_label` for the arguments of the call.
    """

    def __call__(self, label: Any, allowed: Any = None) -> VoxelIndex:
        return VoxelIndex.from_label(label, allowed)


class LabelVoxelIndexd(MapTransform):
    """Add the `VoxelIndex` of a label map to a sample, for `RandCropByLabeld`.

    Place it after the last deterministic spatial step, because a later one would move the label map but not the index.

    Args:
        keys: key of the label map; exactly one.
        index_key: key under which the index is stored; None is `{key}_voxel_index`.
        allowed_key: key of a (1, …) region in which centres must lie; None for everywhere.
        allow_missing_keys: return a case without label map unchanged.

    Raises:
        ValueError, ShapeError: see `VoxelIndex.from_label`; ValueError also for more than one key.
    """

    def __init__(
        self,
        keys: KeysCollection,
        index_key: str | None = None,
        allowed_key: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 1:
            raise ValueError(
                f"LabelVoxelIndexd takes one key, found {list(self.keys)}; add one transform per label map"
            )
        self.index_key = index_key or f"{self.keys[0]}_voxel_index"
        self.allowed_key = allowed_key
        self.indexer = LabelVoxelIndex()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[self.index_key] = self.indexer(d[key], None if self.allowed_key is None else d[self.allowed_key])
        return d


def _flat(array: Any, name: str) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return a one-channel array as a flat NumPy view (a copy if its memory is not contiguous), and its shape."""
    array = without_meta(array)
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu().numpy()
    shape = tuple(int(n) for n in array.shape)
    if len(shape) < 2 or shape[0] != 1:
        raise ShapeError(
            f"the {name} must have shape (1, *spatial), found {shape}; add a channel, or merge the channels"
        )
    return array.reshape(-1), shape[1:]


def _runs(flat: np.ndarray, allowed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return start, length and value of each run of equal labels inside the allowed region."""
    if flat.size == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64)
    boundaries = [np.zeros(1, np.int64)]
    for begin in range(0, flat.size, _CHUNK_VOXELS):
        end = min(begin + _CHUNK_VOXELS + 1, flat.size)
        piece = flat[begin:end]
        changes = piece[1:] != piece[:-1]
        if allowed is not None:
            inside = allowed[begin:end] != 0
            changes |= inside[1:] != inside[:-1]
        boundaries.append(np.flatnonzero(changes) + begin + 1)
    starts = np.concatenate(boundaries)
    lengths = np.diff(starts, append=flat.size)
    values = np.asarray(flat[starts])
    if allowed is not None:
        inside = np.asarray(allowed[starts]) != 0
        starts, lengths, values = starts[inside], lengths[inside], values[inside]
    with np.errstate(invalid="ignore"):
        integers = values.astype(np.int64)
    if not np.array_equal(integers, values):
        found = values[integers != values][0]
        raise ValueError(f"the label map must hold integers, found {found}; resample it with nearest, not with linear")
    return starts, lengths, integers


LabelVoxelIndexD = LabelVoxelIndexDict = LabelVoxelIndexd
