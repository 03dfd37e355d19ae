from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from reporting.evaluations import write_image

from medseg.datasets import read_manifest
from medseg.datasets.manifest import Channel
from medseg.errors import EvaluationError
from medseg.reporting.images import find_images, read_image
from medseg.volumes import Grid

IMAGE = np.arange(24, dtype=np.int16).reshape(2, 3, 4)


@pytest.fixture
def dataset(tmp_path) -> dict[str, Path]:
    for case in ("phantom_000", "phantom_001"):
        for folder in ("images", "labels"):
            write_image(tmp_path / folder / f"{case}.nii.gz", IMAGE)
    return {case: tmp_path / "labels" / f"{case}.nii.gz" for case in ("phantom_000", "phantom_001")}


def test_a_manifest_finds_the_scans_beside_the_references(dataset, tmp_path):
    manifest = read_manifest("phantom_cells")
    (channel,) = manifest.channels
    for source in (None, tmp_path, str(tmp_path), tmp_path / "images"):
        found = find_images(source, dataset, manifest)
        assert found.files == {case: {channel.name: tmp_path / "images" / f"{case}.nii.gz"} for case in dataset}
        assert found.modalities == {channel.name: channel.modality}


def test_a_manifest_names_the_channels_and_missing_files_are_reported(dataset, tmp_path):
    manifest = read_manifest("phantom_cells")
    files = replace(manifest.files, image=(*manifest.files.image, "other/{case}.nii.gz"))
    two = replace(manifest, channels=(Channel("T1", "MR"), Channel("T2", "MR")), files=files)
    write_image(tmp_path / "other" / "phantom_000.nii.gz", IMAGE + 1)
    found = find_images(None, dataset, two)
    grid, problems = Grid(IMAGE.shape, np.eye(4)), {case: [] for case in dataset}
    read = {case: dict(found.read(case, grid, problems[case])) for case in dataset}
    np.testing.assert_array_equal(read["phantom_000"]["T1"], IMAGE)
    np.testing.assert_array_equal(read["phantom_000"]["T2"], IMAGE + 1)
    assert list(read["phantom_001"]) == ["T1"]
    assert problems == {"phantom_000": [], "phantom_001": ["no file of channel T2"]}


def test_nnunet_file_names_are_found(tmp_path):
    paths = [write_image(tmp_path / f"a_000{number}.nii.gz", IMAGE) for number in range(3)]
    found = find_images(tmp_path, {"a": Path("a.nii.gz"), "b": Path("b.nii.gz")}, None)
    assert found.files == {"a": dict(zip(("channel 1", "channel 2", "channel 3"), paths, strict=True))}
    problems: list[str] = []
    assert list(found.read("b", Grid(IMAGE.shape, np.eye(4)), problems)) == []
    assert problems == ["no image found for this case"]


def test_a_single_channel_is_not_numbered(tmp_path):
    path = write_image(tmp_path / "a_0000.nii.gz", IMAGE)
    assert find_images(tmp_path, {"a": Path("a.nii.gz")}, None).files == {"a": {"": path}}


def test_without_a_source_the_note_names_the_option(dataset):
    assert "--images" in find_images(None, dataset, None).note
    with pytest.raises(EvaluationError, match="no such image"):
        find_images("nowhere", dataset, None)


def test_a_scan_on_another_grid_is_left_out(tmp_path):
    path = write_image(tmp_path / "a.nii.gz", IMAGE, np.diag([1.0, 1, 1, 1]))
    image, note = read_image(path, Grid(IMAGE.shape, np.eye(4)))
    assert note == ""
    np.testing.assert_array_equal(image, IMAGE)
    image, note = read_image(path, Grid((3, 3, 4), np.eye(4)))
    assert image is None
    assert "(2, 3, 4)" in note
    assert "(3, 3, 4)" in note
    shifted = np.eye(4)
    shifted[0, 3] = 4
    image, note = read_image(path, Grid(IMAGE.shape, shifted))
    assert image is None
    assert "4 mm" in note
    path.write_bytes(b"not an image")
    assert read_image(path, Grid(IMAGE.shape, np.eye(4)))[0] is None


def test_a_scan_in_another_axis_order_is_reordered(tmp_path):
    flipped = np.diag([-1.0, 1, 1, 1])
    flipped[0, 3] = IMAGE.shape[0] - 1
    path = write_image(tmp_path / "a.nii.gz", IMAGE[::-1], flipped)
    image, note = read_image(path, Grid(IMAGE.shape, np.eye(4)))
    assert note == ""
    np.testing.assert_array_equal(image, IMAGE)
