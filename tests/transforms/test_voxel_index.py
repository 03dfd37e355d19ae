"""Compare VoxelIndex with NumPy's argwhere: the same voxels in the same order, in little memory."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor

from medseg.errors import ShapeError
from medseg.transforms import (
    LabelVoxelIndex,
    LabelVoxelIndexD,
    LabelVoxelIndexd,
    LabelVoxelIndexDict,
    VoxelIndex,
    voxel_index,
)


def all_positions(index, label):
    return [index.position(label, rank) for rank in range(index.count(label))]


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    num_labels=st.integers(1, 5),
    smooth=st.booleans(),
    restricted=st.booleans(),
    dtype=st.sampled_from([np.uint8, np.int16, np.int64, np.float32, bool]),
)
def test_equals_brute_force(seed, shape, num_labels, smooth, restricted, dtype):
    generator = np.random.default_rng(seed)
    label = generator.integers(0, num_labels, shape)
    label = np.sort(label, axis=-1) if smooth else label
    label = label.astype(dtype)
    allowed = generator.random(shape) > 0.3 if restricted else None
    index = VoxelIndex.from_label(label[None], None if allowed is None else allowed[None])
    kept = np.ones(shape, bool) if allowed is None else allowed
    assert index.labels == np.unique(label[kept]).astype(int).tolist()
    assert index.restricted is restricted
    for value in range(-1, num_labels + 1):
        expected = np.argwhere((label == value) & kept)
        if value == -1:
            expected = expected[:0]
        assert index.count(value) == len(expected)
        assert all_positions(index, value) == [tuple(row) for row in expected.tolist()]
    runs = 1 + int(np.count_nonzero(np.diff(label.astype(int).ravel())))
    assert index.num_bytes <= 4 * label.size
    assert restricted or index.num_bytes <= 8 * runs


def test_indexing_in_pieces_gives_the_same_index(monkeypatch):
    label = (np.random.default_rng(0).random((1, 7, 8, 9)) > 0.5).astype(np.uint8)
    whole = VoxelIndex.from_label(label, label * 0 + 1)
    monkeypatch.setattr("medseg.transforms.voxel_index._CHUNK_VOXELS", 5)
    pieces = VoxelIndex.from_label(label, label * 0 + 1)
    for value in (0, 1):
        assert all_positions(whole, value) == all_positions(pieces, value)


def test_bytes_of_a_background_with_a_small_ball():
    axes = np.ogrid[:64, :64, :64]
    label = (sum((axis - 32) ** 2 for axis in axes) < 36).astype(np.uint8)[None]
    index = VoxelIndex.from_label(label)
    lines = int(np.count_nonzero(label.any(-1)))
    assert index.num_bytes == 8 * lines + 8 * (lines + 1)


@pytest.mark.parametrize("kind", ["memmap", "tensor", "meta", "strided"])
def test_every_kind_of_array(tmp_path, kind):
    label = np.random.default_rng(1).integers(0, 3, (1, 5, 6, 7)).astype(np.int16)
    np.save(tmp_path / "label.npy", label)
    arrays = {
        "memmap": lambda: np.load(tmp_path / "label.npy", mmap_mode="r"),
        "tensor": lambda: torch.from_numpy(label),
        "meta": lambda: MetaTensor(torch.from_numpy(label)),
        "strided": lambda: np.asfortranarray(label),
    }
    index = LabelVoxelIndex()(arrays[kind]())
    for value in range(3):
        assert all_positions(index, value) == [tuple(row) for row in np.argwhere(label[0] == value).tolist()]


def test_copies_and_files_keep_the_index():
    index = VoxelIndex.from_label(np.random.default_rng(2).integers(0, 3, (1, 5, 6)))
    assert copy.deepcopy({"index": index})["index"] is index
    buffer = io.BytesIO()
    torch.save(index, buffer)
    buffer.seek(0)
    for restored in (pickle.loads(pickle.dumps(index)), torch.load(buffer, weights_only=True)):
        assert restored.shape == index.shape
        assert [all_positions(restored, v) for v in restored.labels] == [all_positions(index, v) for v in index.labels]


def test_dictionary_form():
    label = np.random.default_rng(3).integers(0, 3, (1, 5, 6))
    region = np.zeros((1, 5, 6))
    region[:, 2:] = 1
    data = {"label": label, "region": region}
    assert LabelVoxelIndexD is LabelVoxelIndexDict is LabelVoxelIndexd
    index = LabelVoxelIndexd("label")(data)["label_voxel_index"]
    assert sum(index.count(v) for v in index.labels) == 30
    index = LabelVoxelIndexd("label", "places", allowed_key="region")(data)["places"]
    assert sum(index.count(v) for v in index.labels) == 18
    assert set(data) == {"label", "region"}
    assert LabelVoxelIndexd("other", allow_missing_keys=True)(data).keys() == data.keys()
    with pytest.raises(ValueError, match=r"\['a', 'b'\]"):
        LabelVoxelIndexd(["a", "b"])


def test_invalid_inputs_raise():
    with pytest.raises(ShapeError, match=r"label map.*\(2, 5, 6\)"):
        VoxelIndex.from_label(np.zeros((2, 5, 6)))
    with pytest.raises(ShapeError, match=r"\(5, 6\).*\(5, 7\)"):
        VoxelIndex.from_label(np.zeros((1, 5, 6)), np.zeros((1, 5, 7)))
    with pytest.raises(ValueError, match=r"label map.*0\.5"):
        VoxelIndex.from_label(np.array([[0.0, 0.5, 1.0]]))
    with pytest.raises(ValueError, match=r"label map.*nan"):
        VoxelIndex.from_label(np.array([[0.0, np.nan, 1.0]]))


def test_empty_label_maps_and_empty_regions():
    assert VoxelIndex.from_label(np.zeros((1, 0, 3))).labels == []
    assert VoxelIndex.from_label(np.ones((1, 4, 3)), np.zeros((1, 4, 3))).labels == []
    assert voxel_index.VoxelIndex is VoxelIndex
