"""Pictures: NumPy and Pillow are the oracles for what grey levels mean."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medseg.errors import VolumeError
from medseg.volumes import read_channels, read_grid, read_volume, write_volume

GREY = np.random.default_rng(0).integers(0, 256, (5, 7)).astype(np.uint8)  # 5 rows, 7 columns


def rows(path: Path) -> np.ndarray:
    """Pixels as rows and columns."""
    assert read_grid(path) == read_volume(path).grid
    return read_volume(path).array.T


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32"])
def test_tiff_keeps_every_type_that_is_written(tmp_path: Path, dtype: str) -> None:
    limits = np.iinfo(dtype) if dtype != "float32" else np.finfo(dtype)
    array = np.linspace(float(limits.min), float(limits.max) * 0.99, 35).astype(dtype).reshape(7, 5)
    from medseg.volumes import as_volume

    try:
        path = write_volume(tmp_path / "a.tif", array, as_volume((array, np.eye(4))))
    except VolumeError:
        pytest.skip(f"ITK does not write {dtype}")
    again = read_volume(path)
    assert again.array.dtype == array.dtype
    np.testing.assert_array_equal(again.array, array)


@pytest.mark.parametrize("compression", ["raw", "packbits", "tiff_lzw", "tiff_deflate"])
def test_compressions_of_tiff(tmp_path: Path, compression: str) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.tif", compression=compression)
    np.testing.assert_array_equal(rows(tmp_path / "a.tif"), GREY)


def test_white_is_zero(tmp_path: Path) -> None:
    Image.fromarray(255 - GREY).save(tmp_path / "a.tif", tiffinfo={262: 0})
    np.testing.assert_array_equal(rows(tmp_path / "a.tif"), np.asarray(Image.open(tmp_path / "a.tif")))
    deep = GREY.astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "b.tif", tiffinfo={262: 0})
    stored = np.asarray(Image.open(tmp_path / "b.tif"))  # Pillow leaves 16 bits as they are stored
    np.testing.assert_array_equal(rows(tmp_path / "b.tif"), 65535 - stored)


def test_palette_of_greys_one_bit_and_opaque_alpha(tmp_path: Path) -> None:
    palette = Image.fromarray(GREY // 64)
    palette = palette.convert("P")
    palette.putpalette([value for level in (200, 100, 50, 0) for value in (level,) * 3])
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(rows(tmp_path / "p.png"), np.array([200, 100, 50, 0])[GREY // 64])
    for name in ("one.png", "one.tif"):
        Image.fromarray(GREY > 99).save(tmp_path / name)
        np.testing.assert_array_equal(rows(tmp_path / name), GREY > 99)
    for name in ("alpha.png", "alpha.tif"):
        Image.merge("LA", (Image.fromarray(GREY), Image.new("L", (7, 5), 255))).save(tmp_path / name)
        np.testing.assert_array_equal(rows(tmp_path / name), GREY)


def test_jpeg_is_read(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.jpg", quality=90)
    np.testing.assert_array_equal(rows(tmp_path / "a.jpg"), np.asarray(Image.open(tmp_path / "a.jpg")))


@pytest.mark.parametrize("name", ["rgb.png", "rgb.tif", "rgb.jpg", "rgba.png", "palette.png", "clear.png"])
def test_colours_and_transparency_are_refused(tmp_path: Path, name: str) -> None:
    colours = np.random.default_rng(1).integers(0, 256, (5, 7, 4)).astype(np.uint8)
    image = Image.fromarray(colours if name == "rgba.png" else colours[..., :3])
    if name == "palette.png":
        image = image.convert("P")
    if name == "clear.png":
        image = Image.merge("LA", (Image.fromarray(GREY), Image.fromarray(GREY)))
    image.save(tmp_path / name)
    with pytest.raises(VolumeError, match=f"^{tmp_path / name}: .*(3|4) components|palette of colours|transparent"):
        read_volume(tmp_path / name)


def test_hyperstacks_and_pages_of_different_sizes(tmp_path: Path) -> None:
    pages = [Image.fromarray(GREY + number) for number in range(4)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(read_volume(tmp_path / "stack.tif").array[..., 3], GREY.T + 3)
    described = {270: "ImageJ=1.53t\nimages=4\nchannels=2\nslices=2\nhyperstack=true\n"}
    pages[0].save(tmp_path / "hyper.tif", save_all=True, append_images=pages[1:], tiffinfo=described)
    with pytest.raises(VolumeError, match="2 channels"):
        read_volume(tmp_path / "hyper.tif")
    ome = '<OME><Pixels SizeX="5" SizeY="4" SizeC="{}" SizeZ="{}" SizeT="{}"/></OME>'
    for sizes, found in ((2, 2, 1), "2 channels"), ((1, 1, 4), "4 frames"), ((1, 4, 1), ""):
        description = {270: ome.format(*sizes)}
        pages[0].save(tmp_path / "ome.tif", save_all=True, append_images=pages[1:], tiffinfo=description)
        if found:
            with pytest.raises(VolumeError, match=found):
                read_volume(tmp_path / "ome.tif")
        else:
            assert read_volume(tmp_path / "ome.tif").array.shape[2] == 4
    pages[0].save(tmp_path / "sizes.tif", save_all=True, append_images=[Image.fromarray(GREY[:3])])
    with pytest.raises(VolumeError, match="different sizes"):
        read_volume(tmp_path / "sizes.tif")


def test_large_pictures_are_no_decompression_bombs(tmp_path: Path) -> None:
    """Pillow's own limit is 179 million pixels, which microscopy exceeds; here the size of the file decides."""
    large = np.random.default_rng(0).integers(0, 2, (1, 2_000_000)).astype(np.uint8)
    Image.MAX_IMAGE_PIXELS, before = 1_000, Image.MAX_IMAGE_PIXELS
    try:
        Image.fromarray(large).save(tmp_path / "a.png")
        assert read_volume(tmp_path / "a.png").array.shape == (2_000_000, 1)
    finally:
        Image.MAX_IMAGE_PIXELS = before


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
def test_a_picture_that_a_screen_turns_is_refused(tmp_path: Path, name: str) -> None:
    """Orientation 6 turns by 90 degrees: the label map may follow the screen or the file, and nobody can tell which."""
    exif = Image.Exif()
    for orientation in (1, 6):
        exif[0x0112] = orientation
        Image.fromarray(GREY).save(tmp_path / name, exif=exif)
        if orientation == 1:
            assert read_volume(tmp_path / name).array.shape == (7, 5)
    with pytest.raises(VolumeError, match=rf"{name}: .*orientation.*found 6, expected 1; .*auto-orient"):
        read_volume(tmp_path / name)
    with pytest.raises(VolumeError, match="orientation"):
        read_channels(tmp_path / name)
