"""Configs with which an imported network is trained on, on images that are prepared as its own program does it."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from medseg.bundle.configs import format_json, network_component
from medseg.bundle.train_config import TrainingSettings, evaluate_config, format_train, template_text, train_config
from medseg.plan import Plan


def training_files(plan: Plan) -> dict[str, str]:
    """Return the files of `configs` that a training needs, by name.

    For a plan with `resampling`, images and label maps are cropped and resampled by `ExactPreprocessd`, and validation
    predicts and restores as `ExactPredictor` does. Other plans get the configs of a planned bundle. The manifest is the
    folder of the data set, which may be a raw one of nnU-Net.

    Args:
        plan: of the imported model.
    """
    if plan.resampling is None:
        settings = TrainingSettings(max_epochs=50, learning_rate=0.0005, val_interval=5, manifest="@dataset_dir")
        return {
            "train.json": format_train(train_config(plan, settings)),
            "evaluate.json": format_json(evaluate_config(plan)) + "\n",
            "multi_gpu_train.json": template_text("multi_gpu_train.json"),
            "logging.conf": template_text("logging.conf"),
        }
    return {
        "train.json": format_train(_train_config(plan)),
        "evaluate.json": format_json(_evaluate_config(plan)) + "\n",
        "multi_gpu_train.json": _text("imported_multi_gpu_train.json"),
        "logging.conf": _text("imported_logging.conf"),
    }


def _train_config(plan: Plan) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(_text("imported_train.json"))
    config["network_def"] = network_component(plan)
    deform = config["train"]["random_transforms"]["deform"]
    if plan.mirror_axes:
        deform["flip"] = list(plan.mirror_axes)
    if plan.label_regions is not None:
        config["loss"]["regions"] = "$list(@plan.classes_of_structures.values())"
    if plan.spatial_dims == 2:
        config["network"] = "$@network_def.to(@device, memory_format=torch.channels_last)"
        del config["train"]["random_transforms"]["smooth"]["sigma_z"]
    if plan.slice_axis is not None:  # the slices of a volume follow each other along its first axis
        crops = config["train"]["crop_transforms"]
        crops["crop"]["spatial_size"] = "$[1, *@patch]"
        crops["slice"] = {"_target_": "SqueezeDimd", "keys": ["image", "label"], "dim": 1}
    return config


def _evaluate_config(plan: Plan) -> dict[str, Any]:
    """Return evaluate.json, an overlay of train.json that validates the weights of the bundle."""
    config: dict[str, Any] = json.loads(_text("imported_evaluate.json"))
    saver = next(handler for handler in config["validate#handlers"] if handler["_target_"] == "MetricsSaver")
    saver["metrics"] = ["val_mean_dice"]
    if len(plan.structures) > 1:
        saver["metrics"] += [f"val_mean_dice_{name}" for name in plan.structures]
    return config


def _text(name: str) -> str:
    return (files("medseg.bundle") / "importing" / name).read_text(encoding="utf-8")
