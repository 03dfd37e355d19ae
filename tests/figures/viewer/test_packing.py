import numpy as np

from medseg.figures.viewer.packing import pack, pack_volume, unpack


def test_bytes_survive_and_are_the_same_every_time():
    data = np.random.default_rng(0).integers(0, 256, 10_000).astype(np.uint8).tobytes()
    assert unpack(pack(data)) == data
    assert pack(data) == pack(data)


def test_a_volume_lies_with_x_fastest_whatever_its_memory_order():
    volume = np.random.default_rng(1).integers(0, 256, (4, 5, 6)).astype(np.uint8)
    flat = [volume[x, y, z] for z in range(6) for y in range(5) for x in range(4)]
    for stored in (volume, np.asfortranarray(volume), volume[::-1].copy()[::-1]):
        assert list(unpack(pack_volume(stored))) == flat
