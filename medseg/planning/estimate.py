"""Estimate what preparing, training and predicting take before the work starts: memory, disk and time.

Memory is counted on tensors without storage and compared with measurements in docs/planning.md. Time needs the speed of
the machine, which `measured_flops_per_second` takes from a few steps of a small network.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from medseg.inference.memory import _LiveBytes
from medseg.inference.preprocessing import model_grid, preprocessing_bytes
from medseg.networks.precision import Precision, autocast
from medseg.plan import Plan
from medseg.volumes import Grid, read_grid

# A process of `python -m monai.bundle run` before it loads a case: interpreter, torch, MONAI, ignite, readers.
PROCESS_BYTES = 570 * 1000**2
WORKER_BYTES = 350 * 1000**2
FLOAT = 4
# Copies of the parameters beside themselves: gradient, two moments of AdamW, the averaged network.
TRAINED_COPIES = 4
# On CPUs, what a step takes is this many times the size of its tensors: the allocator keeps freed blocks, and
# convolutions copy their inputs into layouts of their own. 1.5 to 1.6 was measured, and what libraries load.
ALLOCATED, LIBRARIES = 1.55, 60 * 1000**2
# On GPUs: chosen so that 8 GB give the patches that nnU-Net's authors give for 8 GB, and the context's own memory.
ALLOCATED_ON_GPU, CONTEXT = 1.3, 500 * 1000**2
# Steps of the probe network, and its patch.
PROBE_PATCH, PROBE_CHANNELS, PROBE_STEPS = (40, 56, 40), (16, 32, 64, 128), 3


@dataclass(frozen=True)
class WorkEstimate:
    """Memory, disk and time of one piece of work.

    Args:
        memory_bytes: most that its processes hold at once.
        disk_bytes: most that it writes.
        seconds: its time on this machine; None if the speed of the device is not known.
        parts: memory by what it is for.
    """

    memory_bytes: int
    disk_bytes: int
    seconds: float | None
    parts: Mapping[str, int]

    def __str__(self) -> str:
        took = "time unknown" if self.seconds is None else duration(self.seconds)
        return f"{size_text(self.memory_bytes)} of memory, {size_text(self.disk_bytes)} of disk, {took}"


def grids_of(cases: Sequence[Mapping[str, Any]]) -> list[Grid]:
    """Read the grid of each case's first image, without its voxels where the format allows that.

    Args:
        cases: dictionaries with the key "image", as `medseg.datasets.case_files` returns them.
    """
    firsts = [case["image"][0] if isinstance(case["image"], list | tuple) else case["image"] for case in cases]
    return [read_grid(Path(first)) for first in firsts]


def prepared_bytes(plan: Plan, grids: Sequence[Grid], has_weights: bool = False) -> int:
    """Return the size of the prepared cases of a training: what it caches, in memory or in mapped files.

    Args:
        plan: orientation, spacing and channels.
        grids: of the cases' files.
        has_weights: True if each case has a weight per voxel.
    """
    per_voxel = FLOAT * plan.in_channels + 1 + (FLOAT if has_weights else 0)
    return sum(per_voxel * model_voxels(plan, grid) for grid in grids)


def model_voxels(plan: Plan, grid: Grid) -> int:
    """Return the number of voxels of a case on the plan's grid."""
    if plan.slice_axis is None:
        return math.prod(model_grid(grid, plan).shape)
    if plan.spacing is None:
        return math.prod(grid.shape)
    sizes = dict(zip(["LRPAIS".index(letter) // 2 for letter in plan.orientation], plan.spacing, strict=True))
    own = zip(grid.shape, grid.spacing, ["LRPAIS".index(letter) // 2 for letter in grid.orientation], strict=True)
    return math.prod(max(1, round(n * s / sizes[axis])) if axis in sizes else n for n, s, axis in own)


def step_bytes(plan: Plan, batch_size: int, precision: Precision = "fp32", has_deep_supervision: bool = False) -> int:
    """Count the memory of one training step beside the parameters and their copies, without computing it.

    The step runs on tensors without storage: forward pass under autocast, Dice and cross entropy in fp32, backward
    pass. The result is the peak of the tensors' sizes, without what the allocator and the convolutions add.

    Args:
        plan: network, patch, channels.
        batch_size: patches per step.
        precision: of the convolutions.
        has_deep_supervision: True if every decoder stage has a loss.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        network = plan.create_network().train()
        live = _LiveBytes()
        with live:
            image = torch.empty(batch_size, plan.in_channels, *plan.patch)
            with autocast("cpu", precision):
                outputs = _outputs(network, image, has_deep_supervision)
            loss = sum(_loss(logits) for logits in outputs)
            del outputs
            assert isinstance(loss, torch.Tensor)
            loss.backward()
        gradients = sum(p.numel() * FLOAT for p in network.parameters())
    return max(0, live.peak - gradients)


def _outputs(network: Any, image: torch.Tensor, has_deep_supervision: bool) -> list[torch.Tensor]:
    if not has_deep_supervision:
        return [network(image)]
    heads, features = network.intermediate_heads(), network.intermediate_features(image)
    return [head(feature) for head, feature in zip(heads, features, strict=False)]


def _loss(logits: torch.Tensor) -> torch.Tensor:
    """Make the tensors of `medseg.losses.WeightedDiceCELoss`, whose checks need the labels' values."""
    logits = logits.float()
    label = torch.zeros((logits.shape[0], 1, *logits.shape[2:]), dtype=torch.int64)
    weights = torch.ones(label.shape)
    cross_entropy = (F.cross_entropy(logits, label[:, 0], reduction="none") * weights[:, 0]).mean()
    mask = weights > 0
    probabilities = logits.softmax(1)
    classes = torch.arange(logits.shape[1]).view(1, -1, *(1,) * (logits.ndim - 2))
    target = ((label == classes) & mask).to(probabilities.dtype)
    probabilities = (probabilities * mask)[:, 1:]
    axes = tuple(range(2, logits.ndim))
    overlap = (probabilities * target[:, 1:]).sum(axes)
    return cross_entropy - (overlap / (probabilities.sum(axes) + target[:, 1:].sum(axes) + 1)).mean()


def parameter_bytes(plan: Plan) -> int:
    """Return the size of the network's parameters in fp32."""
    with torch.device("meta"):
        return sum(p.numel() * FLOAT for p in plan.create_network().parameters())


def training_parts(
    plan: Plan,
    batch_size: int,
    precision: Precision = "fp32",
    *,
    device: Literal["cpu", "cuda"] = "cpu",
    has_deep_supervision: bool = False,
    cached_bytes: int = 0,
    loading_bytes: int = 0,
    validation_bytes: int = 0,
    num_workers: int = 0,
    step: int | None = None,
) -> dict[str, int]:
    """Return the memory of a training by what it is for.

    Args:
        plan: network, patch, channels.
        batch_size: patches per step.
        precision: of the convolutions.
        device: "cuda" leaves out what stays in the machine's memory: process, cases and workers.
        has_deep_supervision: see `step_bytes`.
        cached_bytes: prepared cases that stay in memory.
        loading_bytes: while one case is prepared.
        validation_bytes: while one case is validated.
        num_workers: processes that prepare samples.
        step: what `step_bytes` counts, if it is known.
    """
    parameters = parameter_bytes(plan)
    step = step_bytes(plan, batch_size, precision, has_deep_supervision) if step is None else step
    is_cpu = device == "cpu"
    step = int(ALLOCATED * step) + LIBRARIES if is_cpu else int(ALLOCATED_ON_GPU * step) + CONTEXT
    network = (1 + TRAINED_COPIES) * parameters
    if device == "cuda":
        return {"network": network, "step": step}
    # cases are prepared before the first step, and validation follows a step whose memory the C library keeps
    busy = max(loading_bytes - network, step + validation_bytes)
    return {
        "process": PROCESS_BYTES,
        "workers": num_workers * WORKER_BYTES,
        "cases": cached_bytes,
        "network": network,
        "step": busy,
    }


def loading_bytes(plan: Plan, grids: Sequence[Grid]) -> int:
    """Return the memory of preparing the largest case, with MONAI's resampling in float64."""
    most = 0
    for grid in grids:
        native, model = math.prod(grid.shape), model_voxels(plan, grid)
        resampled = 0 if plan.spacing is None else (8 * (plan.in_channels + 1) + 24) * model
        most = max(most, 2 * FLOAT * (plan.in_channels + 1) * native + resampled)
    return most


def validation_bytes(plan: Plan, grids: Sequence[Grid]) -> int:
    """Return the memory of validating the largest case: logits of every class, and labels on the scan's grid."""
    return max(
        (FLOAT * (plan.out_channels + 2) * model_voxels(plan, g) + 9 * math.prod(g.shape) for g in grids), default=0
    )


def training_estimate(
    plan: Plan,
    grids: Sequence[Grid],
    batch_size: int,
    max_epochs: int,
    *,
    precision: Precision = "fp32",
    device: Literal["cpu", "cuda"] = "cpu",
    has_deep_supervision: bool = False,
    has_weights: bool = False,
    is_mapped: bool = False,
    num_workers: int = 0,
    step_seconds: float | None = None,
    step: int | None = None,
) -> WorkEstimate:
    """Estimate a training.

    Args:
        plan: network, patch, grid.
        grids: of the training cases' files (see `grids_of`).
        batch_size: patches per step.
        max_epochs: passes over the cases.
        precision: of the convolutions.
        device: where the network runs; the memory is that device's.
        has_deep_supervision: see `step_bytes`.
        has_weights: True if each case has a weight per voxel.
        is_mapped: True if prepared cases are kept in mapped files.
        num_workers: processes that prepare samples.
        step_seconds: time of one step; None leaves the time out.
        step: what `step_bytes` counts, if it is known.
    """
    prepared = prepared_bytes(plan, grids, has_weights)
    parts = training_parts(
        plan,
        batch_size,
        precision,
        device=device,
        has_deep_supervision=has_deep_supervision,
        cached_bytes=0 if is_mapped else prepared,
        loading_bytes=loading_bytes(plan, grids),
        validation_bytes=validation_bytes(plan, grids),
        num_workers=num_workers,
        step=step,
    )
    # two checkpoints and the next one hold the network, its average and two moments; model.pt holds the average
    disk = (3 * 4 + 1) * parameter_bytes(plan) + (prepared if is_mapped else 0)
    steps = max_epochs * math.ceil(len(grids) / batch_size)
    return WorkEstimate(sum(parts.values()), disk, None if step_seconds is None else steps * step_seconds, parts)


def prediction_estimate(plan: Plan, grid: Grid, tile_seconds: float | None = None) -> WorkEstimate:
    """Estimate the prediction of one scan, without a memory limit.

    Args:
        plan: network, tile, grid.
        grid: of the scan.
        tile_seconds: time of one forward pass; None leaves the time out.
    """
    from medseg.inference.memory import forward_bytes

    with FakeTensorMode(allow_non_fake_inputs=True):
        network = plan.create_network().eval()
        forward = forward_bytes(network, (1, plan.in_channels, *plan.tile))
    native, model = math.prod(grid.shape), model_voxels(plan, grid)
    held = FLOAT * (plan.in_channels + plan.out_channels) * model + 2 * native
    preparing = (
        preprocessing_bytes(grid, model_grid(grid, plan), plan) if plan.slice_axis is None else 2 * FLOAT * model
    )
    parts = {
        "process": PROCESS_BYTES,
        "network": parameter_bytes(plan),
        "scan": FLOAT * plan.in_channels * native + max(preparing, held + forward),
    }
    seconds = None if tile_seconds is None else tile_seconds * num_tiles(plan, grid)
    return WorkEstimate(sum(parts.values()), 2 * native, seconds, parts)


def num_tiles(plan: Plan, grid: Grid) -> int:
    """Return the number of tiles of the sliding window for a scan."""
    if plan.slice_axis is not None:
        axis = "RAS".index(plan.slice_axis)
        order = ["LRPAIS".index(letter) // 2 for letter in grid.orientation]
        slices = grid.shape[order.index(axis)]
        per_slice = model_voxels(plan, grid) / slices
        return slices * max(1, math.ceil(per_slice / math.prod(plan.tile) / (1 - plan.overlap) ** 2))
    shape = model_grid(grid, plan).shape
    steps = [max(1, math.floor(t * (1 - plan.overlap))) for t in plan.tile]
    counts = [max(1, math.ceil((n - t) / s) + 1) for n, t, s in zip(shape, plan.tile, steps, strict=True)]
    return math.prod(counts)


def step_flops(plan: Plan, batch_size: int) -> int:
    """Count the floating-point operations of one training step, forward and backward."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        network = plan.create_network().train()
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(batch_size, plan.in_channels, *plan.patch)).sum().backward()
    return counter.get_total_flops()


def measured_step_seconds(plan: Plan, batch_size: int, precision: Precision, device: str = "cpu") -> float:
    """Measure one training step of a plan on this machine, as if it had nothing else to do, with noise for images."""
    from medseg.losses import WeightedDiceCELoss

    network = plan.create_network().train().to(device)
    layout: Any = torch.channels_last if plan.spatial_dims == 2 else torch.channels_last_3d
    network = network.to(memory_format=layout)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters())
    image = torch.randn(batch_size, plan.in_channels, *plan.patch, device=device).contiguous(memory_format=layout)
    label = torch.randint(plan.out_channels, (batch_size, 1, *plan.patch), device=device)
    loss, times = WeightedDiceCELoss(batch_dice=True), []
    # processor time does not count what other programs on the machine take
    clock = time.perf_counter if device == "cuda" else time.process_time
    for _ in range(PROBE_STEPS):
        start = clock()
        optimizer.zero_grad()
        with autocast(device, precision):
            logits = network(image)
        loss(logits, label).backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(clock() - start)
    threads = 1 if device == "cuda" else torch.get_num_threads()
    return min(times[1:]) / threads


def probe_plan() -> Plan:
    """Return the small network with which the speed of a machine is measured."""
    return Plan(
        name="probe", spatial_dims=3, channels=[{"name": "probe", "modality": "MR"}],
        labels={"background": 0, "structure": 1}, orientation="RAS", spacing=None,
        normalization=[{"scheme": "z_score"}], patch=list(PROBE_PATCH), tile=list(PROBE_PATCH),
        network={"name": "unet_isensee2021", "arguments": {"channels": list(PROBE_CHANNELS)}},
    )  # fmt: skip


def measured_flops_per_second(precision: Precision, device: str = "cpu") -> float:
    """Measure how many floating-point operations per second the training of a small network reaches."""
    plan = probe_plan()
    return step_flops(plan, 2) / measured_step_seconds(plan, 2, precision, device)


def size_text(size: float) -> str:
    """Return a number of bytes in words."""
    return f"{size / 1000**3:.1f} GB" if size >= 1000**3 else f"{size / 1000**2:.0f} MB"


def duration(seconds: float) -> str:
    """Return a duration in words."""
    if seconds < 1:
        return "under 1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"
