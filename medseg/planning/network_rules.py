"""Rules about the network: patch, stages and width, as large as memory and time allow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from medseg.errors import MemoryLimitError, OptionError
from medseg.plan import Plan
from medseg.planning.estimate import size_text
from medseg.planning.planned_training import (
    MIN_BATCH,
    TIME_FOR_STEPS,
    WIDTHS,
    Costs,
    Decisions,
    NetworkName,
    Wishes,
)
from medseg.planning.stages_of_patch import Topology, largest_patch, padded

MOST_CHANNELS = {2: 512, 3: 320}
ENOUGH_STEPS = 10_000


def choose_patch_and_network(
    plan: Plan,
    spacing: Sequence[float],
    shape: Sequence[float],
    has_weights: bool,
    wishes: Wishes,
    costs: Costs,
    decisions: Decisions,
    name: str,
) -> tuple[Plan, bool]:
    """Choose patch, tile, stages and width, and whether cases are kept in mapped files.

    Args:
        plan: values that the data decided.
        spacing: voxel size of the network's input.
        shape: median size of the images at that voxel size.
        has_weights: True if each case has a weight per voxel.
        wishes: memory, device, time and form of the network.
        costs: what a training takes.
        decisions: gets the reasons.
        name: of the data set, for the error.

    Raises:
        MemoryLimitError: not even the smallest patch fits.
        OptionError: the form of the network does not suit the images.
    """
    cached = costs.cached_bytes(plan, has_weights)
    is_mapped = cached > wishes.memory / 3 if wishes.device == "cpu" else cached > 16 * 1000**3
    decisions.add(
        "prepared cases", "mapped files" if is_mapped else "in memory",
        f"All prepared cases take {size_text(cached)}"
        + (", too much to keep in memory." if is_mapped else ", which fits into memory."),
    )  # fmt: skip
    budget = wishes.memory - (cached if wishes.device == "cpu" and not is_mapped else 0)
    max_stages = {"unetplusplus": 5, "unet3d": 6, "unetr": 100}.get(wishes.network, 100)
    needed = math.inf

    def candidate(patch: Sequence[int], topology: Topology, width: int) -> Plan:
        return with_network(plan, wishes.network, patch, topology, width)

    def fits(patch: tuple[int, ...], topology: Topology, width: int) -> bool:
        nonlocal needed
        found = costs.training_bytes(candidate(patch, topology, width), MIN_BATCH)
        needed = min(needed, found)
        return found <= budget

    chosen: tuple[Plan, bool, int] | None = None
    available = wishes.hours * 3600 * TIME_FOR_STEPS
    widths = list(WIDTHS[wishes.device])
    while widths:
        width = widths.pop(0)
        found = largest_patch(spacing, shape, partial(fits, width=width), max_stages)
        if found is None:
            continue
        patch, topology, is_reduced = found
        planned = candidate(patch, topology, width)
        chosen = planned, is_reduced, width
        steps = available / costs.step_seconds(planned, MIN_BATCH)
        if steps >= ENOUGH_STEPS:
            break
        # operations grow with the square of the width, so some narrower ones need not be tried
        widths = [w for w in widths if steps * (width / w) ** 2 >= 0.7 * ENOUGH_STEPS] or widths[-1:]
    if chosen is None:
        raise MemoryLimitError(
            f"{name}: the smallest patch with the narrowest network needs {needed / 1e6:,.0f} MB for a "
            f"batch of {MIN_BATCH}, the limit leaves {max(budget, 0) / 1e6:,.0f} MB; raise --memory, or try "
            "--configuration 2d"
        )
    planned, is_reduced, width = chosen
    _explain_patch(planned, shape, is_reduced, wishes, decisions)
    _explain_network(planned, width, wishes, decisions)
    return planned, is_mapped


def _explain_patch(plan: Plan, shape: Sequence[float], is_reduced: bool, wishes: Wishes, decisions: Decisions) -> None:
    size = " × ".join(map(str, plan.patch))
    median = " × ".join(f"{n:.0f}" for n in shape)
    if is_reduced:
        reason = (
            f"It is the largest patch with a batch of {MIN_BATCH} in {wishes.memory / 1e9:.3g} GB, with the "
            f"proportions of the median image of {median} voxels."
        )
    else:
        reason = f"It holds the whole median image of {median} voxels, rounded up to what the stages can halve."
    decisions.add("patch and tile", size, reason)


def _explain_network(plan: Plan, width: int, wishes: Wishes, decisions: Decisions) -> None:
    arguments = plan.network["arguments"]
    channels = " ".join(map(str, arguments["channels"]))
    widths = WIDTHS[wishes.device]
    if width == widths[0]:
        reason = f"The time allows {width} channels at full resolution, and more gained little on the hippocampus data."
        if wishes.device == "cuda":
            reason = f"The widths are nnU-Net's: {width} channels at full resolution, doubled at each stage."
    else:
        reason = (
            f"A network with more than {width} channels at full resolution would take fewer than "
            f"{ENOUGH_STEPS:,} steps in {wishes.hours:g} hours."
        )
    decisions.add("network", f"{plan.network['name']}, channels {channels}", reason)
    if "strides" in arguments:
        strides = " ".join("".join(map(str, step)) for step in arguments["strides"])
        kernels = " ".join("".join(map(str, kernel)) for kernel in arguments["kernel_sizes"])
        decisions.add(
            "strides and kernels", f"strides {strides}; kernels {kernels}",
            "An axis is halved while its voxels are less than twice the finest ones and it has at least 8 voxels; "
            "kernels are 1 along axes that are still much coarser.",
        )  # fmt: skip


def with_network(plan: Plan, form: NetworkName, patch: Sequence[int], topology: Topology, width: int) -> Plan:
    """Return the plan with a patch and the network of a form for it, with `width` channels at full resolution."""
    dims = plan.spatial_dims
    if form == "unetr":
        return _with_unetr(plan, patch, width)
    if topology.num_stages < 2:
        patch = padded(patch, (2,) * dims)
        topology = Topology(((2,) * dims,), ((3,) * dims,) * 2)
    channels = [min(width * 2**stage, MOST_CHANNELS[dims] * width // 32) for stage in range(topology.num_stages)]
    geometry = {
        "spatial_dims": dims,
        "channels": channels,
        "strides": [list(step) for step in topology.strides],
        "kernel_sizes": [list(kernel) for kernel in topology.kernels],
    }
    plain = {"norm": "instance", "activation": "leaky_relu", "conv_bias": False}
    networks: dict[str, tuple[str, dict[str, Any]]] = {
        "unet": ("unet_isensee2021", {}),
        "unet3d": ("unet3d_cicek2016", {**plain, "norm_affine": True, "padding": "same"}),
        "unetplusplus": ("unetplusplus_zhou2018", {**plain, "heads": "all"}),
        "residual_encoder": (
            "unet_residual_encoder",
            {"convolutions_per_stage": ([1, 3, 4] + [6] * 97)[: topology.num_stages]},
        ),
    }
    preset, own = networks[form]
    network = {"name": preset, "arguments": {**geometry, **own}}
    return replace(plan, patch=list(patch), tile=list(patch), network=network)


def _with_unetr(plan: Plan, patch: Sequence[int], width: int) -> Plan:
    """Return the plan with a UNETR, whose patches of 8 or 16 voxels divide every axis."""
    num_stages = 4 if min(patch) >= 64 else 3
    edge = 2**num_stages
    if min(patch) < edge:
        raise OptionError(
            f"--network unetr: it cuts images into cubes of {edge} voxels, and the median image has only "
            f"{min(patch)} voxels along one axis; use --network unet"
        )
    # fewer voxels rather than more, so that a patch never exceeds the memory
    patch = [size // edge * edge for size in patch]
    heads = max(2, width // 2)
    arguments = {
        "spatial_dims": plan.spatial_dims,
        "image_size": patch,
        "channels": [width * 2**stage for stage in range(num_stages)],
        "embedding_channels": 32 * heads,
        "num_heads": heads,
        "mlp_channels": 128 * heads,
        "taps": [3, 6, 9, 12] if num_stages == 4 else [2, 4, 6],
        "norm_affine": True,
    }
    return replace(plan, patch=patch, tile=patch, network={"name": "unetr_hatamizadeh2021", "arguments": arguments})
