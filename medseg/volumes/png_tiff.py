"""Read PNG, TIFF and JPEG pictures with Pillow; write PNG and TIFF with SimpleITK, which stores every number type.

Pictures carry no position in a patient: their grid is the identity, one unit per pixel.
"""

from __future__ import annotations

import math
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from medseg.errors import GeometryError, VolumeError, one_line
from medseg.volumes.formats import format_of
from medseg.volumes.grid import Grid
from medseg.volumes.streams import MAX_COMPRESSION
from medseg.volumes.volume import Volume

SIGNATURES = {
    "png": (b"\x89PNG\r\n\x1a\n",),
    "tiff": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "jpeg": (b"\xff\xd8\xff",),
}
# Opened by class and not by Image.open, whose limit against decompression bombs refuses large microscopy images. The
# number of pixels is compared with the size of the file instead.
PLUGINS: dict[str, type[Any]] = {
    "png": PngImagePlugin.PngImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
    "jpeg": JpegImagePlugin.JpegImageFile,
}
PNG_BIT_DEPTH = 24  # byte of the header
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
# Programs may append data behind the end of a PNG file; its end is looked for in this many bytes.
MAX_TAIL_BYTES = 1 << 20
# Pillow's modes of one number per pixel.
GREY_MODES = ("1", "L", "P", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N", "F")
BITS_PER_SAMPLE, PHOTOMETRIC, DESCRIPTION, SAMPLE_FORMAT = 258, 262, 270, 339
WHITE_IS_ZERO = 0
COMPRESSION, ROWS_PER_STRIP, TILE_WIDTH, TILE_LENGTH, STRIP_OFFSETS, TILE_OFFSETS = 259, 278, 322, 323, 273, 324
ORIENTATION, UPRIGHT, TURNED = 274, 1, range(2, 9)
UNCOMPRESSED = 1
_STDERR_LOCK = threading.Lock()
# Tags of the offsets and the sizes in bytes of the strips or tiles of a page.
STRIPS_AND_TILES = ((273, 279), (324, 325))
# Type by (sample format, bits) where Pillow's mode does not tell: it reads signed and unsigned numbers alike.
TIFF_TYPES = {(2, 8): np.int8, (1, 16): np.uint16, (2, 16): np.int16, (1, 32): np.uint32, (2, 32): np.int32}
# ImageJ writes the axes of a stack of more than three dimensions into the description.
HYPERSTACK = re.compile(r"^(channels|frames)=(\d+)", re.MULTILINE)
# The same in OME-TIFF, whose description is XML.
OME_SIZES = re.compile(r'Size([CTZ])="(\d{1,9})"')
PNG_WRITTEN_TYPES = (np.uint8, np.uint16)
PICTURE_DAMAGE = (
    OSError, SyntaxError, EOFError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, UserWarning,
)  # fmt: skip
# Pillow warns of a directory of a TIFF file that is cut short, and reads the pages before it.
CUT_DIRECTORY = "(?s).*(Corrupt EXIF data|Truncated File Read|Tag data larger than file)"


def read(path: Path) -> Volume:
    """Read a grey picture, or the pages of a TIFF file as the slices of a volume.

    A palette of greys, "white is zero" and one bit per pixel are read as the grey levels they mean. A fully opaque
    alpha channel is left out.

    Args:
        path: a PNG, TIFF or JPEG file.

    Returns:
        The volume. The first axis runs along the width, the second down the height, the third over the pages.

    Raises:
        VolumeError: damaged, truncated, colour, transparent, a hyperstack, or pages of different sizes.
    """
    return _volume(_pages(path, _grey), path)


def read_labels(path: Path) -> Volume:
    """Read a label map: as `read`, but a palette of colours stands for its indices; raises as `read`."""
    return _volume(_pages(path, _indices), path)


def read_colored_labels(path: Path) -> Volume:
    """Read a label map in which each colour is a label.

    Returns:
        The volume with 65536·red + 256·green + blue in each pixel, int32.

    Raises:
        VolumeError: as `read_channels`.
    """
    pages = [page.astype(np.int32) for page in _pages(path, _colors)]
    if any(page.shape[-1] != 3 for page in pages):
        pages = [np.repeat(page[..., :1], 3, axis=-1) for page in pages]
    return _volume([page @ np.array([65536, 256, 1], np.int32) for page in pages], path)


def read_channels(path: Path) -> list[Volume]:
    """Read the colours of a picture as channels: red, green and blue, or one of grey levels.

    Raises:
        VolumeError: damaged, truncated, transparent, in colours other than RGB, a hyperstack, or pages of different
            sizes.
    """
    pages = _pages(path, _colors)
    return [_volume([page[..., channel] for page in pages], path) for channel in range(pages[0].shape[-1])]


def _pages(path: Path, convert: Callable[[Any, Path, Any], np.ndarray]) -> list[np.ndarray]:
    with _opened(path) as picture:
        pages = [_page(picture, path, number, convert) for number in range(getattr(picture, "n_frames", 1))]
    shapes = {page.shape for page in pages}
    if len(shapes) > 1:
        raise VolumeError(f"{path}: has pages of different sizes {sorted(shapes)}; save one file per page")
    return pages


def _volume(pages: list[np.ndarray], path: Path) -> Volume:
    array = pages[0].T if len(pages) == 1 else np.stack([page.T for page in pages], axis=-1)
    return Volume(array, Grid(array.shape, np.eye(4)), path, format_of(path), {})


def read_grid(path: Path) -> Grid:
    """Read the size of a picture, the identity as its affine; raises as `read`."""
    with _opened(path) as picture:
        num_pages = getattr(picture, "n_frames", 1)
        return Grid((*picture.size, num_pages) if num_pages > 1 else picture.size, np.eye(4))


def read_channel_grid(path: Path) -> tuple[Grid, int]:
    """Read the size of a picture and its number of channels: 3 for colours, 1 for grey levels; raises as `read`."""
    grid = read_grid(path)
    with _opened(path) as picture:
        if picture.mode == "P":
            return grid, 1 if _is_grey(np.asarray(picture.convert("RGB"))) else 3
        return grid, 1 if picture.mode in GREY_MODES else 3


def write(path: Path, array: np.ndarray, like: Volume) -> None:
    """Write a PNG or TIFF picture.

    Raises:
        VolumeError: the format cannot store this type.
    """
    from medseg.volumes.itk import write_image

    check_grid_fits(path, like)
    if format_of(path) == "png" and (array.ndim != 2 or array.dtype not in PNG_WRITTEN_TYPES):
        raise VolumeError(
            f"{path}: not written: PNG holds two-dimensional uint8 or uint16, found {array.ndim}D {array.dtype}; "
            "use .tif, which `medseg predict --format tiff` writes"
        )
    write_image(path, array, like.grid)


def check_grid_fits(path: Path, like: Volume) -> None:
    """Check that a picture can stand for the grid of `like`.

    Raises:
        GeometryError: the volume has a position or spacing, which pictures cannot store.
        VolumeError: three dimensions in a PNG file, or JPEG, which loses values.
    """
    format = format_of(path)
    if format == "jpeg":
        raise VolumeError(f"{path}: not written: JPEG changes the values; use .png")
    if not np.array_equal(like.grid.affine, np.eye(4)):
        raise GeometryError(
            f"{path}: not written: {format} cannot keep the geometry of {like.name}; use .nii.gz or .nrrd"
        )
    if format == "png" and like.grid.spatial_dims != 2:
        raise VolumeError(
            f"{path}: not written: PNG holds two-dimensional uint8 or uint16, found 3D; use .nii.gz or .nrrd"
        )


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a picture after checking its signature, its size and, for PNG, its checksums."""
    format = format_of(path)
    with path.open("rb") as stream:
        start = stream.read(8)
        if not start.startswith(SIGNATURES[format]):
            raise VolumeError(f"{path}: named like a {format} file, but not one; export the image again")
        if start.startswith(b"MM\0+"):
            raise VolumeError(f"{path}: a big-endian BigTIFF file, which Pillow cannot read; save it as plain TIFF")
        try:
            if format == "png":
                _check_png(stream, path)
            stream.seek(0)
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message=CUT_DIRECTORY)
                with PLUGINS[format](stream) as picture:
                    _check_size(picture, path)
                    yield picture
        except VolumeError:
            raise
        except MemoryError as error:
            raise VolumeError(f"{path}: does not fit into memory; use a machine with more") from error
        except PICTURE_DAMAGE as error:
            raise VolumeError(
                f"{path}: truncated or damaged ({one_line(error)}); copy or export the image again"
            ) from error


def _check_png(stream: BinaryIO, path: Path) -> None:
    """Compare the checksums of a PNG file, which Pillow does not do while it reads the pixels."""
    stream.seek(0)
    with PLUGINS["png"](stream) as picture:
        _check_size(picture, path)
        picture.verify()
    with path.open("rb") as whole:
        whole.seek(max(0, path.stat().st_size - MAX_TAIL_BYTES))
        if PNG_END not in whole.read():
            raise VolumeError(f"{path}: truncated: the end of the PNG is absent; copy or export the image again")


def _check_size(picture: Any, path: Path) -> None:
    on_disk = path.stat().st_size
    width, height = picture.size
    if width < 1 or height < 1 or width * height > 8 * MAX_COMPRESSION * on_disk:
        raise VolumeError(
            f"{path}: truncated or a false header: shape {(width, height)} in {on_disk} bytes; export it again"
        )


def _page(picture: Any, path: Path, number: int, convert: Callable[[Any, Path, Any], np.ndarray]) -> np.ndarray:
    """Read one page as (rows, columns[, channels]) of numbers."""
    if number:
        picture.seek(number)
        _check_size(picture, path)
    tags = getattr(picture, "tag_v2", {})
    _check_upright(tags.get(ORIENTATION), path)
    on_disk = path.stat().st_size
    for offsets, counts in STRIPS_AND_TILES:
        if any(at + size > on_disk for at, size in zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False)):
            raise VolumeError(f"{path}: truncated: its pixels lie beyond its {on_disk} bytes; copy or export it again")
    missing = _num_missing_parts(picture.size, tags)
    if missing:
        raise VolumeError(
            f"{path}: truncated: {missing} strips or tiles of its pixels are absent; copy or export it again"
        )
    axes = {axis: int(count) for axis, count in HYPERSTACK.findall(str(tags.get(DESCRIPTION, "")))}
    sizes = {axis: int(size) for axis, size in OME_SIZES.findall(str(tags.get(DESCRIPTION, "")))}
    if getattr(picture, "n_frames", 1) > sizes.get("Z", math.inf):  # else the channels are the samples of a page
        axes |= {"channels": sizes.get("C", 1), "frames": sizes.get("T", 1)}
    several = [f"{count} {axis}" for axis, count in axes.items() if count > 1]
    if several:
        raise VolumeError(f"{path}: a hyperstack of {' and '.join(several)}; save one file per channel and frame")
    with _silent_libtiff() if tags.get(COMPRESSION, UNCOMPRESSED) != UNCOMPRESSED else nullcontext():
        picture.load()
    if not tags:
        orientation = None
        with suppress(*PICTURE_DAMAGE):  # unreadable EXIF turns nothing
            orientation = picture.getexif().get(ORIENTATION)
        _check_upright(orientation, path)
    return convert(picture, path, tags)


def _check_upright(orientation: Any, path: Path) -> None:
    """Refuse an EXIF orientation (TIFF has the same tag) that turns or mirrors a picture on a screen."""
    if orientation in TURNED:
        raise VolumeError(
            f"{path}: has an EXIF orientation that turns it on a screen, and a label map may follow the screen or the "
            f"file; found {orientation}, expected {UPRIGHT}; save it upright without the tag, such as with "
            "ImageMagick's -auto-orient"
        )


def _grey(picture: Any, path: Path, tags: Any) -> np.ndarray:
    """Return the grey levels of a page, (rows, columns)."""
    if picture.mode not in GREY_MODES:
        raise VolumeError(
            f"{path}: has {len(picture.getbands())} components per pixel (mode {picture.mode}) where one is expected; "
            "convert it to grey, or save one file per channel"
        )
    if picture.mode == "LA":
        return _opaque(picture, path)[..., 0]
    if picture.mode == "P":
        colors = np.asarray(picture.convert("RGB"))
        if not _is_grey(colors):
            raise VolumeError(f"{path}: has a palette of colours where grey is expected; convert it to grey")
        return np.ascontiguousarray(colors[..., 0])
    array = np.array(picture)
    if array.dtype == bool:
        return array.astype(np.uint8)
    return _typed(array, tags) if tags else array.astype(array.dtype.newbyteorder("="), copy=False)


def _indices(picture: Any, path: Path, tags: Any) -> np.ndarray:
    """Return the indices of a palette of colours, otherwise grey levels, (rows, columns)."""
    if picture.mode == "P" and not _is_grey(np.asarray(picture.convert("RGB"))):
        return np.array(picture)
    return _grey(picture, path, tags)


def _colors(picture: Any, path: Path, tags: Any) -> np.ndarray:
    """Return red, green and blue, or one grey level, of each pixel of a page, (rows, columns, 3 or 1)."""
    if picture.mode == "P" and not _is_grey(colors := np.asarray(picture.convert("RGB"))):
        return colors
    if picture.mode in GREY_MODES:
        return _grey(picture, path, tags)[..., np.newaxis]
    if picture.mode not in ("RGB", "RGBA", "RGBX", "YCbCr"):
        raise VolumeError(f"{path}: has colours of mode {picture.mode} where RGB is expected; convert it to RGB")
    if _bits_per_sample(picture, path, tags) > 8:
        return _wide_colors(path)
    if picture.mode == "RGBA":
        return _opaque(picture, path)
    return np.asarray(picture.convert("RGB"))


def _opaque(picture: Any, path: Path) -> np.ndarray:
    """Return a page without its alpha channel, which must be opaque everywhere."""
    array = np.asarray(picture)
    if array[..., -1].min() < 255:
        raise VolumeError(f"{path}: has transparent pixels; save it without an alpha channel")
    return array[..., :-1]


def _is_grey(colors: np.ndarray) -> bool:
    return bool((colors == colors[..., :1]).all())


def _bits_per_sample(picture: Any, path: Path, tags: Any) -> int:
    if tags:
        return max(map(int, tags.get(BITS_PER_SAMPLE, (8,))))
    if format_of(path) != "png":
        return 8
    with path.open("rb") as stream:
        return stream.read(PNG_BIT_DEPTH + 1)[PNG_BIT_DEPTH]


def _wide_colors(path: Path) -> np.ndarray:
    """Read colours of 16 bits per sample, of which Pillow keeps 8, with SimpleITK."""
    import SimpleITK as sitk  # noqa: N813 (the field's spelling)

    from medseg.volumes.itk import itk_error, itk_name

    try:
        array = sitk.GetArrayFromImage(sitk.ReadImage(itk_name(path)))
    except (RuntimeError, MemoryError) as error:
        raise itk_error(path, error) from error
    if array.ndim != 3 or array.shape[-1] != 3:
        raise VolumeError(f"{path}: has shape {array.shape} where one RGB picture is expected; save one file per page")
    return array


def _num_missing_parts(size: tuple[int, int], tags: Any) -> int:
    """Return how many strips or tiles a TIFF page lacks; Pillow leaves their pixels undefined."""
    width, height = size
    if tags.get(STRIP_OFFSETS):
        expected = math.ceil(height / max(int(tags.get(ROWS_PER_STRIP, height)), 1))
        return max(expected - len(tags[STRIP_OFFSETS]), 0)
    if tags.get(TILE_OFFSETS):
        columns, rows = (max(int(tags.get(tag, 1)), 1) for tag in (TILE_WIDTH, TILE_LENGTH))
        return max(math.ceil(width / columns) * math.ceil(height / rows) - len(tags[TILE_OFFSETS]), 0)
    return 0


@contextmanager
def _silent_libtiff() -> Iterator[None]:
    """Discard what the process prints to its standard error for a moment.

    libtiff prints lines of its own about damage, and Pillow has no switch for them. The damage itself is raised.
    """
    with _STDERR_LOCK:
        sys.stderr.flush()
        try:
            kept = os.dup(2)
        except OSError:  # a process without a standard error
            yield
            return
        try:
            with Path(os.devnull).open("w") as null:
                os.dup2(null.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _typed(array: np.ndarray, tags: Any) -> np.ndarray:
    """Give the pixels of a TIFF page the type that its tags state."""
    bits, kind = int(tags.get(BITS_PER_SAMPLE, (8,))[0]), int(tags.get(SAMPLE_FORMAT, (1,))[0])
    dtype = np.dtype(TIFF_TYPES.get((kind, bits), array.dtype)).newbyteorder("=")
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    typed = native.view(dtype) if native.dtype.itemsize == dtype.itemsize else native.astype(dtype)
    # Pillow inverts 8 bits and fewer itself.
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO and typed.dtype == np.uint16:
        return np.iinfo(np.uint16).max - typed
    return typed
