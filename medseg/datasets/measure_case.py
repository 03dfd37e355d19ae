"""Measure the files of one case, each image and label map in one pass."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from nibabel.orientations import apply_orientation, io_orientation
from scipy import ndimage

from medseg.datasets.case_facts import PERCENTILES, THUMBNAIL_EDGE, CaseFacts, FileFacts, Intensities, ValueFacts
from medseg.datasets.manifest import Manifest
from medseg.errors import MedsegError, VolumeError, one_line, reason_of_failure
from medseg.volumes import (
    Volume,
    format_of,
    read_channel_grid,
    read_channels,
    read_colored_label_map,
    read_header,
    read_label_map,
    read_volume,
    suffix_of,
)
from medseg.volumes.io import SLOPE_ROUNDING, as_integers, label_step

# Percentiles come from at most about so many evenly spaced voxels, all other numbers from every voxel.
MAX_SAMPLES = 1 << 20
# Voxels that are converted to float64 at once.
SLAB_VOXELS = 1 << 21
# Header fields of NIfTI files that may tell which scan a file comes from.
NIFTI_TEXTS = ("descrip", "db_name", "aux_file", "intent_name")
Read = TypeVar("Read")
DICOM_IDENTIFIERS = ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID")


def measure_case(manifest: Manifest, root: Path, case_id: str) -> CaseFacts:
    """Measure the files of one case. A file that cannot be read becomes a fact, not an error.

    One image and the label map are in memory at a time.

    Args:
        manifest: the data set.
        root: its folder.
        case_id: the case.
    """
    files = manifest.paths(root, case_id)
    outside = {value for value, label in manifest.label_of_value.items() if label in (0, manifest.ignore_label)}
    label: Volume | None = None
    maps: list[FileFacts] = []
    for role in ("label", "instances"):
        for path in files.get(role, []):
            facts, volume = _measure_label_map(manifest, path, root, role)
            maps.append(facts)
            label = volume if role == "label" else label
            del volume
    images = [
        facts
        for number, path in enumerate(files["image"])
        for facts in _measure_image(manifest, path, root, number, label, outside)
    ]
    return CaseFacts(case_id, (*images, *maps))


def read_image_file(manifest: Manifest, path: Path) -> list[Volume]:
    """Read the channels of an image file: one, or all of the data set if each file holds all of them.

    Voxels may be not finite, and the number of axes may be wrong.

    Raises:
        MedsegError: as `read_volume`; or the file holds another number of channels than the data set.
    """
    if not manifest.has_channels_in_one_file:
        return [read_volume(path, _dims(manifest, path), allow_non_finite=True, is_quiet=True)]
    volumes = read_channels(path, allow_non_finite=True, is_quiet=True)
    if len(volumes) != len(manifest.channels):
        raise VolumeError(
            f"{path}: holds {len(volumes)} channels where {len(manifest.channels)} are expected; correct the channels "
            "in the manifest, or the file"
        )
    return volumes


def read_label_file(manifest: Manifest, path: Path, role: str) -> Volume:
    """Read a label map or an instance map as it is stored; colours become the numbers that the manifest gives them.

    Values may be not finite or not whole numbers.

    Raises:
        MedsegError: as `read_label_map`.
    """
    if role == "label" and manifest.has_colored_labels:
        return read_colored_label_map(path)
    if suffix_of(path) and format_of(path) in ("png", "tiff", "jpeg"):
        return read_label_map(path)  # a palette stands for its indices
    return read_volume(path, _dims(manifest, path), allow_non_finite=True, is_quiet=True)


def _dims(manifest: Manifest, path: Path) -> int | None:
    """Return 2 for one slice of a 2D data set; other numbers of axes are read as they are."""
    return 2 if manifest.spatial_dims == 2 and (*_stored_shape(path), 1, 1, 1)[2] == 1 else None


def _measure_image(
    manifest: Manifest, path: Path, root: Path, channel: int, label: Volume | None, outside: set[int]
) -> Iterator[FileFacts]:
    volumes = _read(lambda: read_image_file(manifest, path), path, root, "image", channel)
    if isinstance(volumes, FileFacts):
        yield volumes
        return
    for number, volume in enumerate(volumes):
        array, foreground = volume.array, None
        if label is not None:
            with suppress(MedsegError):  # a label map elsewhere is a finding, and marks no voxel of this image
                mask = _is_foreground(label.on_grid(volume.grid).array, outside)
                foreground = measure_intensities(array[mask])[0]
        intensities, non_finite, at = measure_intensities(array)
        yield FileFacts(
            **_common(volume, root, "image", channel + number),
            non_finite=non_finite,
            non_finite_at=at,
            intensities=intensities,
            foreground=foreground,
            thumbnail="" if non_finite else _thumbnail(_turned(volume)),
        )


def _measure_label_map(manifest: Manifest, path: Path, root: Path, role: str) -> tuple[FileFacts, Volume | None]:
    """Return the facts and the map; no map if it cannot be read or does not hold whole numbers."""
    volume = _read(lambda: read_label_file(manifest, path, role), path, root, role, 0)
    if isinstance(volume, FileFacts):
        return volume, None
    common = _common(volume, root, role, 0)
    array = volume.array
    if array.dtype.kind == "f":
        problem = _problem_of_values(array, label_step(volume))
        if problem:
            return FileFacts(**common, **problem), None
        try:
            array = _whole_numbers(volume)
        except MedsegError as error:
            return FileFacts(role, 0, common["path"], problem=one_line(error)), None
    values, zeros = measure_values(array, count_pieces=role == "label")
    integers = Volume(array, volume.grid, volume.path, volume.format, volume.header, volume.file_grid)
    return FileFacts(**common, values=values, zeros=zeros), integers


def _problem_of_values(array: np.ndarray, step: float) -> dict[str, Any]:
    """Count the values of a label map that are not finite, else those that are not whole numbers, plane by plane.

    Args:
        array: floating-point numbers.
        step: as in `as_integers`.

    Returns:
        Fields of the facts; empty if all values are whole numbers.
    """
    non_finite, fractional, example = 0, 0, 0.0
    at: tuple[int, ...] = ()
    tolerance = step * (0.5 + SLOPE_ROUNDING) if step < 1 else 0.0
    for number, plane in enumerate(np.moveaxis(array, -1, 0)):
        is_finite = np.isfinite(plane)
        if not is_finite.all():
            at = at or (*(int(axis[0]) for axis in np.nonzero(~is_finite)), number)
            non_finite += int(plane.size - np.count_nonzero(is_finite))
            continue
        is_fraction = np.abs(plane - np.rint(plane)) > tolerance
        if is_fraction.any():
            example = example or float(plane[is_fraction].flat[0])
            fractional += int(np.count_nonzero(is_fraction))
    if non_finite:
        return {"non_finite": non_finite, "non_finite_at": at}
    return {"fractional": fractional, "fraction": example} if fractional else {}


def _whole_numbers(volume: Volume) -> np.ndarray:
    """Convert whole numbers that are stored as floating-point numbers, plane by plane; raises as `as_integers`."""
    step = label_step(volume)
    planes = np.moveaxis(volume.array, -1, 0)
    dtype = np.result_type(*{as_integers(plane, volume.name, step).dtype for plane in planes})
    result = np.empty(volume.array.shape, dtype, order="F")
    for plane, target in zip(planes, np.moveaxis(result, -1, 0), strict=True):
        target[...] = as_integers(plane, volume.name, step)
    return result


def measure_intensities(array: np.ndarray) -> tuple[Intensities | None, int, tuple[int, ...]]:
    """Measure the distribution of an array in slabs.

    Args:
        array: real numbers of any shape.

    Returns:
        The distribution of the finite values (None if there are none), the number of the others, and the index of one
        of them (empty if all are finite).
    """
    flat = array.ravel(order="K")  # no copy of an array that is contiguous in either order
    count, non_finite, total, squares, low, high = 0, 0, 0.0, 0.0, np.inf, -np.inf
    pivot: float | None = None
    for start in range(0, flat.size, SLAB_VOXELS):
        slab = flat[start : start + SLAB_VOXELS].astype(np.float64)
        finite = slab[np.isfinite(slab)] if array.dtype.kind == "f" else slab
        non_finite += slab.size - finite.size
        if not finite.size:
            continue
        pivot = float(finite[0]) if pivot is None else pivot
        low, high = min(low, float(finite.min())), max(high, float(finite.max()))
        finite = finite - pivot  # keeps the variance of small contrast above a large offset
        count += finite.size
        total += float(finite.sum())
        squares += float(np.square(finite).sum())
    at = () if not non_finite else tuple(int(axis[0]) for axis in np.nonzero(~np.isfinite(array)))
    if pivot is None:
        return None, non_finite, at
    mean = total / count
    sample = flat[:: max(1, flat.size // MAX_SAMPLES)]
    sample = sample[np.isfinite(sample)] if non_finite else sample
    percentiles = np.percentile(sample, PERCENTILES) if sample.size else np.full(len(PERCENTILES), pivot)
    std = float(np.sqrt(max(squares / count - mean**2, 0.0))) if high > low else 0.0
    return (
        Intensities(count, low, high, pivot + mean, std, tuple(float(value) for value in percentiles)),
        non_finite,
        at,
    )


def measure_values(array: np.ndarray, count_pieces: bool = True) -> tuple[dict[int, ValueFacts], int]:
    """Count the voxels and the connected pieces of each value of a label map.

    Args:
        array: integers, (i, j) or (i, j, k).
        count_pieces: False skips the pieces; each value then counts as one.

    Returns:
        The facts by value without 0, and the number of voxels that are 0.
    """
    counts = _counts(array)
    zeros = counts.pop(0, 0)
    present = sorted(counts)
    if not present:
        return {}, zeros
    values = np.array(present, dtype=np.int64)
    compact = np.zeros(array.shape, dtype=np.uint8 if len(present) < 256 else np.int32, order="F")
    for plane, target in zip(np.moveaxis(array, -1, 0), np.moveaxis(compact, -1, 0), strict=True):
        position = np.minimum(np.searchsorted(values, plane), len(values) - 1)
        target[...] = np.where(values[position] == plane, position + 1, 0)
    facts = {}
    for number, (value, box) in enumerate(zip(present, ndimage.find_objects(compact), strict=True), start=1):
        start = [side.start for side in box]
        mask = compact[box] == number
        if not count_pieces:
            at = tuple(int(axis[0]) + begin for axis, begin in zip(np.nonzero(mask), start, strict=True))
            facts[value] = ValueFacts(counts[value], 1, counts[value], counts[value], at)
            continue
        pieces, num_pieces = ndimage.label(mask, structure=np.ones((3,) * mask.ndim, bool))
        sizes = np.bincount(pieces.ravel())[1:]
        smallest = int(sizes.argmin())
        where = np.nonzero(pieces == smallest + 1)
        middle = len(where[0]) // 2
        at = tuple(int(axis[middle]) + begin for axis, begin in zip(where, start, strict=True))
        facts[value] = ValueFacts(counts[value], int(num_pieces), int(sizes[smallest]), int(sizes.max()), at)
    return facts, zeros


def _counts(array: np.ndarray) -> dict[int, int]:
    """Count each value, plane by plane."""
    if array.dtype.kind == "u" and array.dtype.itemsize <= 2:
        length = np.iinfo(array.dtype).max + 1
        total = np.zeros(length, dtype=np.int64)
        for plane in np.moveaxis(array, -1, 0):
            total += np.bincount(plane.ravel(order="K"), minlength=length)
        return {int(value): int(total[value]) for value in np.flatnonzero(total)}
    counts: dict[int, int] = {}
    for plane in np.moveaxis(array, -1, 0):
        values, numbers = np.unique(plane, return_counts=True)
        for value, number in zip(values.tolist(), numbers.tolist(), strict=True):
            counts[value] = counts.get(value, 0) + number
    return counts


def _is_foreground(labels: np.ndarray, outside: set[int]) -> np.ndarray:
    """Return True where a label map holds a structure, which is any value but the background and the ignored one."""
    mask = np.ones(labels.shape, dtype=bool, order="F")
    for value in outside | {0}:
        mask &= labels != value
    return mask


def _read(read: Callable[[], Read], path: Path, root: Path, role: str, channel: int) -> Read | FileFacts:
    """Return what a function reads, or the facts that are known without the voxels."""
    try:
        return read()
    except (MedsegError, OSError) as error:
        problem = one_line(error)
    except Exception as error:  # one damaged file must not hide the problems of the others
        problem = reason_of_failure(error)
    is_missing = not path.exists() and not path.is_symlink()
    return FileFacts(
        role, channel, _shown(path, root), problem=problem, is_missing=is_missing, stored_shape=_stored_shape(path)
    )


def _stored_shape(path: Path) -> tuple[int, ...]:
    try:
        header = read_header(path)
        if header is not None:
            return tuple(int(size) for size in header.get_data_shape())
        return read_channel_grid(path)[0].shape
    except Exception:  # whatever is wrong with the header was reported by the reader
        return ()


def _common(volume: Volume, root: Path, role: str, channel: int) -> dict[str, Any]:
    assert volume.path is not None
    return {
        "role": role,
        "channel": channel,
        "path": _shown(volume.path, root),
        "stored_shape": _stored_shape(volume.path) or volume.grid.shape,
        "shape": volume.grid.shape,
        "affine": tuple(tuple(float(value) for value in row) for row in volume.grid.affine),
        "dtype": _stored_dtype(volume),
        "format": volume.format,
        "header": _header_texts(volume),
        "digest": _digest(_turned(volume)),
    }


def _shown(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _stored_dtype(volume: Volume) -> str:
    if volume.format in ("nifti", "analyze", "mgz") and volume.header is not None:
        return str(volume.header.get_data_dtype().newbyteorder("="))
    return str(volume.array.dtype)


def _header_texts(volume: Volume) -> dict[str, str]:
    """Return what a header says about the origin of a file. Identifiers of patients are hashed."""
    if volume.format == "nifti" and volume.header is not None:
        texts = {name: volume.header[name].item().decode("latin-1").strip("\0 ") for name in NIFTI_TEXTS}
        codes = {name: str(int(volume.header[name])) for name in ("qform_code", "sform_code")}
        return {name: text for name, text in texts.items() if text} | codes
    if volume.format == "dicom":
        from pydicom import dcmread

        first = dcmread(volume.header["files"][0], stop_before_pixels=True, force=True)
        return {
            name: hashlib.sha256(str(first.get(name)).encode()).hexdigest()[:16]
            for name in DICOM_IDENTIFIERS
            if first.get(name)
        }
    return {}


def _turned(volume: Volume) -> np.ndarray:
    """Return the array in the axis order and directions of the patient (RAS), as a view."""
    if volume.grid.spatial_dims != 3:
        return volume.array
    return apply_orientation(volume.array, io_orientation(volume.grid.affine))


def _digest(array: np.ndarray) -> str:
    digest = hashlib.sha256(repr(array.shape).encode())
    for plane in np.moveaxis(array, -1, 0):
        digest.update(np.ascontiguousarray(plane, dtype="<f8").tobytes())
    return digest.hexdigest()


def _thumbnail(array: np.ndarray) -> str:
    """Return the block means; voxels on the border of two blocks count for both in part, as mirroring requires."""
    weights = _block_weights(array.shape[-1])
    means = np.zeros((THUMBNAIL_EDGE, *array.shape[:-1]))
    for plane, of_blocks in zip(np.moveaxis(array, -1, 0), weights.T, strict=True):
        for block in np.flatnonzero(of_blocks):
            means[block] += of_blocks[block] * plane
    for size in array.shape[:-1]:
        means = np.tensordot(means, _block_weights(size), axes=(1, 1))
    means = np.moveaxis(means, 0, -1)
    deviation = float(means.std())
    if not deviation > 0 or not np.isfinite(deviation):
        return ""
    return base64.b64encode(((means - means.mean()) / deviation).astype("<f2").tobytes()).decode("ascii")


def _block_weights(size: int) -> np.ndarray:
    """Return the share of each voxel of an axis in each of the 8 blocks, (8, size); rows sum to 1."""
    edges = np.arange(THUMBNAIL_EDGE + 1)[:, None] * size / THUMBNAIL_EDGE
    covered = np.clip(edges - np.arange(size), 0, 1)  # part of each voxel below each edge
    return np.diff(covered, axis=0) * THUMBNAIL_EDGE / size
