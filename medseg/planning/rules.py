"""Derive the values of a plan and its training from the fingerprint of a data set, each with its reason.

Spacing, stages, patch and normalisation follow nnU-Net (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z).
docs/planning.md compares both plans for many data sets and explains each difference.
"""

from __future__ import annotations

import re

from medseg.plan import Plan
from medseg.planning import data_rules
from medseg.planning.data_fingerprint import DataFingerprint
from medseg.planning.data_rules import median_shape, target_spacing
from medseg.planning.network_rules import choose_patch_and_network
from medseg.planning.planned_training import Costs, Decisions, PlannedTraining, Wishes
from medseg.planning.schedule_rules import batch_size, training_settings


def plan_training(
    fingerprint: DataFingerprint, wishes: Wishes, costs: Costs, name: str, num_training_cases: int
) -> PlannedTraining:
    """Apply all rules, in the order in which they depend on each other.

    Args:
        fingerprint: of the data set.
        wishes: memory, device, time and form of the network.
        costs: what a training takes.
        name: of the bundle.
        num_training_cases: cases of one epoch.

    Raises:
        PlanError: the labels cannot be planned for.
        OptionError: an option does not fit the data.
        MemoryLimitError: no plan fits the memory.
    """
    data, decisions = fingerprint, Decisions()
    labels = data_rules.labels_of(data, decisions)
    dims, slice_axis = data_rules.dimensions(data, wishes, decisions)
    axes = [axis for axis in range(data.spatial_dims) if axis != slice_axis]
    target = target_spacing(data)
    spacing = [target[axis] for axis in axes]
    has_spacing = data_rules.has_target_spacing(data, spacing, axes, decisions)
    shape_3d = median_shape(data, target)
    shape = [shape_3d[axis] for axis in axes]
    orientation = "".join("RAS"[axis] for axis in axes)
    data_rules.explain_orientation(data, orientation, slice_axis, decisions)
    weights = data_rules.boundary_weights(data, wishes, decisions)
    plan = Plan(
        name=name,
        spatial_dims=dims,
        channels=[{"name": channel, "modality": modality} for channel, modality in data.channels],
        labels=labels,
        orientation=orientation,
        spacing=[round(float(s), 6) for s in spacing] if has_spacing else None,
        normalization=data_rules.normalization(data, decisions),
        patch=[1] * dims,
        tile=[1] * dims,
        network={"name": "unet_isensee2021", "arguments": {}},
        activation="sigmoid" if data.regions else "softmax",
        label_regions=dict(data.regions) or None,
        regions_class_order=list(data.regions_class_order) or None,
        crop_ratios=data_rules.crop_ratios(data, decisions),
        mirror_axes=data_rules.mirror_axes(data, dims, decisions),
        slice_axis=None if slice_axis is None else "RAS"[slice_axis],  # type: ignore[arg-type]
        air_below=data_rules.air_below(data, decisions),
        description=f"{data.name}, planned by medseg",
    )
    plan, is_mapped = choose_patch_and_network(
        plan, spacing, shape, weights is not None, wishes, costs, decisions, data.name
    )
    batch = batch_size(data, plan, shape, wishes, costs, decisions)
    settings = training_settings(data, plan, batch, num_training_cases, weights, is_mapped, wishes, costs, decisions)
    return PlannedTraining(plan, settings, tuple(decisions), tuple(decisions.warnings))


def bundle_name(text: str) -> str:
    """Return a name for a bundle from the name of a data set."""
    name = re.sub(r"[^\w]+", "_", text.strip().lower(), flags=re.ASCII).strip("_")
    return f"{name or 'planned'}_segmentation"[:100]
