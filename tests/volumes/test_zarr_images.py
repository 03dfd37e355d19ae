"""Tests of OME-Zarr images and Zarr arrays, compared with what the zarr package reads and writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg.errors import GeometryError, MedsegError, VolumeError
from medseg.volumes import Grid, Volume, as_channels, read_grid, read_label_map, read_volume, write_volume
from medseg.volumes.ngff import with_pyramid

zarr = pytest.importorskip("zarr")

from volumes.zarr_stores import SPACE, noise, ome_zarr  # noqa: E402

from medseg.volumes.zarr_images import ZarrImage, files_of_store  # noqa: E402


def world(scale: tuple[float, ...], translation: tuple[float, ...] = (0.0, 0.0, 0.0)) -> np.ndarray:
    """Return the affine of an array (z, y, x) whose axes run along S, A and R."""
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = scale
    affine[:3, 3] = translation[::-1]
    affine[3, 3] = 1
    return affine


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_reading_gives_the_voxels_and_the_scale_in_millimetres(tmp_path: Path, version: str) -> None:
    array = noise((20, 33, 40))
    path = ome_zarr(tmp_path / "a.ome.zarr", array, version, translation=(10.0, 20.0, 30.0))
    volume = read_volume(path)
    assert volume.array.dtype == array.dtype
    assert np.array_equal(volume.array, array)
    assert np.allclose(volume.grid.affine, world((2e-3, 5e-4, 2.5e-4), (0.01, 0.02, 0.03)), rtol=1e-12)
    assert read_grid(path) == volume.grid
    assert volume.grid.orientation == "SAR"


def test_sharded_arrays_are_read(tmp_path: Path) -> None:
    array = noise((32, 64, 64))
    path = ome_zarr(tmp_path / "a.zarr", array, chunks=(8, 8, 8), shards=(32, 32, 32), num_levels=1)
    assert np.array_equal(read_volume(path).array, array)
    assert ZarrImage(path).chunks == (32, 32, 32)


def test_channels_and_one_time_point_are_separated(tmp_path: Path) -> None:
    array = noise((1, 2, 5, 6, 7))
    axes = [{"name": "t", "type": "time"}, {"name": "c", "type": "channel"}, *SPACE]
    path = ome_zarr(tmp_path / "a.zarr", array, axes=axes)
    first, second = as_channels(str(path), 3, 2)
    assert np.array_equal(first.array, array[0, 0])
    assert np.array_equal(second.array, array[0, 1])
    with pytest.raises(VolumeError, match="2 channels"):
        read_volume(path)


def test_multiscale_transformations_come_after_those_of_the_level(tmp_path: Path) -> None:
    whole = [{"type": "scale", "scale": [10.0, 10.0, 10.0]}, {"type": "translation", "translation": [1.0, 2.0, 3.0]}]
    path = ome_zarr(tmp_path / "a.zarr", noise((4, 4, 4)), translation=(1.0, 1.0, 1.0), coordinateTransformations=whole)
    expected = world((20e-3, 5e-3, 2.5e-3), (11e-3, 12e-3, 13e-3))
    assert np.allclose(read_grid(path).affine, expected, rtol=1e-12)


def test_anatomical_orientation_gives_the_direction_of_an_axis(tmp_path: Path) -> None:
    axes = [dict(axis) for axis in SPACE]
    axes[0]["orientation"] = {"type": "anatomical", "value": "anterior-to-posterior"}
    axes[1]["orientation"] = {"type": "anatomical", "value": "superior-to-inferior"}
    path = ome_zarr(tmp_path / "a.zarr", noise((4, 5, 6)), axes=axes, translation=(1.0, 0.0, 0.0))
    grid = read_grid(path)
    assert grid.orientation == "PIR"
    assert np.allclose(grid.affine[:3, 3], (0, -1e-3, 0))


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_plain_array_needs_the_attribute_scale(tmp_path: Path, zarr_format: int) -> None:
    array = noise((6, 7, 8), dtype=np.float32)
    path = tmp_path / "a.zarr"
    stored = zarr.create_array(str(path), shape=array.shape, chunks=(4, 4, 4), dtype="float32", zarr_format=zarr_format)
    stored[...] = array
    with pytest.raises(VolumeError, match="scale"):
        read_volume(path)
    stored.attrs.update(scale=[3.0, 2.0, 1.0], unit="micrometer")
    volume = read_volume(path)
    assert np.array_equal(volume.array, array)
    assert np.allclose(volume.grid.spacing, (3e-3, 2e-3, 1e-3))


@pytest.mark.parametrize("unit", ["", "parsec"])
def test_a_missing_or_unknown_unit_is_noted(tmp_path: Path, unit: str) -> None:
    axes = [{key: value for key, value in {**axis, "unit": unit}.items() if value} for axis in SPACE]
    path = ome_zarr(tmp_path / "a.zarr", noise((4, 4, 4)), axes=axes)
    with pytest.warns(UserWarning, match="unit"):
        assert read_volume(path).grid.spacing == pytest.approx((2.0, 0.5, 0.25))


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"axes": [{"name": n, "type": "space"} for n in ("a", "b", "c")]}, "a (space)"),
        ({"axes": SPACE[:1]}, "z (space)"),
        ({"axes": [SPACE[0], SPACE[1], SPACE[1]]}, "y (space), y (space)"),
        ({"axes": [{"name": "q", "type": "space", "orientation": {"value": "up"}}, *SPACE[1:]]}, "'up'"),
        ({"axes": SPACE[1:]}, "2 numbers"),
        ({"datasets": [{"path": "0"}]}, "scale"),
        ({"datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 1]}]}]}, "[1, 1]"),
        ({"datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 0, 1]}]}]}, "0.0"),
        ({"datasets": [{"path": "0", "coordinateTransformations": [{"type": "affine"}]}]}, "'affine'"),
        ({"datasets": []}, "datasets"),
        (
            {"datasets": [{"path": "7", "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 1]}]}]},
            "'7'",
        ),
    ],
)
def test_wrong_metadata_are_refused_in_one_line(tmp_path: Path, changes: dict[str, Any], fact: str) -> None:
    path = ome_zarr(tmp_path / "bad.zarr", noise((8, 8, 8)), **changes)
    with pytest.raises(VolumeError) as caught:
        read_volume(path)
    message = str(caught.value)
    assert str(path) in message
    assert fact in message
    assert "\n" not in message


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.zarr").mkdir()
    (tmp_path / "file.zarr").write_text("x", encoding="utf-8")
    zarr.create_group(str(tmp_path / "group.zarr"))
    (tmp_path / "broken.zarr").mkdir()
    (tmp_path / "broken.zarr" / "zarr.json").write_text("{", encoding="utf-8")
    for name in ("empty", "file", "group", "broken", "absent"):
        with pytest.raises(MedsegError, match=f"{name}.zarr"):
            read_volume(tmp_path / f"{name}.zarr")


def test_several_time_points_are_refused(tmp_path: Path) -> None:
    path = ome_zarr(tmp_path / "a.zarr", noise((3, 4, 4, 4)), axes=[{"name": "t", "type": "time"}, *SPACE])
    with pytest.raises(VolumeError, match="axis t has size 3"):
        read_volume(path)


def test_a_lost_chunk_is_an_error_if_the_next_level_shows_voxels_there(tmp_path: Path) -> None:
    path = ome_zarr(tmp_path / "a.zarr", noise((32, 32, 32)))
    (path / "0" / "c" / "1" / "0" / "1").unlink()
    with pytest.raises(VolumeError, match="c/1/0/1"):
        read_volume(path)


def test_an_absent_chunk_of_background_is_noted(tmp_path: Path) -> None:
    array = noise((32, 32, 32))
    array[:16, :16, :16] = 0
    path = ome_zarr(tmp_path / "a.zarr", array)
    assert not (path / "0" / "c" / "0" / "0" / "0").exists()
    with pytest.warns(UserWarning, match="1 of 8"):
        assert np.array_equal(read_volume(path).array, array)


def test_an_absent_chunk_without_a_fill_value_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    stored = zarr.create_array(str(path), shape=(8, 8, 8), chunks=(4, 4, 4), dtype="uint8", zarr_format=2)
    stored[...] = noise((8, 8, 8), dtype=np.uint8)
    stored.attrs["scale"] = [1.0, 1.0, 1.0]
    metadata = json.loads((path / ".zarray").read_text())
    (path / ".zarray").write_text(json.dumps({**metadata, "fill_value": None}))
    (path / "1.1.0").unlink()
    with pytest.raises(VolumeError, match=r"1\.1\.0"):
        read_volume(path)


def test_a_damaged_chunk_is_refused(tmp_path: Path) -> None:
    path = ome_zarr(tmp_path / "a.zarr", noise((32, 32, 32)))
    chunk = path / "0" / "c" / "1" / "0" / "1"
    chunk.write_bytes(chunk.read_bytes()[:40])
    with pytest.raises(VolumeError, match=r"a\.zarr"):
        read_volume(path)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_written_label_map_has_the_levels_of_its_image(tmp_path: Path, version: str) -> None:
    array = noise((41, 50, 36))
    image = read_volume(ome_zarr(tmp_path / "a.zarr", array, version, num_levels=3))
    labels = (array % 3).astype(np.uint8)
    write_volume(tmp_path / "labels.zarr", labels, like=image)
    written = read_label_map(tmp_path / "labels.zarr")
    assert np.array_equal(written.array, labels)
    assert written.grid == image.grid
    assert written.header == {**image.header, "multiscale": written.header["multiscale"]}
    group = zarr.open_group(str(tmp_path / "labels.zarr"), mode="r")
    assert group.metadata.zarr_format == (2 if version == "0.4" else 3)
    assert np.array_equal(group["1"][...], labels[::2, ::2, ::2])
    assert np.array_equal(group["2"][...], labels[::4, ::4, ::4])


def test_levels_between_voxels_take_the_nearest_voxel(tmp_path: Path) -> None:
    """Image pyramids made by averaging lie half a voxel further; every level takes voxels at its own positions."""
    array = noise((40, 40, 40))
    path = ome_zarr(tmp_path / "a.zarr", array)
    group = zarr.open_group(str(path))
    ome = group.attrs["ome"]
    ome["multiscales"][0]["datasets"][1]["coordinateTransformations"].append(
        {"type": "translation", "translation": [1.0, 0.25, 0.2]}
    )
    group.attrs["ome"] = ome
    write_volume(tmp_path / "b.zarr", array, like=read_volume(path))
    coarse = zarr.open_group(str(tmp_path / "b.zarr"), mode="r")["1"][...]
    # Offsets in fine voxels are 0.5, 0.5 and 0.8; halves are rounded to even numbers.
    index = [np.rint(np.arange(20) * 2 + offset).astype(int) for offset in (0.5, 0.5, 0.8)]
    assert np.array_equal(coarse, array[np.ix_(*index)])


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAL", "PIR"])
def test_other_formats_are_written_with_their_orientation(tmp_path: Path, codes: str) -> None:
    from nibabel.orientations import axcodes2ornt, inv_ornt_aff

    shape = (6, 7, 300)
    ornt = axcodes2ornt(codes)
    affine = np.diag([1.0, 2.0, 3.0, 1.0]) @ inv_ornt_aff(ornt, shape)
    affine[:3, 3] += (5, -6, 7)
    like = Volume(noise(shape), Grid(shape, affine))
    write_volume(tmp_path / "a.ome.zarr", like.array, like)
    read = read_volume(tmp_path / "a.ome.zarr")
    # Every voxel keeps its place in millimetres.
    index = np.argwhere(np.ones(read.array.shape, dtype=bool))[::97]
    places = index @ read.grid.affine[:3, :3].T + read.grid.affine[:3, 3]
    source = np.rint((places - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T).astype(int)
    assert np.array_equal(read.array[tuple(index.T)], like.array[tuple(source.T)])
    assert [axis.name for axis in read.header["multiscale"].axes] == ["z", "y", "x"]
    assert len(read.header["shapes"]) == 2


def test_oblique_grids_cannot_be_stored(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[0, 1] = 0.3
    like = Volume(np.zeros((4, 4, 4), np.uint8), Grid((4, 4, 4), affine))
    with pytest.raises(GeometryError, match="oblique"):
        write_volume(tmp_path / "a.zarr", like.array, like)
    assert not list(tmp_path.iterdir())


def test_a_pyramid_ends_at_256_voxels(tmp_path: Path) -> None:
    image = read_volume(ome_zarr(tmp_path / "a.zarr", noise((4, 4, 4)), num_levels=1)).header["multiscale"]
    levels, shapes = with_pyramid(image, (1000, 40, 300))
    assert shapes == [(1000, 40, 300), (500, 40, 150), (250, 40, 150)]
    assert [level.scale for level in levels.levels] == [(2, 0.5, 0.25), (4, 0.5, 0.5), (8, 0.5, 0.5)]


def test_the_files_of_a_store_are_its_metadata_and_the_finest_level(tmp_path: Path) -> None:
    path = ome_zarr(tmp_path / "a.zarr", noise((32, 16, 16)))
    names = {file.relative_to(path).as_posix() for file in files_of_store(path)}
    assert names == {"zarr.json", "0/zarr.json", "0/c/0/0/0", "0/c/1/0/0"}
    shutil.rmtree(path / "1")
    assert {file.relative_to(path).as_posix() for file in files_of_store(path)} == names
