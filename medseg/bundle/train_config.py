"""Fill the template of train.json, and the configs laid over it, from a plan and the settings of its training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from medseg.bundle.configs import format_json, network_component
from medseg.bundle.folder import OWN_MANIFEST
from medseg.plan import Plan

# Copied into a new bundle as they are. recipe_sparse needs volumes without weights, and a bundle whose cases are mapped
# already needs no recipe for it.
COPIED = (
    "logging.conf", "multi_gpu_train.json", "recipe_distillation.json", "recipe_nnunet.json", "recipe_plateau.json",
    "recipe_unet2015.json",
)  # fmt: skip
DEVICE_RECIPE, MAPPED_RECIPE, SPARSE_RECIPE = (
    f"recipe_{name}.json" for name in ("device_augmentation", "mapped_cases", "sparse")
)
# A blank line precedes these keys of train.json.
_SECTIONS = ("max_epochs", "plan", "device", "train", "validate", "initialize")


@dataclass(frozen=True)
class BoundaryWeights:
    """Weights per voxel between touching instances; see `medseg.transforms.BoundaryWeightMap`.

    Args:
        w0: height of the border term.
        sigma: its width in voxels.
        has_instance_maps: True if the data set has maps with one number per object.
    """

    w0: float
    sigma: float
    has_instance_maps: bool = False


@dataclass(frozen=True)
class TrainingSettings:
    """Values of a train.json that are not in the plan.

    Args:
        max_epochs: passes over the training cases.
        batch_size: patches per step.
        learning_rate: the largest one, after the warm-up.
        val_interval, checkpoint_interval: in epochs.
        num_workers: processes that prepare samples; 0 uses the training's own.
        average_decay: of the averaged weights.
        max_grad_norm: the gradient is clipped to it; None does not clip.
        batch_dice: take the Dice loss over the whole batch.
        has_deep_supervision: train every decoder stage's head.
        deformation_prob, rotation_range, scale_range, flip_axes: of the deformation; see
            `medseg.transforms.RandElasticDeformation`.
        has_low_resolution: simulate a low resolution, too.
        boundary_weights: None for none.
        is_mapped: keep prepared cases in mapped files instead of in memory.
        fold: fold to validate on, or "all".
        dataset_dir, output_dir, manifest: values of the keys, which may be MONAI expressions.
    """

    max_epochs: int
    batch_size: int = 2
    learning_rate: float = 0.002
    val_interval: int = 10
    checkpoint_interval: int = 1
    num_workers: int = 0
    average_decay: float = 0.998
    max_grad_norm: float | None = 12.0
    batch_dice: bool = True
    has_deep_supervision: bool = False
    deformation_prob: float = 0.3
    rotation_range: float | tuple[float, ...] = 0.2
    scale_range: tuple[float, float] = (0.9, 1.1)
    flip_axes: tuple[int, ...] = ()
    has_low_resolution: bool = True
    boundary_weights: BoundaryWeights | None = None
    is_mapped: bool = False
    fold: int | str = 0
    dataset_dir: str = "data"
    output_dir: str = "runs/train"
    manifest: str = OWN_MANIFEST


def template_text(name: str) -> str:
    """Return a file of the bundle template."""
    return (files("medseg.bundle") / "template" / name).read_text(encoding="utf-8")


def copied_files(plan: Plan, settings: TrainingSettings) -> dict[str, str]:
    """Return the files of the template that a new bundle gets unchanged, by their name in `configs`."""
    names = [*COPIED, DEVICE_RECIPE]
    if not settings.is_mapped:
        names.append(MAPPED_RECIPE)
    if plan.spatial_dims == 3 and settings.boundary_weights is None:
        names.append(SPARSE_RECIPE)
    return {name: template_text(name) for name in names}


def train_config(plan: Plan, settings: TrainingSettings) -> dict[str, Any]:
    """Return the train.json of a plan: the package's template with the plan's network and the settings."""
    config: dict[str, Any] = json.loads(template_text("train.json"))
    for key in (
        "dataset_dir", "output_dir", "manifest", "fold", "num_workers", "max_epochs", "batch_size", "learning_rate",
        "val_interval", "checkpoint_interval",
    ):  # fmt: skip
        config[key] = getattr(settings, key)
    config["network_def"] = network_component(plan)
    layout = "channels_last" if plan.spatial_dims == 2 else "channels_last_3d"
    config["network"] = f"$@network_def.to(@device, memory_format=torch.{layout})"
    config["loss"] |= {"batch_dice": settings.batch_dice} if settings.batch_dice else {}
    config["update"] |= {"average_decay": settings.average_decay, "max_grad_norm": settings.max_grad_norm}
    if plan.label_regions is not None:
        config["loss"]["regions"] = "$list(@plan.classes_of_structures.values())"
        config["validate"]["postprocessing"]["transforms"][0]["label_values"] = "$@plan.drawn_classes"
        config["validate"]["key_metric"]["val_mean_dice"]["labels"] = "$@plan.classes_of_structures"
    if plan.restoring is not None:
        config["validate"]["postprocessing"]["transforms"][0]["restoring"] = "$@plan.restoring"
    if plan.padding is not None:
        config["validate"]["inferer"]["padding_mode"] = "$@plan.padding"
    if settings.has_deep_supervision:
        config["trained_network"] = {"_target_": "medseg.training.DeepSupervision", "network": "@network"}
        config["loss"] = {
            "_target_": "medseg.losses.DeepSupervisionLoss",
            "loss": config["loss"],
            "weight_mode": "same",
        }
    _set_random_transforms(config["train"]["random_transforms"], plan, settings)
    if settings.boundary_weights is not None:
        _add_weights(config["train"], settings.boundary_weights)
    if plan.slice_axis is not None:
        _cut_slices(config, plan)
    elif plan.spacing is None:
        del config["spacing"]
        for part in ("train", "validate"):
            del config[part]["deterministic_transforms"]["spacing"]
    if settings.is_mapped:
        for part in ("train", "validate"):
            dataset = config[part]["dataset"]
            dataset |= {"_target_": "medseg.training.MappedCases", "directory": "$@output_dir + '/prepared'"}
            for key in ("copy_cache", "num_workers", "progress"):
                dataset.pop(key, None)
    return config


def _set_random_transforms(transforms: dict[str, Any], plan: Plan, settings: TrainingSettings) -> None:
    rotation = settings.rotation_range
    transforms["deform"] |= {
        "prob": settings.deformation_prob,
        "rotation_range": list(rotation) if isinstance(rotation, tuple) else rotation,
        "scale_range": list(settings.scale_range),
    }
    if settings.flip_axes:
        transforms["deform"]["flip"] = list(settings.flip_axes)
    if plan.spatial_dims == 2:
        del transforms["smooth"]["sigma_z"]
        transforms["low_resolution"]["upsample_mode"] = "bilinear"
    if not settings.has_low_resolution:
        del transforms["low_resolution"]


def _add_weights(train: dict[str, Any], weights: BoundaryWeights) -> None:
    """Compute boundary weights once per case, and carry them along with the label map."""
    steps = train["deterministic_transforms"]
    if weights.has_instance_maps:
        for name in ("load", "orientation", "spacing"):
            steps[name]["keys"] = ["image", "label", "instances"]
        steps["spacing"]["mode"] = ["bilinear", "nearest", "nearest"]
    weight = {
        "_target_": "medseg.transforms.BoundaryWeightMapd",
        "label_key": "label",
        "weight_key": "weight",
        "ignore_label": 255,
        **({"instance_key": "instances"} if weights.has_instance_maps else {}),
        "spacing": "affine",
        "w0": weights.w0,
        "sigma": weights.sigma,
    }
    label_type = steps.pop("label_type")
    steps |= {"weight": weight, "label_type": label_type}
    keys = ["image", "label", "weight"]
    train["crop_transforms"]["crop"]["keys"] = keys
    train["crop_transforms"]["select"] = {"_target_": "SelectItemsd", "keys": keys}
    train["random_transforms"]["deform"] |= {"keys": keys, "mode": ["bilinear", "nearest", "nearest"]}


def _cut_slices(config: dict[str, Any], plan: Plan) -> None:
    """Train a 2D network on slices of volumes, and validate it on whole volumes slice by slice."""
    axcodes = "$@plan.orientation + @plan.slice_axis"
    spacing = {"_target_": "medseg.transforms.SliceSpacingd", "pixdim": "@spacing", "padding_mode": "border"}
    for part in ("train", "validate"):
        steps = config[part]["deterministic_transforms"]
        steps["orientation"]["axcodes"] = axcodes
        steps["intensity"]["spatial_dims"] = "$@plan.spatial_dims"
        replaced: dict[str, Any] = {}
        for name, step in steps.items():
            if name != "spacing":
                replaced[name] = step
                continue
            replaced["spacing"] = {**spacing, "keys": "image", "mode": "bilinear"}
            if part == "train":
                replaced["label_spacing"] = {**spacing, "keys": "label", "mode": "nearest"}
        config[part]["deterministic_transforms"] = replaced
    crops = config["train"]["crop_transforms"]
    crops["crop"]["spatial_size"] = "$[*@patch, 1]"
    crops["slice"] = {"_target_": "SqueezeDimd", "keys": ["image", "label"], "dim": -1}


def evaluate_config(plan: Plan) -> dict[str, Any]:
    """Return the evaluate.json of a plan, an overlay of its train.json that validates the promoted weights."""
    config: dict[str, Any] = json.loads(template_text("evaluate.json"))
    saver = next(handler for handler in config["validate#handlers"] if handler["_target_"] == "MetricsSaver")
    structures = list(plan.structures)
    saver["metrics"] = ["val_mean_dice", *(f"val_mean_dice_{name}" for name in structures)]
    if len(structures) == 1:
        saver["metrics"] = ["val_mean_dice"]
    return config


def format_train(config: Mapping[str, Any]) -> str:
    """Return a train.json for readers, with a blank line between its sections."""
    lines = []
    for line in format_json(dict(config)).splitlines():
        is_section = line.startswith('  "') and line[3:].partition('"')[0] in _SECTIONS
        lines += ["", line] if is_section else [line]
    return "\n".join(lines) + "\n"
