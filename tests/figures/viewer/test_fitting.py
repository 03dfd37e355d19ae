"""What goes first where a page is too small: voxels, then channels, then voxels again."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.figures.viewer.packing import SMALLEST, SMALLEST_WITH_CHANNELS, fitted, num_bytes, pack_volume, unpack
from medseg.figures.viewer.view import View, cut_out
from medseg.volumes import Grid

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


def test_voxels_go_before_channels(full: View) -> None:
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
            assert size(more.thinned(SMALLEST_WITH_CHANNELS)) > max_bytes
            assert thin.left_out[0] in " ".join(thin.remarks)
        if channels > 1:
            assert thin.num_voxels >= SMALLEST_WITH_CHANNELS / 2  # whole steps along an axis halve it at most
    assert channels == 1


def test_what_cannot_fit_is_as_small_as_it_gets(full: View) -> None:
    thin, _ = fitted(full, 10)
    assert len(thin.channels) == 1
    assert thin.num_voxels <= SMALLEST
