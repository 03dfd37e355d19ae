"""Files with several channels, written by nibabel, SimpleITK and Pillow."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (the field's spelling)
from PIL import Image

from medseg.errors import VolumeError
from medseg.volumes import read_channel_grid, read_channels, read_colored_label_map, read_label_map, read_volume

AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])
VALUES = np.random.default_rng(0).normal(size=(4, 5, 6, 3)).astype(np.float32)
COLORS = np.random.default_rng(1).integers(0, 256, (7, 5, 3)).astype(np.uint8)


def stacked(path: Path) -> np.ndarray:
    volumes = read_channels(path)
    assert read_channel_grid(path) == (volumes[0].grid, len(volumes))
    return np.stack([volume.array for volume in volumes], axis=-1)


@pytest.mark.parametrize(
    "name", ["a.nii.gz", "a.nii", "vector.nii.gz", "a.mgz", "a.nrrd", "a.mha", "axis.nrrd", "axis.mha"]
)
def test_channels_of_volumes(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if path.suffix in (".nrrd", ".mha"):
        is_vector = not name.startswith("axis")
        array = VALUES.transpose(2, 1, 0, 3) if is_vector else VALUES.T
        sitk.WriteImage(sitk.GetImageFromArray(np.ascontiguousarray(array), isVector=is_vector), str(path))
    elif path.suffix == ".mgz":
        nib.save(nib.MGHImage(VALUES, AFFINE), path)
    else:
        nib.save(nib.Nifti1Image(VALUES[:, :, :, None] if name.startswith("vector") else VALUES, AFFINE), path)
    assert np.array_equal(stacked(path), VALUES)
    with pytest.raises(VolumeError, match=name):
        read_volume(path)


def test_a_scale_of_the_header_applies_to_every_channel(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(48, dtype=np.int16).reshape(2, 3, 4, 2), AFFINE)
    image.header.set_slope_inter(2, -5)
    nib.save(image, tmp_path / "a.nii")
    assert np.array_equal(stacked(tmp_path / "a.nii"), nib.load(tmp_path / "a.nii").get_fdata())


def test_rgb_nifti(tmp_path: Path) -> None:
    array = np.random.default_rng(2).integers(0, 256, (4, 5, 6, 3)).astype(np.uint8)
    stored = array.view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    nib.save(nib.Nifti1Image(stored, AFFINE), tmp_path / "rgb.nii.gz")
    assert np.array_equal(stacked(tmp_path / "rgb.nii.gz"), array)


def test_a_file_with_one_channel_is_one_channel(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(VALUES[..., 0], AFFINE), tmp_path / "a.nii")
    assert np.array_equal(stacked(tmp_path / "a.nii"), VALUES[..., :1])
    Image.fromarray(COLORS[..., 0]).save(tmp_path / "grey.png")
    assert np.array_equal(stacked(tmp_path / "grey.png"), COLORS[..., :1].transpose(1, 0, 2))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_colours_of_pictures(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    picture = Image.fromarray(COLORS).convert(mode)
    picture.save(path)
    assert np.array_equal(stacked(path), np.asarray(picture.convert("RGB")).transpose(1, 0, 2))


def test_jpeg_as_pillow_reads_it(tmp_path: Path) -> None:
    Image.fromarray(COLORS).save(tmp_path / "a.jpg")
    assert np.array_equal(stacked(tmp_path / "a.jpg"), np.asarray(Image.open(tmp_path / "a.jpg")).transpose(1, 0, 2))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_per_colour_are_kept(tmp_path: Path, suffix: str) -> None:
    wide = np.random.default_rng(3).integers(0, 2**16, (7, 5, 3)).astype(np.uint16)
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(wide, isVector=True), str(path))
    assert np.array_equal(stacked(path), wide.transpose(1, 0, 2))


def test_transparent_pixels_and_cmyk_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.dstack([COLORS, COLORS[..., 0]])).save(tmp_path / "a.png")
    Image.fromarray(COLORS).convert("CMYK").save(tmp_path / "a.jpg")
    for name, fact in (("a.png", "transparent"), ("a.jpg", "CMYK")):
        with pytest.raises(VolumeError, match=fact):
            read_channels(tmp_path / name)


def test_label_pictures(tmp_path: Path) -> None:
    index = np.random.default_rng(4).integers(0, 12, (6, 7)).astype(np.uint8)
    picture = Image.fromarray(index, mode="P")
    picture.putpalette(np.random.default_rng(5).integers(0, 256, 768).astype(np.uint8).tolist())
    picture.save(tmp_path / "palette.png")
    picture.convert("RGB").save(tmp_path / "colours.png")
    assert np.array_equal(read_label_map(tmp_path / "palette.png").array, index.T)
    colors = np.asarray(picture.convert("RGB")).astype(int)
    packed = colors[..., 0] * 65536 + colors[..., 1] * 256 + colors[..., 2]
    for name in ("palette.png", "colours.png"):
        assert np.array_equal(read_colored_label_map(tmp_path / name).array, packed.T)
    with pytest.raises(VolumeError, match=r"colours\.png"):
        read_label_map(tmp_path / "colours.png")
    picture.convert("RGB").save(tmp_path / "lossy.jpg")
    with pytest.raises(VolumeError, match=r"lossy\.jpg"):
        read_colored_label_map(tmp_path / "lossy.jpg")
