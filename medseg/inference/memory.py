"""How much memory a prediction will take, before it starts."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise, product
from math import ceil, prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medseg.errors import MemoryLimitError, OptionError
from medseg.inference.backends.torch_backend import Backend
from medseg.inference.preprocessing import ModelGrid, exact_map, model_grid, slabs
from medseg.inference.scan import Scan
from medseg.inference.tiling.blending import Blender, Carried
from medseg.inference.tiling.streaming import Window
from medseg.inference.tiling.tiles import TileGrid
from medseg.plan import Plan
from medseg.transforms.restore.grid_map import map_grids
from medseg.transforms.restore.label_decision import CHUNK_VALUES, CHUNK_VOXELS, SLAB_PLANES, LabelDecision
from medseg.transforms.restore.native import voxels_at_once
from medseg.transforms.restore.resample import SeparableResampler
from medseg.volumes import Grid

UNITS = {"": 1, "B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KIB": 1024, "MIB": 1024**2, "GIB": 1024**3}
# Interpreter, torch and MONAI loaded, where the system does not say.
USUAL_RESIDENT = 700 * 1024**2
# The option's number in malloc.h.
M_MMAP_THRESHOLD = -3
# What allocators of two threads keep beyond what is asked of them, and libraries load at their first use: 10 to 35 MB
# were measured.
SLACK = 64 * 1024**2


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes needed, phase by phase.

    Args:
        resident: what the process holds already: libraries, weights, the scan as read.
        preprocess: at most while the scan is turned into the network's input.
        held: image, labels and unfinished slabs, for as long as tiles are predicted.
        blending: a batch of predictions and the block being restored.
        network: one forward pass over a batch of tiles, where it runs in this memory.
        is_pipelined: whether blending happens while the network runs, or after it.
    """

    resident: int
    preprocess: int
    held: int
    blending: int
    network: int
    is_pipelined: bool = True

    @property
    def merge(self) -> int:
        """Everything but the network, while tiles are predicted."""
        return self.held + self.blending

    @property
    def total(self) -> int:
        """The most that is held at once."""
        busy = self.blending + self.network if self.is_pipelined else max(self.blending, self.network)
        return self.resident + max(self.preprocess, self.held + busy) + SLACK


def parse_bytes(text: str | int) -> int:
    """Bytes of "4GB", "500 MiB" or a plain number.

    Raises:
        OptionError: it is none of these, or not positive.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?I?B?)\s*", str(text).upper())
    unit = match[2] if match else ""
    unit = unit if unit.endswith("B") or not unit else unit + "B"
    if not match or unit not in UNITS or float(match[1]) <= 0:
        raise OptionError(f"an amount of memory looks like 4GB or 500MiB, found {text!r}")
    return int(float(match[1]) * UNITS[unit])


def resident_bytes() -> int:
    """What this process holds in memory now; a usual value where the system does not tell."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        import resource

        return int(statm.read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return USUAL_RESIDENT


def return_freed_memory() -> None:
    """Have the C library give freed blocks of a megabyte or more back to the system, at once and from now on.

    glibc otherwise learns to keep blocks of up to 32 MB for itself, in pieces: some hundred megabytes that no estimate
    can foresee. Costs time for fresh pages; so it is done only where a limit is to be kept.
    """
    if sys.platform.startswith("linux"):
        library = ctypes.CDLL(None)
        if hasattr(library, "mallopt") and hasattr(library, "malloc_trim"):  # not in other C libraries than glibc
            library.mallopt(M_MMAP_THRESHOLD, 1 << 20)
            library.malloc_trim(0)


def require(estimate: MemoryEstimate, limit: int, name: str) -> None:
    """Raise MemoryLimitError where a prediction would not keep the limit."""
    if estimate.total > limit:
        raise MemoryLimitError(
            f"{name}: needs about {_mb(estimate.total)} of memory at the least ({_mb(estimate.resident)} for the "
            f"process and the scan, {_mb(estimate.network)} for the network, {_mb(estimate.merge)} for merging, "
            f"{_mb(estimate.preprocess)} while preprocessing), allowed are {_mb(limit)}; raise --max-ram"
        )


def _mb(size: int) -> str:
    return f"{size / 1000**2:,.0f} MB"


F16, F32, F64 = 2, 4, 8
# Copies of the logits that an observer makes at a time: the probabilities, and what its arithmetic takes.
OBSERVED = 3


def preprocess_bytes(resampler: SeparableResampler, channels: int, takes_percentiles: bool) -> int:
    """While preprocessing: the image on the model grid, and the slab being interpolated or a channel's statistics.

    Args:
        resampler: from the scan's grid (which it calls the model's) to the model grid.
        channels: of the image.
        takes_percentiles: whether a normalisation sorts voxels.
    """
    model = prod(resampler.native_shape)
    statistics = model * (1 + (2 * F32 if takes_percentiles else 0))
    return F32 * channels * model + max(statistics, *(_slab_bytes(resampler, *slab) for slab in slabs(resampler)))


def _slab_bytes(resampler: SeparableResampler, part: slice, need: slice) -> int:
    """The most that lives while a slab is interpolated: each pass takes its input, its result and what it adds to it.

    The slab as read lives until the last pass is done.
    """
    sizes = [need.stop - need.start, *(axis.model_size for axis in resampler.axes[1:])]
    read = prod(sizes)
    given, peak = 0, read
    for axis in (*reversed(range(1, len(sizes))), 0):
        taps = resampler.taps[axis] if axis else resampler.taps[0][:, part] - need.start
        if len(taps) == 1 and np.array_equal(taps[0], taps[0, 0] + np.arange(taps.shape[1])):
            continue  # a view
        sizes[axis] = taps.shape[1]
        made = prod(sizes)
        peak = max(peak, read + given + min(len(taps), 2) * made)
        given = made
    return (F32 if all(axis.is_whole for axis in resampler.axes) else F64) * peak


def monai_preprocess_bytes(native_shape: Sequence[int], model_shape: Sequence[int], channels: int) -> int:
    """The same through MONAI's transforms: turned copies, and resampling in float64 with a position a voxel."""
    native, model = prod(native_shape), prod(model_shape)
    resampling = F64 * channels * native + (F64 * (2 * channels + 2 * len(model_shape)) + F32 * channels) * model
    normalizing = F32 * (3 * channels + 3) * model
    return 2 * F32 * channels * native + max(resampling, normalizing)


def block_bytes(grid: TileGrid, num_values: int, carried: Carried) -> int:
    """The most that `Blender` holds, found by visiting the rows of tiles as it does."""
    blender = Blender(grid, torch.empty(grid.tile, device="meta"), carried)
    num_slabs, num_rows = (len(starts) for starts in blender.starts[:2])
    depth = prod(blender.shape[2:])
    full, half = F32 * (num_values + 1) * depth, (F16 * num_values + F32) * depth
    sizes: dict[tuple[int, int], tuple[int, int]] = {}
    held: dict[tuple[int, int], int] = {}
    peak = 0
    for slab, row in product(range(num_slabs), range(num_rows)):
        for (p, planes), (q, rows) in product(blender.touched(0, slab), blender.touched(1, row)):
            before, size = held.get((p, q), 0), sizes.get((p, q), (0, 0))
            sizes[p, q] = (max(size[0], planes.stop - planes.start), max(size[1], rows.stop - rows.start))
            held[p, q] = full * prod(sizes[p, q])
            # for a moment a block is there twice where it is restored or enlarged
            peak = max(peak, sum(held.values()) + (before if before != held[p, q] else 0))
        del held[slab, row]
        if carried == "fp16":
            for p, q in held:
                if p > slab and q <= row:
                    held[p, q] = half * prod(sizes[p, q])
    return peak


def restore_bytes(
    grid: TileGrid,
    native_shape: Sequence[int],
    num_values: int,
    num_classes: int,
    halo: int,
    slab_values: int,
    is_together: bool,
    is_observed: bool = False,
) -> tuple[int, int]:
    """What restoring keeps between blocks, and what it takes for one.

    Args:
        grid: the tiles.
        native_shape: of the scan, in the order of the model's axes.
        num_values: channels that are blended.
        num_classes: logits a voxel.
        halo: planes the interpolation reaches back; 0 where nothing is interpolated.
        slab_values: see `LabelRestorer`.
        is_together: whether all values of a voxel are resampled at once (features, observers), or one after the other.
        is_observed: whether observers turn the logits into probabilities.
    """
    order = grid.axis_order
    zoom = [native_shape[axis] / grid.image_shape[axis] for axis in order]
    depth = prod(grid.padded_shape[axis] for axis in order[2:])
    widest = [max((b - a for a, b in pairwise(grid.starts[axis])), default=0) for axis in order[:2]]
    widest = [max(n, grid.padded_shape[axis] - grid.starts[axis][-1]) for n, axis in zip(widest, order, strict=False)]
    width = grid.padded_shape[order[1]]
    kept = F32 * num_values * halo * depth * (2 * width + widest[0] + halo)
    plane = (ceil(widest[1] * zoom[1]) + 1) * prod(native_shape[axis] for axis in order[2:])
    channels = num_values if is_together else 1
    planes = min(SLAB_PLANES, max(1, slab_values // (channels * plane)))
    block = F32 * num_values * prod(n + halo for n in widest) * depth if halo else 0
    slab = 3 * channels * plane * (ceil(planes / min(1.0, zoom[0])) + halo) if halo else 0
    if is_together:
        chunk = num_classes * plane * min(planes, max(1, CHUNK_VALUES // (num_classes * plane)))
        tail = slab + chunk + (3 if halo else 1) * chunk * num_values // num_classes + 4 * plane
        tail += OBSERVED * chunk if is_observed else 0
    else:
        tail = slab + 2 * planes * plane + 5 * max(CHUNK_VOXELS, plane)
    return kept, block + F32 * tail


def sheared_restore_bytes(spatial_dims: int, num_values: int, num_classes: int, is_observed: bool) -> int:
    """What restoring across a shear takes beside the values of the whole model grid."""
    positions = F64 * (spatial_dims + 3) + F32 * spatial_dims
    values = F32 * (num_values + (1 + OBSERVED * is_observed) * num_classes + 4)
    return voxels_at_once(num_values, num_classes) * (positions + values)


class LiveBytes(TorchDispatchMode):
    """Follows the bytes of every tensor made inside; `peak` is the most that lived at once.

    `largest_operation` is the size of the inputs and outputs of the largest single operation: convolution libraries
    reorder them into layouts of their own, which the tensors do not show.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0
        self.largest_operation = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and take stock."""
        output = func(*args, **(kwargs or {}))
        touched: dict[int, int] = {}
        for leaf in tree_leaves((args, kwargs, output)):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                touched[storage._cdata] = storage.nbytes()
        for leaf in tree_leaves(output):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        self.largest_operation = max(self.largest_operation, sum(touched.values()))
        return output


def forward_bytes(run: Callable[[torch.Tensor], Any], shape: Sequence[int]) -> int:
    """Bytes that `run` needs beside its parameters for an input of that shape (B, C, *tile), fp32.

    The pass is done on tensors without storage. An estimate: live tensors plus half of the largest operation's inputs
    and outputs for the layouts a convolution library copies them into (measured on a CPU: a tenth to four tenths).
    """
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live:
        run(torch.empty(tuple(shape)))
    return live.peak + live.largest_operation // 2


# How much thinner than usual the slabs restored at once may become, in halvings.
SLAB_SHIFTS = (0, 2, 4, 6)


@dataclass(frozen=True)
class Workload:
    """What a predictor does to every scan, as far as memory is concerned.

    Args:
        plan: channels, orientation and spacing.
        backend: what is blended, and where it is computed.
        predict: the backend with everything around it, as tiles are given to it.
        decision: how many logits a voxel, and the labels' type.
        observer_bytes: bytes a native voxel that are kept beside the labels.
        kept_slices: further scans of the same shape (slices of a volume) whose results are kept.
    """

    plan: Plan
    backend: Backend
    predict: Callable[[torch.Tensor], torch.Tensor]
    decision: LabelDecision
    observer_bytes: int = 0
    kept_slices: int = 0

    def estimate(self, scan: Scan, window: Window, network_bytes: int | None = None) -> MemoryEstimate:
        """Bytes that one prediction takes with that window.

        The model grid is the one that preprocessing will make; the pass through the network is measured without
        storage. Tiles of air count as if they were predicted: which they are is known once the scan is preprocessed.

        Args:
            scan: as read.
            window: tiles and blending.
            network_bytes: of one pass over a batch, where it is known already.
        """
        # First, because it loads what stays resident.
        network = self.network_bytes(window.batch_size) if network_bytes is None else network_bytes
        native, model = scan.reference.grid, model_grid(scan, self.plan)
        grid, channels = window.over(model.shape), self.plan.in_channels
        kept, restoring = self._restoring(native, model, grid, window)
        tile = F32 * window.batch_size * prod(window.tile)
        image = F32 * channels * prod(model.shape) + (2 if window.is_pipelined else 1) * channels * tile
        results = (1 + self.kept_slices) * (self.decision.dtype.itemsize + self.observer_bytes) * prod(native.shape)
        return MemoryEstimate(
            resident=resident_bytes(),
            preprocess=self._preprocessing(native, model),
            held=results + kept + image + block_bytes(grid, self.num_values, window.carried),
            blending=self.num_values * tile + restoring,
            network=network,
            is_pipelined=window.is_pipelined,
        )  # fmt: skip

    @property
    def num_values(self) -> int:
        """Channels that are blended: features where the head is applied later, else logits."""
        head = self.backend.head_weight
        return self.decision.num_channels if head is None else head.shape[1]

    def _preprocessing(self, native: Grid, model: ModelGrid) -> int:
        """Bytes at most while the scan is turned into the network's input."""
        channels = self.plan.in_channels
        if map_grids(native.affine, native.shape, model.affine, model.shape) is None:
            return monai_preprocess_bytes(native.shape, model.shape, channels)
        percentiles = any(entry["scheme"] == "percentile" for entry in self.plan.normalization)
        resampler = SeparableResampler(exact_map(native.affine, native.shape, model))
        return preprocess_bytes(resampler, channels, percentiles)

    def _restoring(self, native: Grid, model: ModelGrid, grid: TileGrid, window: Window) -> tuple[int, int]:
        """Bytes kept for restoring while tiles are predicted, and those that one block of it takes."""
        classes, is_observed = self.decision.num_channels, bool(self.observer_bytes)
        back = map_grids(model.affine, model.shape, native.affine, native.shape)
        if back is None:
            one = sheared_restore_bytes(native.spatial_dims, self.num_values, classes, is_observed)
            return F32 * self.num_values * prod(model.shape), one
        halo = 0 if all(axis.is_whole for axis in back.axes) else 1 if window.interpolation == "linear" else 3
        native_shape = [native.shape[axis] for axis in back.native_axis_of]
        has_head = self.backend.head_weight is not None
        return restore_bytes(
            grid, native_shape, self.num_values, classes, halo, window.slab_values, is_observed or has_head, is_observed
        )

    def network_bytes(self, batch_size: int) -> int:
        """Bytes that one pass over a batch of tiles takes in this memory."""
        if self.backend.device.type != "cpu":
            return 0
        return forward_bytes(self.predict, (batch_size, self.plan.in_channels, *self.plan.tile))

    def fit(self, scan: Scan, window: Window, limit: int) -> Window:
        """The fastest window that keeps the limit.

        What is given up, in this order: the thickness of the slabs that are restored at once, the size of a batch,
        doing both while the network runs, and last the precision in which unfinished sums wait (labels may then differ
        at near ties).

        Raises:
            MemoryLimitError: none does; the message says how much the smallest needs.
        """
        return_freed_memory()
        network = cache(self.network_bytes)
        estimates = []
        for candidate in _candidates(window):
            estimate = self.estimate(scan, candidate, network(candidate.batch_size))
            if estimate.total <= limit:
                return candidate
            estimates.append(estimate)
        require(min(estimates, key=lambda estimate: estimate.total), limit, scan.name)
        raise AssertionError("the smallest estimate is above the limit here")


def _candidates(window: Window) -> Iterator[Window]:
    """Windows from the fastest to the smallest."""
    batches = [window.batch_size]
    while batches[-1] > 1:
        batches.append(batches[-1] // 2)
    for carried in dict.fromkeys((window.carried, "fp16")):
        for is_pipelined in dict.fromkeys((window.is_pipelined, False)):
            for batch_size, shift in product(batches, SLAB_SHIFTS):
                yield replace(
                    window, carried=carried, is_pipelined=is_pipelined, batch_size=batch_size,
                    slab_values=window.slab_values >> shift,
                )  # fmt: skip
