"""A view within so many bytes of a page."""

from __future__ import annotations

from medseg.figures.viewer.cut_out import MAX_VOXELS
from medseg.figures.viewer.packing import pack_volume
from medseg.figures.viewer.view import View

# Coarser than this a second channel is not worth its bytes, and a view not worth a page.
SMALLEST_WITH_CHANNELS = 200_000
SMALLEST = 50_000


def fitted(view: View, max_bytes: int, max_voxels: int = MAX_VOXELS) -> tuple[View, dict[str, str]]:
    """The view with as many voxels as fit, and its packed volumes by the name of their block.

    Voxels go first; where fewer than 200,000 would be left, channels go, the last one first, and then voxels again. A
    view of 50,000 voxels with one channel is returned whatever it takes.
    """
    full, voxels = view, max_voxels
    while True:
        thin = full.thinned(voxels)
        packed = {name: pack_volume(volume) for name, volume in thin.volumes().items()}
        size = num_bytes(packed)
        many = len(full.channels) > 1
        floor = SMALLEST_WITH_CHANNELS if many else SMALLEST
        if size <= max_bytes or (thin.num_voxels <= floor and not many):
            return thin, packed
        if thin.num_voxels <= floor:
            full, voxels = full.without_last_channel(), min(2 * thin.num_voxels, max_voxels)
            continue
        voxels = min(int(thin.num_voxels * 0.9 * max_bytes / size), thin.num_voxels * 3 // 4)
        voxels = max(voxels, floor)


def num_bytes(packed: dict[str, str]) -> int:
    """What packed volumes take in a page."""
    return sum(map(len, packed.values()))
