"""Derive the values of a plan and its training from the fingerprint of a data set, each with its reason.

Spacing, stages, patch and normalisation follow nnU-Net (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z).
docs/planning.md compares both plans for many data sets and explains each difference.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from medseg.bundle.train_config import BoundaryWeights, TrainingSettings
from medseg.errors import MemoryLimitError, OptionError, PlanError
from medseg.plan import Plan
from medseg.planning.data_fingerprint import DataFingerprint
from medseg.planning.estimate import size_text
from medseg.planning.planned_training import WIDTHS, Costs, Decision, PlannedTraining, Wishes
from medseg.planning.spacing import ANISOTROPY, median_shape, target_spacing
from medseg.planning.stages_of_patch import Topology, largest_patch, padded

MICROSCOPY = {"EM", "microscopy", "fluorescence"}
MOST_LABELS = 255  # label maps are uint8 in a training, and 255 is the ignored label
MIN_BATCH = 2
MOST_OF_DATA = 0.05  # of the data set's voxels in one batch (nnU-Net's value)
MOST_STEPS = 250_000  # nnU-Net's 1000 epochs of 250 steps
MOST_CHANNELS = {2: 512, 3: 320}
ENOUGH_STEPS, FEW_STEPS = 10_000, 1000
# Part of the time that a training spends on steps; the rest is for loading and validation.
TIME_FOR_STEPS = 0.85
VALIDATIONS = 10
STEPS_PER_CHECKPOINT = 100


class Deformation(NamedTuple):
    """Strength of the random deformation: its probability, the largest rotation in rad, and the range of scales."""

    probability: float
    rotation: float
    scale: tuple[float, float]


# A network that sees each case more often than this gets the stronger deformation. On the hippocampus data the weak one
# is better for 30 passes over the cases, but with it the Dice fell from the 25th to the 50th.
PASSES_WITH_WEAK_DEFORMATION = 30
WEAK_DEFORMATION = Deformation(0.3, 0.2, (0.9, 1.1))
STRONG_DEFORMATION = Deformation(0.7, 0.35, (0.8, 1.25))


def plan_training(
    fingerprint: DataFingerprint, wishes: Wishes, costs: Costs, name: str, num_training_cases: int
) -> PlannedTraining:
    """Apply all rules.

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
    return _Rules(fingerprint, wishes, costs, name, num_training_cases).planned()


class _Rules:
    def __init__(
        self, fingerprint: DataFingerprint, wishes: Wishes, costs: Costs, name: str, num_training_cases: int
    ) -> None:
        self.data = fingerprint
        self.wishes = wishes
        self.costs = costs
        self.name = name
        self.num_training_cases = num_training_cases
        self.decisions: list[Decision] = []
        self.warnings: list[str] = []

    def planned(self) -> PlannedTraining:
        """Apply the rules in the order in which they depend on each other."""
        labels = self._labels()
        dims, slice_axis = self._dimensions()
        axes = [axis for axis in range(self.data.spatial_dims) if axis != slice_axis]
        target = target_spacing(self.data)
        spacing = [target[axis] for axis in axes]
        has_spacing = self._decide_spacing(spacing, axes)
        shape = median_shape(self.data, target)
        shape = [shape[axis] for axis in axes]
        orientation = "".join("RAS"[axis] for axis in axes)
        self._say_orientation(orientation, slice_axis)
        weights = self._boundary_weights(dims)
        plan = Plan(
            name=self.name,
            spatial_dims=dims,
            channels=[{"name": name, "modality": modality} for name, modality in self.data.channels],
            labels=labels,
            orientation=orientation,
            spacing=[round(float(s), 6) for s in spacing] if has_spacing else None,
            normalization=self._normalization(),
            patch=[1] * dims,
            tile=[1] * dims,
            network={"name": "unet_isensee2021", "arguments": {}},
            activation="sigmoid" if self.data.regions else "softmax",
            label_regions=dict(self.data.regions) or None,
            regions_class_order=list(self.data.regions_class_order) or None,
            crop_ratios=self._crop_ratios(labels),
            mirror_axes=self._mirror_axes(dims),
            slice_axis=None if slice_axis is None else "RAS"[slice_axis],  # type: ignore[arg-type]
            air_below=self._air_below(),
            description=f"{self.data.name}, planned by medseg",
        )
        plan, is_mapped = self._patch_and_network(plan, spacing, shape, weights)
        batch = self._batch_size(plan, shape)
        settings = self._schedule(plan, batch, weights, is_mapped)
        return PlannedTraining(plan, settings, tuple(self.decisions), tuple(self.warnings))

    def _say(self, name: str, value: object, reason: str) -> None:
        self.decisions.append(Decision(name, str(value), reason))

    def _labels(self) -> dict[str, int]:
        """Return the value of each label, after checking that they can be trained."""
        if len(self.data.labels) > MOST_LABELS:
            raise PlanError(
                f"{self.data.name}: found {len(self.data.labels)} labels, expected at most {MOST_LABELS}; merge some "
                "of them with file_values in the manifest"
            )
        absent = [name for name, facts in self.data.labels.items() if not facts.cases]
        rare = [
            name for name, facts in self.data.labels.items() if 0 < facts.cases < min(3, self.data.num_cases) and name
        ]
        if absent:
            self.warnings.append(
                f"no case contains {', '.join(absent[:5])}{' and others' if len(absent) > 5 else ''}; the network "
                "cannot learn them"
            )
        if rare and self.data.num_cases >= 3:
            self.warnings.append(
                f"fewer than 3 cases contain {', '.join(rare[:5])}{' and others' if len(rare) > 5 else ''}"
            )
        return {name: facts.value for name, facts in self.data.labels.items()}

    def _dimensions(self) -> tuple[int, int | None]:
        """Return the dimensions of the network, and the axis across which volumes are cut into slices."""
        wanted = self.wishes.configuration
        if self.data.spatial_dims == 2:
            if wanted == "3d":
                raise OptionError("--configuration 3d: the images are 2D; leave the option out")
            self._say("dimensions", 2, "The images are two-dimensional.")
            return 2, None
        if wanted == "2d":
            target = target_spacing(self.data)
            axis = max(range(3), key=lambda a: (target[a], a))
            self._say("dimensions", 2, f"Slices across {'RAS'[axis]}, the axis with the largest voxels, as you asked.")
            return 2, axis
        self._say("dimensions", 3, "The images are volumes.")
        return 3, None

    def _decide_spacing(self, spacing: Sequence[float], axes: Sequence[int]) -> bool:
        if not self.data.has_physical_spacing:
            self._say("spacing", "as stored", "The files hold pictures, whose pixels have no physical size.")
            return False
        median = np.median(np.array(self.data.spacings), axis=0)
        value = " × ".join(f"{s:.4g}" for s in spacing) + " mm"
        if all(math.isclose(s, median[axis], rel_tol=1e-4) for s, axis in zip(spacing, axes, strict=True)):
            self._say("spacing", value, "It is the median voxel size of the cases.")
        else:
            self._say(
                "spacing", value,
                f"It is the median voxel size, but along the axis with voxels of {max(median):.4g} mm the 10th "
                "percentile, because the median would blur the cases with thinner slices.",
            )  # fmt: skip
        return True

    def _say_orientation(self, orientation: str, slice_axis: int | None) -> None:
        if slice_axis is not None:
            reason = f"Slices lie across {'RAS'[slice_axis]}, and every scan is turned the same way."
        elif self.data.spatial_dims == 2:
            reason = "Pictures keep the axes of their files."
        else:
            reason = "Every scan is turned to one orientation without interpolation, whatever its file stores."
        self._say("orientation", orientation, reason)

    def _normalization(self) -> list[dict[str, Any]]:
        schemes: list[dict[str, Any]] = []
        reasons: list[str] = []
        for channel, (_, modality) in enumerate(self.data.channels):
            facts = self.data.intensities[channel] if self.data.intensities else None
            if modality == "CT" and facts is not None:
                schemes.append({
                    "scheme": "ct", "lower": round(facts.lower, 4), "upper": round(facts.upper, 4),
                    "mean": round(facts.mean, 4), "std": round(max(facts.std, 1e-6), 4),
                })  # fmt: skip
                reasons.append(
                    "Hounsfield units mean the same in every scan, so they are clipped to the percentiles 0.5 and 99.5 "
                    f"of the labelled voxels ({facts.lower:.4g} to {facts.upper:.4g})."
                )
            elif modality == "RGB":
                largest = self.data.largest_values[channel] if self.data.largest_values else 255
                upper = 255.0 if largest <= 255 else 65535.0
                schemes.append({"scheme": "window", "lower": 0.0, "upper": upper, "clip": False})
                reasons.append(f"Colours keep their relation, so 0 to {upper:.0f} become 0 to 1.")
            elif self.data.nonzero_fraction < 3 / 4 and self.data.has_physical_spacing:
                schemes.append({"scheme": "z_score", "foreground": "nonzero"})
                reasons.append(
                    f"{modality} has no absolute scale, and over a quarter of the images is empty, so each image gets "
                    "mean 0 and deviation 1 over the voxels that are not 0."
                )
            else:
                schemes.append({"scheme": "z_score"})
                reasons.append(f"{modality} has no absolute scale, so each image gets mean 0 and deviation 1.")
        value = ", ".join(dict.fromkeys(str(scheme["scheme"]) for scheme in schemes))
        self._say("normalisation", value, " ".join(dict.fromkeys(reasons)))
        return schemes

    def _crop_ratios(self, labels: Mapping[str, int]) -> list[float]:
        """Return a third of the patches for the background, and equal parts of the rest for the labels that exist."""
        present = [bool(self.data.labels[name].cases) for name in labels]
        foreground = sum(present[1:])
        ratios = [foreground / 2, *(float(is_present) for is_present in present[1:])]
        self._say(
            "crop ratios", f"background {ratios[0]:g}, each label 1",
            "Two thirds of the patches are centred on a label, each label equally often, so that rare ones are seen.",
        )  # fmt: skip
        return ratios

    def _mirror_axes(self, dims: int) -> list[int]:
        modalities = {modality for _, modality in self.data.channels}
        if modalities <= MICROSCOPY:
            self._say("mirroring", "all axes", "A specimen under a microscope has no preferred direction.")
            return list(range(dims))
        if modalities <= {"RGB", "grey"}:
            self._say("mirroring", "left and right", "A mirrored picture is possible, one upside down usually is not.")
            return [0]
        self._say("mirroring", "none", "The body is not symmetric, and left must stay left.")
        return []

    def _air_below(self) -> float | None:
        if self.data.air_below is not None:
            self._say(
                "air below", f"{self.data.air_below:g} HU",
                "No labelled voxel lies below, so prediction skips tiles that hold nothing but air.",
            )  # fmt: skip
        elif any(modality == "CT" for _, modality in self.data.channels):
            self._say("air below", "none", "Labelled voxels are as dark as air, or no scan holds much of it.")
        return self.data.air_below

    def _boundary_weights(self, dims: int) -> BoundaryWeights | None:
        facts = [facts for name, facts in self.data.labels.items() if name != next(iter(self.data.labels))]
        crowded = [f for f in facts if f.pieces >= 8 and f.crowding > 0.1]
        w0, sigma = (10.0, 5.0) if self.data.spatial_dims == 2 else (5.0, 2.0)
        if self.wishes.configuration == "2d" and self.data.spatial_dims == 3:
            return None
        if self.data.has_instance_maps and self.data.instances_touch:
            reason = "The instance maps hold objects that touch, and the weights teach the network to part them."
        elif crowded:
            reason = (
                f"Labels have {max(f.pieces for f in crowded):.0f} pieces with narrow gaps between them, and the "
                "weights (Ronneberger et al. 2015, Eq. 2) teach the network to keep the gaps."
            )
        else:
            self._say("boundary weights", "none", "The labels are not crowds of objects that touch.")
            return None
        self._say("boundary weights", f"w0 = {w0:g}, σ = {sigma:g} voxels", reason)
        return BoundaryWeights(w0, sigma, self.data.has_instance_maps)

    def _patch_and_network(
        self, plan: Plan, spacing: Sequence[float], shape: Sequence[float], weights: BoundaryWeights | None
    ) -> tuple[Plan, bool]:
        """Choose patch, tile, stages and width, and whether cases are kept in mapped files."""
        cached = self.costs.cached_bytes(plan, weights is not None)
        is_mapped = cached > self.wishes.memory / 3 if self.wishes.device == "cpu" else cached > 16 * 1000**3
        self._say(
            "prepared cases", "mapped files" if is_mapped else "in memory",
            f"All prepared cases take {size_text(cached)}"
            + (", too much to keep in memory." if is_mapped else ", which fits into memory."),
        )  # fmt: skip
        budget = self.wishes.memory - (cached if self.wishes.device == "cpu" and not is_mapped else 0)
        max_stages = {"unetplusplus": 5, "unet3d": 6, "unetr": 100}.get(self.wishes.network, 100)
        needed = math.inf

        def candidate(patch: Sequence[int], topology: Topology, width: int) -> Plan:
            return self._with_network(plan, patch, topology, width)

        def fits(patch: tuple[int, ...], topology: Topology, width: int) -> bool:
            nonlocal needed
            found = self.costs.training_bytes(candidate(patch, topology, width), MIN_BATCH)
            needed = min(needed, found)
            return found <= budget

        chosen: tuple[Plan, bool, int] | None = None
        available = self.wishes.hours * 3600 * TIME_FOR_STEPS
        widths = list(WIDTHS[self.wishes.device])
        while widths:
            width = widths.pop(0)
            found = largest_patch(spacing, shape, partial(fits, width=width), max_stages)
            if found is None:
                continue
            patch, topology, is_reduced = found
            planned = candidate(patch, topology, width)
            chosen = planned, is_reduced, width
            steps = available / self.costs.step_seconds(planned, MIN_BATCH)
            if steps >= ENOUGH_STEPS:
                break
            # operations grow with the square of the width, so some narrower ones need not be tried
            widths = [w for w in widths if steps * (width / w) ** 2 >= 0.7 * ENOUGH_STEPS] or widths[-1:]
        if chosen is None:
            raise MemoryLimitError(
                f"{self.data.name}: the smallest patch with the narrowest network needs {needed / 1e6:,.0f} MB for a "
                f"batch of {MIN_BATCH}, the limit leaves {max(budget, 0) / 1e6:,.0f} MB; raise --memory, or try "
                "--configuration 2d"
            )
        planned, is_reduced, width = chosen
        self._say_patch(planned, shape, is_reduced)
        self._say_network(planned, width)
        return planned, is_mapped

    def _say_patch(self, plan: Plan, shape: Sequence[float], is_reduced: bool) -> None:
        size = " × ".join(map(str, plan.patch))
        median = " × ".join(f"{n:.0f}" for n in shape)
        if is_reduced:
            reason = (
                f"It is the largest patch with a batch of {MIN_BATCH} in {self.wishes.memory / 1e9:.3g} GB, with the "
                f"proportions of the median image of {median} voxels."
            )
        else:
            reason = f"It holds the whole median image of {median} voxels, rounded up to what the stages can halve."
        self._say("patch and tile", size, reason)

    def _say_network(self, plan: Plan, width: int) -> None:
        arguments = plan.network["arguments"]
        channels = " ".join(map(str, arguments["channels"]))
        widths = WIDTHS[self.wishes.device]
        if width == widths[0]:
            reason = (
                f"The time allows {width} channels at full resolution, and more gained little on the hippocampus data."
            )
            if self.wishes.device == "cuda":
                reason = f"The widths are nnU-Net's: {width} channels at full resolution, doubled at each stage."
        else:
            reason = (
                f"A network with more than {width} channels at full resolution would take fewer than "
                f"{ENOUGH_STEPS:,} steps in {self.wishes.hours:g} hours."
            )
        self._say("network", f"{plan.network['name']}, channels {channels}", reason)
        if "strides" in arguments:
            strides = " ".join("".join(map(str, step)) for step in arguments["strides"])
            kernels = " ".join("".join(map(str, kernel)) for kernel in arguments["kernel_sizes"])
            self._say(
                "strides and kernels", f"strides {strides}; kernels {kernels}",
                "An axis is halved while its voxels are less than twice the finest ones and it has at least 8 voxels; "
                "kernels are 1 along axes that are still much coarser.",
            )  # fmt: skip

    def _with_network(self, plan: Plan, patch: Sequence[int], topology: Topology, width: int) -> Plan:
        """Return the plan with a patch and the network for it."""
        dims = plan.spatial_dims
        if self.wishes.network == "unetr":
            return self._with_unetr(plan, patch, width)
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
        preset, own = networks[self.wishes.network]
        network = {"name": preset, "arguments": {**geometry, **own}}
        return replace(plan, patch=list(patch), tile=list(patch), network=network)

    def _with_unetr(self, plan: Plan, patch: Sequence[int], width: int) -> Plan:
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

    def _batch_size(self, plan: Plan, shape: Sequence[float]) -> int:
        if self.wishes.device == "cpu":
            self._say("batch", MIN_BATCH, "On a CPU more steps with small batches learn faster than fewer large ones.")
            return MIN_BATCH
        slices = 1.0
        if plan.slice_axis is not None:
            slices = median_shape(self.data, target_spacing(self.data))["RAS".index(plan.slice_axis)]
        voxels = math.prod(shape) * slices * self.data.num_cases
        most = max(MIN_BATCH, round(voxels * MOST_OF_DATA / math.prod(plan.patch)))
        batch = MIN_BATCH
        while batch < most and self.costs.training_bytes(plan, batch + 1) <= self.wishes.memory:
            batch += 1
        reason = (
            f"More would be over {MOST_OF_DATA:.0%} of the data set's voxels in one step."
            if batch == most
            else "It is the largest batch that fits into the memory."
        )
        self._say("batch", batch, reason)
        return batch

    def _rotation(self, plan: Plan, largest: float) -> float | tuple[float, ...]:
        """Return the largest rotation; about the coarse axis alone if its voxels are far larger than the others."""
        if plan.spatial_dims == 2 or plan.spacing is None or max(plan.spacing) <= ANISOTROPY * min(plan.spacing):
            return largest
        coarse = max(range(3), key=lambda axis: (plan.spacing or ())[axis])
        return tuple(largest if axis == coarse else 0.0 for axis in range(3))

    def _schedule(self, plan: Plan, batch: int, weights: BoundaryWeights | None, is_mapped: bool) -> TrainingSettings:
        seconds = self.costs.step_seconds(plan, batch)
        steps_per_epoch = max(1, math.ceil(self.num_training_cases / batch))
        available = self.wishes.hours * 3600 * TIME_FOR_STEPS / seconds
        is_enough = available >= MOST_STEPS
        steps = int(min(MOST_STEPS, available))
        epochs = max(1, steps // steps_per_epoch)
        steps = epochs * steps_per_epoch
        if steps < FEW_STEPS:
            self.warnings.append(
                f"{self.wishes.hours:g} hours allow only {steps} steps of about {seconds:.2g} s; the network will not "
                "be trained well; raise --hours, or use a GPU"
            )
        self._say(
            "epochs", f"{epochs} of {steps_per_epoch} steps",
            f"A step takes about {seconds:.2g} s here, so {steps:,} steps fill {TIME_FOR_STEPS:.0%} of "
            f"{self.wishes.hours:g} hours; the rest is for loading and validation."
            if not is_enough
            else f"As in nnU-Net, {MOST_STEPS:,} steps are enough.",
        )  # fmt: skip
        is_nested = self.wishes.network == "unetplusplus"
        rate = {"unetr": 0.001, "unetplusplus": 0.003}.get(self.wishes.network, 0.002)
        self._say(
            "optimiser", f"AdamW, {rate:g}, weight decay 0.01, gradient clipped at 12, weights averaged",
            "These settings gave the best Dice per hour on the hippocampus data.",
        )  # fmt: skip
        terms = "one sigmoid per region: " if plan.label_regions else ""
        terms += "Dice over the batch + cross entropy" + (", at every depth" if is_nested else "")
        self._say(
            "loss", terms, "With the Dice of the whole batch, a label that one patch lacks does not rule the gradient."
        )  # fmt: skip
        is_short = epochs <= PASSES_WITH_WEAK_DEFORMATION
        deformation = WEAK_DEFORMATION if is_short else STRONG_DEFORMATION
        rotation = self._rotation(plan, deformation.rotation)
        where = "" if isinstance(rotation, float) else "; coarse slices turn in their plane only"
        self._say(
            "deformation",
            f"probability {deformation.probability:g}, rotation up to {deformation.rotation:g} rad, scale "
            f"{deformation.scale[0]:g} to {deformation.scale[1]:g}",
            f"{'Weak' if is_short else 'Strong'} deformations gave the better Dice on the hippocampus data with about "
            f"{epochs} passes over the cases{where}.",
        )
        return TrainingSettings(
            max_epochs=epochs,
            batch_size=batch,
            learning_rate=rate,
            val_interval=max(1, epochs // VALIDATIONS),
            checkpoint_interval=max(1, round(STEPS_PER_CHECKPOINT / steps_per_epoch)),
            average_decay=round(min(0.998, max(0.9, 1 - 5 / steps)), 4),
            max_grad_norm=12.0,
            batch_dice=True,
            has_deep_supervision=is_nested,
            deformation_prob=deformation.probability,
            rotation_range=rotation,
            scale_range=deformation.scale,
            flip_axes=tuple(plan.mirror_axes),
            has_low_resolution=not all(modality in MICROSCOPY for _, modality in self.data.channels),
            boundary_weights=weights,
            is_mapped=is_mapped,
        )


def bundle_name(text: str) -> str:
    """Return a name for a bundle from the name of a data set."""
    name = re.sub(r"[^\w]+", "_", text.strip().lower(), flags=re.ASCII).strip("_")
    return f"{name or 'planned'}_segmentation"[:100]
