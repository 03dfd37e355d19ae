"""Keep the memory limit: estimate what a prediction takes before it starts, and choose settings that fit."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from itertools import product
from math import prod
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medseg.errors import MemoryLimitError, OptionError
from medseg.inference.backends.torch_backend import Backend
from medseg.inference.preprocessing import model_grid, preprocessing_bytes
from medseg.inference.scan import Scan
from medseg.inference.tiling.streaming import Window, prediction_bytes
from medseg.machine import resident_bytes
from medseg.plan import Plan
from medseg.transforms.restore.grid_map import map_grids
from medseg.transforms.restore.label_decision import LabelDecision

UNITS = {"": 1, "B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KIB": 1024, "MIB": 1024**2, "GIB": 1024**3}
# Added to every estimate: memory that allocators of two threads keep, and libraries that are loaded at their first use.
# 10 to 35 MB were measured.
MARGIN = 64 * 1024**2
# Parameters of mallopt(3) in glibc's malloc.h, and their largest value.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, MOST = -1, -3, 2**31 - 1
# Each step quarters the number of values that are resampled to the native grid at once.
SLAB_SHIFTS = (0, 2, 4, 6)


def parse_bytes(text: str | int) -> int:
    """Return the number of bytes in "4GB", "500 MiB" or a plain number.

    Raises:
        OptionError: the text is none of these, or not positive.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?I?B?)\s*", str(text).upper())
    unit = match[2] if match else ""
    unit = unit if unit.endswith("B") or not unit else unit + "B"
    if not match or unit not in UNITS or float(match[1]) <= 0:
        raise OptionError(f"an amount of memory looks like 4GB or 500MiB, found {text!r}")
    return int(float(match[1]) * UNITS[unit])


def keep_freed_memory(keep: bool) -> bool:
    """Tell glibc's malloc to keep freed memory, or to return it to the system at once; it holds for the whole process.

    Training keeps it: every step needs the same blocks, and the system fills a block with zeros each time it is
    allocated again (6 to 8 % of a step of a 3D U-Net on a CPU). Prediction under a memory limit returns blocks of a
    megabyte or more: by default glibc learns to keep blocks of up to 32 MB, some hundred megabytes that no estimate
    can foresee. The last call wins.

    Returns:
        False if the C library has no such settings; then nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):  # a C library other than glibc
        return False
    mmap, trim = (MOST, MOST) if keep else (1 << 20, 1 << 17)
    is_set = library.mallopt(M_MMAP_THRESHOLD, mmap) and library.mallopt(M_TRIM_THRESHOLD, trim)
    if not keep:
        library.malloc_trim(0)
    return bool(is_set)


class _LiveBytes(TorchDispatchMode):
    """Follow the size of every tensor made inside the context.

    `peak` is the most that existed at once. `largest_operation` is the size of the inputs and outputs of the largest
    single operation, which convolution libraries copy into layouts of their own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0
        self.largest_operation = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        involved, made = (
            [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
            for tree in ((args, kwargs, output), output)
        )
        self.alive |= {storage._cdata: (StorageWeakRef(storage), storage.nbytes()) for storage in made}
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        size = sum({storage._cdata: storage.nbytes() for storage in involved}.values())
        self.largest_operation = max(self.largest_operation, size)
        return output


def forward_bytes(run: Callable[[torch.Tensor], Any], shape: Sequence[int]) -> int:
    """Estimate the memory of one forward pass in fp32, beside its parameters, without computing it.

    The pass runs on tensors without storage. Half of the largest operation's inputs and outputs is added for the
    layouts that a convolution library copies them into; a tenth to four tenths were measured on CPUs.

    Args:
        run: the network, or a backend.
        shape: (B, C, *tile) of the input.
    """
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), _LiveBytes() as live:
        run(torch.empty(tuple(shape)))
    return live.peak + live.largest_operation // 2


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a prediction takes.

    Args:
        resident: held by the process already: libraries, weights, the scan as read.
        preprocess: while the scan is turned into the network's input.
        held: image, labels and accumulator, from the first tile to the last.
        blending: predictions of one batch, and the block that is restored.
        network: one forward pass, where it runs in this memory.
        is_pipelined: True if blending happens while the network runs, False if after it.
    """

    resident: int
    preprocess: int
    held: int
    blending: int
    network: int
    is_pipelined: bool = True

    @property
    def total(self) -> int:
        """Most that is held at once."""
        busy = self.blending + self.network if self.is_pipelined else max(self.blending, self.network)
        return self.resident + max(self.preprocess, self.held + busy) + MARGIN


@dataclass(frozen=True)
class Workload:
    """Describe the settings of a predictor that decide how much memory a scan needs.

    Args:
        plan: channels, orientation, spacing and normalisation.
        backend: computes the values that are blended.
        predict: the backend as it is called, with test-time augmentation.
        decision: number of logits per voxel, and type of the labels.
        observer_bytes: bytes per native voxel kept beside the labels.
        kept_slices: number of further scans of the same shape (slices of a volume) whose results are kept.
        is_observed: True if probabilities are computed from the logits of every voxel.
    """

    plan: Plan
    backend: Backend
    predict: Callable[[torch.Tensor], torch.Tensor]
    decision: LabelDecision
    observer_bytes: int = 0
    kept_slices: int = 0
    is_observed: bool = False

    def estimate(self, scan: Scan, window: Window, network_bytes: int | None = None) -> MemoryEstimate:
        """Estimate the memory of one prediction.

        Tiles of air are counted as if they were predicted, because they are not known before preprocessing.

        Args:
            scan: as read.
            window: tiles and blending.
            network_bytes: of one forward pass; None measures it.
        """
        # Measure the network first: it loads libraries, which raises what the process holds.
        network = self.network_bytes(window.batch_size) if network_bytes is None else network_bytes
        native = scan.reference.grid
        model = model_grid(native, self.plan)
        if map_grids(native.affine, native.shape, model.affine, model.shape) is None:
            import_module("monai.transforms")  # resamples sheared scans, and is held by the process from then on
        head = self.backend.head_weight
        held, blending = prediction_bytes(
            model, native, self.plan.in_channels, self.decision.num_channels if head is None else head.shape[1],
            head is not None, self.is_observed or bool(self.observer_bytes), self.decision, window,
        )  # fmt: skip
        results = (1 + self.kept_slices) * (self.decision.dtype.itemsize + self.observer_bytes) * prod(native.shape)
        preprocess = preprocessing_bytes(native, model, self.plan)
        return MemoryEstimate(resident_bytes(), preprocess, held + results, blending, network, window.is_pipelined)

    def network_bytes(self, batch_size: int) -> int:
        """Return the memory of one forward pass; 0 if the network runs in a device's own memory."""
        if self.backend.device.type != "cpu":
            return 0
        return forward_bytes(self.predict, (batch_size, self.plan.in_channels, *self.plan.tile))

    def fit(self, scan: Scan, window: Window, limit: int) -> Window:
        """Return the fastest settings that keep a memory limit; none of them changes a label.

        Raises:
            MemoryLimitError: no settings keep it. The message states the least memory that is needed.
        """
        keep_freed_memory(False)
        network = cache(self.network_bytes)
        estimates = []
        for candidate in candidates(window):
            estimates.append(self.estimate(scan, candidate, network(candidate.batch_size)))
            if estimates[-1].total <= limit:
                return candidate
        raise too_little(scan.name, min(estimates, key=lambda estimate: estimate.total), limit)


def too_little(name: str, least: MemoryEstimate, limit: int) -> MemoryLimitError:
    """Return the error for a scan that no settings predict within a limit."""
    return MemoryLimitError(
        f"{name}: needs at least {_mb(least.total)} of memory ({_mb(least.resident)} for the process and the scan, "
        f"{_mb(least.preprocess)} for preprocessing, {_mb(least.network)} for the network, "
        f"{_mb(least.held + least.blending)} for merging tiles), the limit is {_mb(limit)}; raise --max-ram"
    )


def candidates(window: Window) -> Iterator[Window]:
    """Yield settings from the fastest to the smallest: thinner slabs, then smaller batches, then no second thread."""
    batches = [window.batch_size]
    while batches[-1] > 1:
        batches.append(batches[-1] // 2)
    for is_pipelined in dict.fromkeys((window.is_pipelined, False)):
        for batch_size, shift in product(batches, SLAB_SHIFTS):
            slab_values = window.slab_values >> shift
            yield replace(window, is_pipelined=is_pipelined, batch_size=batch_size, slab_values=slab_values)


def _mb(size: int) -> str:
    return f"{size / 1000**2:,.0f} MB"
