"""The configs of a bundle that follow from its plan: inference.json, and the network of train.json.

Both configs hold the network with its arguments, not a reference to plan.json, because `monai.bundle.load` builds it
from any working directory and cannot know where the plan lies. `verify` compares them with the plan.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from medseg.errors import BundleError
from medseg.plan import Plan, read_plan
from medseg.volumes.files import read_json, replacing

ENSEMBLE = "models/ensemble.json"
LINE_WIDTH = 120


def network_component(plan: Plan) -> dict[str, Any]:
    """Return the plan's network as a MONAI component, e.g. `{"_target_": "medseg.networks.create", …}`."""
    return {
        "_target_": "medseg.networks.create",
        "name": plan.network["name"],
        "in_channels": plan.in_channels,
        "out_channels": plan.out_channels,
        **json.loads(json.dumps(dict(plan.network.get("arguments", {})))),
    }


def inference_config(plan: Plan, num_members: int = 1) -> dict[str, Any]:
    """Return the inference.json of a plan: the package's template with the plan's network and the steps it needs.

    Args:
        plan: of the bundle.
        num_members: number of networks whose logits are averaged; see `medseg.bundle.write_ensemble`.
    """
    template = files("medseg.bundle") / "template" / "inference.json"
    config = json.loads(template.read_text(encoding="utf-8"))
    config["network_def"] = network_component(plan)
    if num_members > 1:
        ensemble = {"_target_": "medseg.networks.create_ensemble", "num_members": num_members}
        config["network_def"] = {**config["network_def"], **ensemble}
        loader, *others = config["handlers"]
        config["handlers"] = [_loader_of_member(loader, number) for number in range(1, num_members + 1)] + others
    steps = {step["_target_"].rpartition(".")[2]: step for step in config["preprocessing"]["transforms"]}
    if plan.slice_axis is not None:
        steps["Orientationd"]["axcodes"] = "$@plan.orientation + @plan.slice_axis"
        steps["Spacingd"]["_target_"] = "medseg.transforms.SliceSpacingd"
        steps["NormalizeIntensityByModalityd"]["spatial_dims"] = "$@plan.spatial_dims"
    if plan.regions is not None:  # each region is resampled and normalised by itself
        del steps["Spacingd"], steps["NormalizeIntensityByModalityd"]
        config["inferer"] = {
            "_target_": "medseg.inference.RegionInferer",
            "inferer": config["inferer"],
            "plan": "@plan",
            "bundle_root": "@bundle_root",
        }
    elif plan.resampling is not None:  # the network's own program resamples in its own way
        del steps["Orientationd"], steps["Spacingd"]
        steps["NormalizeIntensityByModalityd"] = {
            "_target_": "medseg.inference.ExactPreprocessd", "keys": "image", "plan": "@plan",
        }  # fmt: skip
        config["inferer"] = {"_target_": "medseg.inference.ExactInferer", "plan": "@plan"}
        config["postprocessing"]["transforms"][0] = {
            "_target_": "medseg.inference.ExactRestored", "keys": "pred", "ref_key": "image", "plan": "@plan",
        }  # fmt: skip
    elif plan.spacing is None:
        del steps["Spacingd"]
    if plan.restoring is not None:
        config["postprocessing"]["transforms"][0]["restoring"] = "$@plan.restoring"
    if plan.padding is not None:
        config["inferer"]["padding_mode"] = "$@plan.padding"
    config["preprocessing"]["transforms"] = list(steps.values())
    return config


def _loader_of_member(loader: Mapping[str, Any], number: int) -> dict[str, Any]:
    return {
        **loader,
        "load_path": f"$@bundle_root + '/{member_file(number)}'",
        "load_dict": {"model": f"$@network.members[{number - 1}]"},
    }


def member_file(number: int) -> str:
    """Return the weights file of a network of an ensemble, counted from 1, by its path in the bundle."""
    return "models/model.pt" if number == 1 else f"models/model_{number}.pt"


def num_members(bundle: str | Path) -> int:
    """Return the number of networks that a bundle holds: 1, or more for an ensemble."""
    file = Path(bundle) / ENSEMBLE
    content = read_json(file, BundleError) if file.is_file() else None
    members = content.get("members") if isinstance(content, dict) else None
    return max(1, len(members)) if isinstance(members, list) else 1


def apply_plan(bundle: str | Path) -> None:
    """Rewrite what follows from a bundle's plan.json: its inference.json and the network of its train.json.

    Args:
        bundle: the bundle's folder.

    Raises:
        PlanError: the plan cannot be read.
        VolumeError: a file cannot be written.
    """
    folder = Path(bundle) / "configs"
    plan = read_plan(folder / "plan.json")
    changed = {"inference.json": inference_config(plan, num_members(bundle))}
    if (folder / "train.json").is_file():
        train = json.loads((folder / "train.json").read_text(encoding="utf-8"))
        changed["train.json"] = {**train, "network_def": network_component(plan)}
    for name, config in changed.items():
        with replacing(folder / name) as temporary:
            temporary.write_text(format_json(config) + "\n", encoding="utf-8")


def format_json(value: Any, indent: int = 0, used: int = 0) -> str:
    """Return `value` as JSON for readers: an object or a list stands on one line where it fits into 120 columns.

    Args:
        value: plain data.
        indent: spaces in front of the line on which the value begins.
        used: columns of that line which its key and a comma take.
    """
    flat = json.dumps(value, ensure_ascii=False)
    is_nested = isinstance(value, dict | list) and bool(value)
    if not is_nested or (indent > 0 and indent + used + len(flat) <= LINE_WIDTH):
        return flat
    inner = " " * (indent + 2)
    if isinstance(value, dict):
        keys = {key: f"{json.dumps(key, ensure_ascii=False)}: " for key in value}
        lines = [inner + keys[k] + format_json(v, indent + 2, len(keys[k]) + 1) for k, v in value.items()]
    else:
        lines = [inner + format_json(v, indent + 2, 1) for v in value]
    opening, closing = ("{", "}") if isinstance(value, dict) else ("[", "]")
    return opening + "\n" + ",\n".join(lines) + "\n" + " " * indent + closing
