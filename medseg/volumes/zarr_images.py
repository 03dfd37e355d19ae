"""Read and write images in Zarr stores (Zarr 2 and 3, OME-Zarr or a single array), whole or box by box."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import ceil, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medseg.errors import GeometryError, MedsegError, VolumeError, first_line
from medseg.volumes.files import replacing
from medseg.volumes.grid import Grid
from medseg.volumes.ngff import (
    Multiscale,
    image_attributes,
    new_multiscale,
    read_array_attributes,
    read_multiscale,
    with_pyramid,
)
from medseg.volumes.streams import damage_as_volume_error
from medseg.volumes.volume import Volume

if TYPE_CHECKING:
    import zarr

# Edge of a written chunk: 2 MB of labels, and few files per volume.
CHUNK = 128
Box = Sequence[slice]


def _zarr(path: Path | str) -> Any:
    """Import zarr.

    Raises:
        VolumeError: it is not installed.
    """
    try:
        import zarr
    except ImportError as error:
        raise VolumeError(f"{path}: Zarr needs the extra zarr; run pip install 'medseg[zarr]'") from error
    return zarr


class ZarrImage:
    """An image in a Zarr store, of which boxes are read on demand.

    Args:
        path: folder of the store: an OME-Zarr image, or one array with the attribute `scale`.

    Raises:
        VolumeError: there is no such folder, it is no Zarr store, or its metadata do not describe one image.
        GeometryError: two axes have one direction.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        _check_store(self.path)
        zarr = _zarr(path)
        with damage_as_volume_error(self.path):
            node = zarr.open(zarr.storage.LocalStore(self.path, read_only=True), mode="r")
            if isinstance(node, zarr.Group):
                self.multiscale = read_multiscale(node.attrs.asdict(), path)
            else:
                names = getattr(node.metadata, "dimension_names", None)
                self.multiscale = read_array_attributes(node.attrs.asdict(), names, node.ndim, path)
            self.arrays = [self._array(node, level.path) for level in self.multiscale.levels]
        self.array = self.arrays[0]
        self._check_arrays()
        self.spatial_axes = self.multiscale.spatial_axes
        self.shape = tuple(self.array.shape[n] for n in self.spatial_axes)
        self.dtype = np.dtype(self.array.dtype).newbyteorder("=")
        self.grid: Grid = self.multiscale.grid(self.shape, path)
        self.notes = self.multiscale.notes(path)

    def _array(self, node: Any, path: str) -> zarr.Array:
        try:
            array = node if not path else node[path]
        except KeyError as error:
            raise VolumeError(f"{self.path}: its metadata name the array {path!r}, which does not exist") from error
        if not hasattr(array, "chunks"):
            raise VolumeError(f"{self.path}: its metadata name {path!r}, which is a group and not an array")
        return array

    def _check_arrays(self) -> None:
        axes = self.multiscale.axes
        for array, level in zip(self.arrays, self.multiscale.levels, strict=True):
            if array.ndim != len(axes):
                raise VolumeError(
                    f"{self.path}: array {level.path} has shape {array.shape}, but its metadata name {len(axes)} axes: "
                    f"{', '.join(axis.name for axis in axes)}"
                )
        if np.dtype(self.array.dtype).kind not in "biuf":
            raise VolumeError(f"{self.path}: has {self.array.dtype} voxels where one real number is expected")
        for axis, size in zip(axes, self.array.shape, strict=True):
            if size < 1 or (axis.kind == "time" and size > 1):
                expected = "1 time point" if axis.kind == "time" else "at least 1 voxel"
                raise VolumeError(f"{self.path}: axis {axis.name} has size {size}, expected {expected}")

    @property
    def num_channels(self) -> int:
        """Size of the channel axis, or 1."""
        sizes = [
            size for axis, size in zip(self.multiscale.axes, self.array.shape, strict=True) if axis.kind == "channel"
        ]
        return sizes[0] if sizes else 1

    @property
    def chunks(self) -> tuple[int, ...]:
        """Size of a stored chunk, or shard, along each axis of space."""
        stored = self.array.shards or self.array.chunks
        return tuple(stored[n] for n in self.spatial_axes)

    def read(self, box: Box, channel: int = 0, level: int = 0) -> np.ndarray:
        """Read a box of one channel.

        Args:
            box: one slice per axis of space, in the order of the file.
            channel: number of the channel.
            level: number of the resolution level.

        Raises:
            VolumeError: a chunk is damaged.
        """
        index: list[Any] = []
        spatial = iter(box)
        for axis in self.multiscale.axes:
            index.append(next(spatial) if axis.kind == "space" else channel if axis.kind == "channel" else 0)
        try:
            values = np.asarray(self.arrays[level][tuple(index)])
        except MemoryError:
            raise
        except Exception as error:  # each codec raises errors of its own
            raise VolumeError(
                f"{self.path}: a chunk in {_text(box)} is damaged ({first_line(error)}); copy the store again"
            ) from error
        return values.astype(self.dtype, copy=False)

    def check_chunks(self) -> list[str]:
        """Look for chunks of the finest level that are absent.

        Zarr leaves out chunks that hold only the fill value, so an absent chunk is an error only if it must have held
        something else: if there is no fill value, or if the next level shows other values at its place.

        Returns:
            Warnings, one per line.

        Raises:
            VolumeError: a chunk is lost.
        """
        absent = list(self._absent_chunks())
        if not absent:
            return []
        fill, total = self.array.metadata.fill_value, prod(self._chunk_counts())
        folder = self.path / self.multiscale.levels[0].path
        lost = f"chunk {self.array.metadata.encode_chunk_key(absent[0])} is missing ({len(absent)} of {total})"
        if fill is None:
            raise VolumeError(f"{folder}: {lost}, and the array has no fill value; copy the store again")
        for chunk in absent if len(self.arrays) > 1 else ():
            if self._is_seen_above(chunk, fill):
                key = self.array.metadata.encode_chunk_key(chunk)
                raise VolumeError(
                    f"{folder}: chunk {key} is missing ({len(absent)} of {total}), but the next resolution level holds "
                    "values there; copy the store again"
                )
        return [f"{folder}: {lost}; their voxels are read as {fill}; copy the store again if this is unexpected"]

    def _chunk_counts(self) -> list[int]:
        stored = self.array.shards or self.array.chunks
        return [ceil(n / c) for n, c in zip(self.array.shape, stored, strict=True)]

    def _absent_chunks(self) -> Iterator[tuple[int, ...]]:
        folder = self.path / self.multiscale.levels[0].path
        key = self.array.metadata.encode_chunk_key
        for chunk in product(*map(range, self._chunk_counts())):
            if not (folder / key(chunk)).is_file():
                yield chunk

    def _is_seen_above(self, chunk: Sequence[int], fill: Any) -> bool:
        """Return True if the next level holds another value than the fill value inside a chunk."""
        stored, coarse = self.array.shards or self.array.chunks, self.arrays[1]
        box = []
        for number, size, fine, rough in zip(chunk, stored, self.array.shape, coarse.shape, strict=True):
            # One voxel at each side may be mixed with those of the neighbouring chunk.
            low, high = ceil(number * size * rough / fine) + 1, (number + 1) * size * rough // fine - 1
            box.append(slice(low, high) if rough > 1 else slice(0, 1))
        values = np.asarray(coarse[tuple(box)])
        is_fill = np.isnan(values) if isinstance(fill, float) and np.isnan(fill) else values == fill
        return not bool(is_fill.all())

    def volume(self, channel: int = 0) -> Volume:
        """Read one channel as a whole."""
        whole = [slice(0, n) for n in self.shape]
        return Volume(self.read(whole, channel), self.grid, self.path, "zarr", self.header)

    def placeholder(self) -> Volume:
        """Return a volume with the grid of the image, whose voxels are all 0 and take no memory."""
        array = np.broadcast_to(np.zeros((), self.dtype), self.shape)
        return Volume(array, self.grid, self.path, "zarr", self.header)

    @property
    def header(self) -> dict[str, Any]:
        """Metadata that a written image of the same grid takes over."""
        shapes = [tuple(array.shape[n] for n in self.spatial_axes) for array in self.arrays]
        return {"multiscale": self.multiscale.spatial(), "shapes": shapes, "notes": self.notes}


def _check_store(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise VolumeError(f"{path}: a link to {path.readlink()}, which does not exist; restore the store or the link")
    if not path.exists():
        raise VolumeError(f"{path}: no such Zarr store; check the name and the folder")
    if not path.is_dir():
        raise VolumeError(f"{path}: a file where the folder of a Zarr store is expected; unpack it if it is an archive")
    if not any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zarray")):
        raise VolumeError(f"{path}: no Zarr store; found none of zarr.json, .zgroup and .zarray; check the folder")


def read(path: Path) -> Volume:
    """Read the only channel of an image.

    Raises:
        VolumeError: as `ZarrImage`, and if there are several channels, or chunks are missing or damaged.
        GeometryError: as `ZarrImage`.
    """
    volumes = read_channels(path)
    if len(volumes) > 1:
        raise VolumeError(f"{path}: has {len(volumes)} channels where one is expected; save them separately")
    return volumes[0]


def read_channels(path: Path | str) -> list[Volume]:
    """Read every channel of an image; raises as `read`."""
    image = ZarrImage(path)
    notes = image.check_chunks()
    with damage_as_volume_error(image.path):
        volumes = [image.volume(channel) for channel in range(image.num_channels)]
    return [replace(v, header={**v.header, "notes": [*v.header["notes"], *notes]}) for v in volumes]


def read_grid(path: Path) -> Grid:
    """Read the grid from the metadata alone; raises as `ZarrImage`."""
    return ZarrImage(path).grid


def read_channel_grid(path: Path) -> tuple[Grid, int]:
    """Read the grid and the number of channels from the metadata alone; raises as `ZarrImage`."""
    image = ZarrImage(path)
    return image.grid, image.num_channels


def check_grid_fits(path: Path, like: Volume) -> None:
    """Check that OME-NGFF can store the grid of `like`.

    Raises:
        GeometryError: its axes are oblique.
    """
    layout_like(path, like)


@dataclass(frozen=True)
class Layout:
    """Levels of an image to write, and how its axes relate to those of the volume that it is written for.

    Args:
        multiscale: axes of space and levels.
        shapes: of each level.
        order: for each axis of the written arrays, the axis of the volume.
    """

    multiscale: Multiscale
    shapes: list[tuple[int, ...]]
    order: tuple[int, ...]


def layout_like(path: Path | str, like: Volume) -> Layout:
    """Return the levels of an image to write on the grid of `like`; those of `like` if it is an OME-Zarr image.

    Raises:
        GeometryError: the axes of the grid are oblique.
    """
    if like.format == "zarr" and isinstance(like.header, Mapping):
        multiscale: Multiscale = like.header["multiscale"]
        if multiscale.version in ("0.4", "0.5"):
            return Layout(multiscale, like.header["shapes"], tuple(range(len(like.grid.shape))))
        return Layout(*with_pyramid(multiscale, like.grid.shape), tuple(range(len(like.grid.shape))))
    try:
        multiscale, order = new_multiscale(like.grid)
    except GeometryError as error:
        raise GeometryError(f"{path}: not written: {error}") from error
    return Layout(*with_pyramid(multiscale, [like.grid.shape[n] for n in order]), order)


def write(path: Path, array: np.ndarray, like: Volume, attributes: Mapping[str, Any] | None = None) -> None:
    """Write an array on the grid of `like` as a new OME-Zarr image, atomically.

    A label map or an image of the same grid as another OME-Zarr image gets the same axes, version and levels.

    Args:
        path: folder to create.
        array: voxels in the axis order of `like`.
        like: the volume whose grid the image gets.
        attributes: of the group; None takes those of an image.

    Raises:
        GeometryError: the axes of the grid are oblique.
        VolumeError: the folder exists, or cannot be written.
    """
    layout = layout_like(path, like)
    with replacing(path) as temporary:
        writer = PyramidWriter(temporary, layout, array.dtype)
        writer.create(attributes or image_attributes(layout.multiscale, path.name.split(".")[0]))
        ordered = array.transpose(layout.order)
        for box in boxes(ordered.shape, writer.chunks):
            writer.write(box, ordered[box])
        writer.build_levels()


def boxes(shape: Sequence[int], size: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """Yield boxes that cover an array of a shape, each of a size or cut at the array's end."""
    steps = (range(0, n, s) for n, s in zip(shape, size, strict=True))
    for start in product(*steps):
        yield tuple(slice(a, min(a + s, n)) for a, s, n in zip(start, size, shape, strict=True))


class PyramidWriter:
    """Write the finest level of an image chunk by chunk, then the coarser ones from it by nearest neighbour.

    A chunk is complete or absent, because zarr renames it when it is written. Chunks of background are written as well,
    so that an absent chunk is always one that is missing.

    Args:
        folder: of the Zarr group.
        layout: levels and shapes.
        dtype: of the voxels.
    """

    def __init__(self, folder: Path, layout: Layout, dtype: np.typing.DTypeLike) -> None:
        self.folder = folder
        self.layout = layout
        self.dtype = np.dtype(dtype)
        self.chunks = tuple(min(n, CHUNK) for n in layout.shapes[0])
        self.arrays: list[Any] = []

    def create(self, attributes: Mapping[str, Any]) -> None:
        """Create the group and its empty arrays."""
        zarr = _zarr(self.folder)
        version = 2 if self.layout.multiscale.version == "0.4" else 3
        group = zarr.create_group(
            zarr.storage.LocalStore(self.folder), zarr_format=version, attributes=dict(attributes)
        )
        names = [axis.name for axis in self.layout.multiscale.axes]
        for level, shape in zip(self.layout.multiscale.levels, self.layout.shapes, strict=True):
            group.create_array(
                level.path,
                shape=shape,
                chunks=tuple(min(n, CHUNK) for n in shape),
                dtype=self.dtype,
                fill_value=0,
                chunk_key_encoding={"name": "v2" if version == 2 else "default", "separator": "/"},
                dimension_names=names if version == 3 else None,
                config={"write_empty_chunks": True},
            )
        self.open()

    def open(self) -> None:
        """Open the arrays of a group that exists."""
        zarr = _zarr(self.folder)
        group = zarr.open_group(zarr.storage.LocalStore(self.folder), mode="r+")
        self.arrays = [
            group[level.path].with_config({"write_empty_chunks": True}) for level in self.layout.multiscale.levels
        ]

    def write(self, box: Box, values: np.ndarray) -> None:
        """Write a box of the finest level, whose sides lie on the borders of chunks."""
        self.arrays[0][tuple(box)] = values

    def flush(self, box: Box) -> None:
        """Wait until the chunks of a box are on the disk."""
        array = self.arrays[0]
        folder = self.folder / self.layout.multiscale.levels[0].path
        ranges = (range(part.start // c, ceil(part.stop / c)) for part, c in zip(box, self.chunks, strict=True))
        for chunk in product(*ranges):
            with (folder / array.metadata.encode_chunk_key(chunk)).open("rb") as stream:
                os.fsync(stream.fileno())

    def build_levels(self) -> None:
        """Fill each coarser level from the one before it, a row of chunks at a time."""
        levels = self.layout.multiscale.levels
        for number in range(1, len(levels)):
            fine, coarse = levels[number - 1], levels[number]
            index = [
                np.clip(np.rint((np.arange(n) * s + t - t0) / s0), 0, n0 - 1).astype(np.int64)
                for n, n0, s, s0, t, t0 in zip(
                    self.layout.shapes[number], self.layout.shapes[number - 1], coarse.scale, fine.scale,
                    coarse.translation, fine.translation, strict=True,
                )
            ]  # fmt: skip
            shape = self.layout.shapes[number]
            row = [*(min(n, CHUNK) for n in shape[:-1]), shape[-1]]
            for box in boxes(shape, row):
                picked = [i[part] for i, part in zip(index, box, strict=True)]
                source = tuple(slice(int(p.min()), int(p.max()) + 1) for p in picked)
                values = np.asarray(self.arrays[number - 1][source])
                self.arrays[number][box] = values[
                    np.ix_(*(p - part.start for p, part in zip(picked, source, strict=True)))
                ]

    def counts(self, num_values: int) -> np.ndarray:
        """Count the voxels of each label value in the finest level.

        Args:
            num_values: number of values, from 0.
        """
        total = np.zeros(num_values, dtype=np.int64)
        shape = self.layout.shapes[0]
        for box in boxes(shape, [*self.chunks[:-1], shape[-1]]):
            total += np.bincount(np.asarray(self.arrays[0][box]).ravel(), minlength=num_values)
        return total


def files_of_store(path: Path) -> list[Path]:
    """Return the files of the finest level of an image and of its metadata, by name."""
    try:
        finest = ZarrImage(path).multiscale.levels[0].path
    except MedsegError:
        finest = ""
    root = path / finest
    found = {file for file in root.rglob("*") if file.is_file()}
    return sorted(found | {file for file in path.iterdir() if file.is_file()})


def _text(box: Box) -> str:
    return "[" + ", ".join(f"{part.start}:{part.stop}" for part in box) + "]"
