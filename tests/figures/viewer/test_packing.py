"""Packing of volumes, and what is reduced first if a page is too small."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.figures.viewer.packing import (
    MIN_VOXELS,
    MIN_VOXELS_WITH_CHANNELS,
    fitted,
    num_bytes,
    pack,
    pack_volume,
    unpack,
)
from medseg.figures.viewer.view import View, cut_out
from medseg.volumes import Grid


def test_packing_is_lossless_and_reproducible():
    data = np.random.default_rng(0).integers(0, 256, 10_000).astype(np.uint8).tobytes()
    assert unpack(pack(data)) == data
    assert pack(data) == pack(data)


def test_volumes_are_packed_with_x_fastest_in_any_memory_order():
    volume = np.random.default_rng(1).integers(0, 256, (4, 5, 6)).astype(np.uint8)
    flat = [volume[x, y, z] for z in range(6) for y in range(5) for x in range(4)]
    for stored in (volume, np.asfortranarray(volume), volume[::-1].copy()[::-1]):
        assert list(unpack(pack_volume(stored))) == flat


NAMES = ("T1", "T2", "FLAIR")


@pytest.fixture(scope="module")
def full() -> View:
    random = np.random.default_rng(0)
    shape = (90, 80, 70)  # 504,000 voxels; noise takes 4/3 bytes each in a page
    labels = np.zeros(shape, np.uint8)
    labels[40:50, 40:50, 30:40] = 1
    images = [(name, random.integers(1, 30_000, shape).astype(np.uint16)) for name in NAMES]
    return cut_out(labels, labels, Grid(shape, np.eye(4)), images, (slice(0, 0),) * 3)


def size(view: View) -> int:
    return sum(len(pack_volume(volume)) for volume in view.volumes().values())


def test_resolution_is_reduced_before_channels(full: View) -> None:
    channels = len(NAMES)
    for max_bytes in (3_000_000, 1_200_000, 700_000, 300_000, 150_000, 60_000):
        thin, packed = fitted(full, max_bytes)
        assert num_bytes(packed) == size(thin) <= max_bytes
        assert len(unpack(packed["image-0"])) == thin.num_voxels
        assert len(thin.channels) <= channels
        channels = len(thin.channels)
        assert [channel.name for channel in thin.channels] == list(NAMES[:channels])
        assert thin.left_out == NAMES[channels:]
        if thin.left_out:  # one more would not have fitted
            more = full
            while len(more.channels) > channels + 1:
                more = more.without_last_channel()
            assert size(more.thinned(MIN_VOXELS_WITH_CHANNELS)) > max_bytes
            assert thin.left_out[0] in " ".join(thin.remarks)
        if channels > 1:
            assert thin.num_voxels >= MIN_VOXELS_WITH_CHANNELS / 2  # whole steps along an axis halve it at most
    assert channels == 1


def test_a_view_that_cannot_fit_has_the_smallest_size(full: View) -> None:
    thin, _ = fitted(full, 10)
    assert len(thin.channels) == 1
    assert thin.num_voxels <= MIN_VOXELS
