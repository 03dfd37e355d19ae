"""Plan a bundle for a data set: measure it, apply the rules, estimate the work, and write the bundle."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

from medseg.datasets import Manifest, describe_dataset, fold_cases, read_manifest, split_by_presence
from medseg.datasets.manifest_content import to_yaml
from medseg.errors import ManifestError
from medseg.inference.memory import parse_bytes
from medseg.networks.precision import Precision
from medseg.plan import Plan
from medseg.planning import estimate
from medseg.planning.data_fingerprint import DataFingerprint, measure_dataset
from medseg.planning.estimate import WorkEstimate
from medseg.planning.planned_training import Costs, NetworkName, PlannedTraining, Wishes
from medseg.planning.rules import bundle_name, plan_training
from medseg.planning.write_bundle import BundleContent, check_new_folder, path_from_bundle, write_bundle
from medseg.volumes import Grid, read_grid

NUM_FOLDS = 5
# Operations per second for a machine without the GPU that is planned for: an RTX 2080 Ti takes 101.5 s for 250 training
# and 50 validation steps of Task003_Liver (nnU-Net's documentation/expected_epoch_times.md), of 5.8e12 operations each.
USUAL_GPU_FLOPS = 1.5e13


@dataclass(frozen=True)
class PlannedBundle:
    """A bundle that was written.

    Args:
        folder: the bundle.
        planned: plan, settings, reasons and warnings.
        fingerprint: of the data set.
        estimates: of preparing, training and predicting, by name.
    """

    folder: Path
    planned: PlannedTraining
    fingerprint: DataFingerprint
    estimates: dict[str, WorkEstimate]


def plan_bundle(
    data: str | Path,
    out: str | Path,
    *,
    manifest: str | Path | None = None,
    memory: str | int = "8GB",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    hours: float = 2.0,
    network: NetworkName = "unet",
    configuration: Literal["2d", "3d"] | None = None,
    flops_per_second: float | None = None,
    on_case: Callable[[str, int, int], None] | None = None,
) -> PlannedBundle:
    """Measure a data set and write a complete bundle for it.

    Args:
        data: folder of the data set, or a manifest that lies in it.
        out: folder of the new bundle; it must be new or empty.
        manifest: name or file of the data set's manifest; None understands the layout of the folder.
        memory: memory that a training may use, of the process on a CPU, of the device on a GPU.
        device: "cpu", "cuda", or "auto" for a GPU if there is one.
        hours: time of one training.
        network: form of the network.
        configuration: "2d" segments volumes slice by slice; None follows the data.
        flops_per_second: speed of the device; None measures it.
        on_case: see `measure_dataset`.

    Raises:
        ManifestError: the data set cannot be read.
        OptionError: an option is wrong, or `out` is not empty.
        PlanError: the labels cannot be trained.
        MemoryLimitError: no plan fits the memory.
    """
    import torch

    kind: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
    kind = kind if device == "auto" else device
    wishes = Wishes(parse_bytes(memory), kind, hours, network, configuration)
    data, out = Path(data), Path(out)
    check_new_folder(out)
    described, text = _with_folds(*_described(data, manifest))
    data = data if described.folder is None or data.is_dir() else described.folder
    fingerprint = measure_dataset(described, data, on_case=on_case)
    fold = _first_fold(described)
    training = split_by_presence(described, data, fold_cases(described, fold, "training"))[0]
    if not training:
        raise ManifestError(f"{described.name}: fold {fold} leaves no case for training under {data}")
    grids = [read_grid(described.paths(data, case)["image"][0]) for case in training]
    precision = _precision(kind)
    costs = training_costs(wishes, grids, precision, flops_per_second)
    planned = plan_training(fingerprint, wishes, costs, bundle_name(described.name), len(training))
    name = planned.plan.name.removesuffix("_segmentation")
    settings = replace(
        planned.settings,
        fold=fold,
        dataset_dir=path_from_bundle(out, data),
        output_dir=f"runs/{name}",
    )
    planned = replace(planned, settings=settings)
    estimates = _estimates(planned, wishes, grids, precision, costs, fingerprint)
    content = BundleContent(planned, fingerprint, described, text, estimates, kind, precision)
    write_bundle(out, content)
    return PlannedBundle(out, planned, fingerprint, estimates)


def _described(data: Path, manifest: str | Path | None) -> tuple[Manifest, str]:
    """Return the manifest of a data set and its YAML."""
    found = describe_dataset(data) if manifest is None else read_manifest(manifest)
    if found.path is not None and found.path.suffix in (".yaml", ".yml"):
        return found, found.path.read_text(encoding="utf-8-sig")  # with its comments
    return found, to_yaml(found)


def _with_folds(manifest: Manifest, text: str) -> tuple[Manifest, str]:
    """Give a data set without folds five of them, or as many as it has patients; each patient is in one."""
    if manifest.folds or manifest.splits:
        return manifest, text
    patients = sorted({case.patient for case in manifest.cases})
    count = min(NUM_FOLDS, len(patients))
    folds = {
        number: [case.id for case in manifest.cases if case.patient in patients[number::count]]
        for number in range(count)
    }
    manifest = replace(manifest, folds={number: tuple(cases) for number, cases in folds.items()})
    return manifest, to_yaml(manifest)


def _first_fold(manifest: Manifest) -> int | str:
    """Return the fold to validate on, or "all" if the data set has only one."""
    open_folds = [number for number in (*manifest.folds, *manifest.splits) if number != manifest.test_fold]
    return open_folds[0] if len(open_folds) > 1 or manifest.splits else "all"


def _precision(device: str) -> Precision:
    import torch

    from medseg.training import resolve_precision

    return "bf16" if device == "cuda" and not torch.cuda.is_available() else resolve_precision("auto", device)


def training_costs(
    wishes: Wishes, grids: Sequence[Grid], precision: Precision, flops_per_second: float | None
) -> Costs:
    """Return the functions with which the rules ask what a plan takes.

    Args:
        wishes: device and network.
        grids: of the training cases' files.
        precision: of the convolutions.
        flops_per_second: speed of the device; None measures it when it is first needed.
    """
    import torch

    is_there = wishes.device == "cpu" or torch.cuda.is_available()
    is_nested = wishes.network == "unetplusplus"

    @cache
    def speed() -> float:
        if flops_per_second is not None:
            return flops_per_second
        return estimate.measured_flops_per_second(precision, wishes.device) if is_there else USUAL_GPU_FLOPS

    def per_voxel(count: Callable[[Plan, int], int]) -> Callable[[Plan, int], int]:
        # what a step takes is proportional to its voxels, and counting it takes a second
        counted: dict[str, float] = {}

        def scaled(plan: Plan, batch: int) -> int:
            network, voxels = json.dumps([plan.network, plan.spatial_dims]), batch * math.prod(plan.patch)
            if network not in counted:
                counted[network] = count(plan, batch) / voxels
            return int(counted[network] * voxels)

        return scaled

    step_bytes = per_voxel(lambda plan, batch: estimate.step_bytes(plan, batch, precision, is_nested))
    step_flops = per_voxel(estimate.step_flops)

    def training_bytes(plan: Plan, batch: int) -> int:
        parts = estimate.training_parts(
            plan, batch, precision, device=wishes.device, has_deep_supervision=is_nested,
            validation_bytes=estimate.validation_bytes(plan, grids), step=step_bytes(plan, batch),
        )  # fmt: skip
        return sum(parts.values())

    def step_seconds(plan: Plan, batch: int) -> float:
        return step_flops(plan, batch) / speed()

    def cached_bytes(plan: Plan, has_weights: bool) -> int:
        return estimate.prepared_bytes(plan, grids, has_weights)

    return Costs(training_bytes, step_seconds, cached_bytes, step_bytes)


def _estimates(
    planned: PlannedTraining,
    wishes: Wishes,
    grids: Sequence[Grid],
    precision: Precision,
    costs: Costs,
    fingerprint: DataFingerprint,
) -> dict[str, WorkEstimate]:
    plan, settings = planned.plan, planned.settings
    seconds = costs.step_seconds(plan, settings.batch_size)
    train = estimate.training_estimate(
        plan, grids, settings.batch_size, settings.max_epochs, precision=precision, device=wishes.device,
        has_deep_supervision=settings.has_deep_supervision, has_weights=settings.boundary_weights is not None,
        is_mapped=settings.is_mapped, num_workers=settings.num_workers, step_seconds=seconds,
        step=costs.step_bytes(plan, settings.batch_size),
    )  # fmt: skip
    prepared = estimate.prepared_bytes(plan, grids, settings.boundary_weights is not None)
    largest = estimate.loading_bytes(plan, grids)
    prepare = WorkEstimate(
        estimate.PROCESS_BYTES + largest + (0 if settings.is_mapped else prepared),
        prepared if settings.is_mapped else 0,
        fingerprint.seconds_per_case * len(grids),
        {},
    )
    typical = sorted(grids, key=lambda grid: estimate.model_voxels(plan, grid))[len(grids) // 2]
    # a training step is about three forward passes of each patch
    predict = estimate.prediction_estimate(plan, typical, seconds / (3 * settings.batch_size))
    return {"preparing the training cases": prepare, "training": train, "predicting one scan": predict}
