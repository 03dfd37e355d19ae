"""Copies of the shipped bundles, changed so that a test runs in moments."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from medseg.bundle import apply_plan
from medseg.inference.plausibility import Fingerprint, LabelStatistics
from medseg.plan import read_plan
from medseg.weights import sha256

BUNDLES = Path(__file__).parents[2] / "bundles"


def copy_bundle(name: str, folder: Path) -> Path:
    """Copy a shipped bundle without its weights."""
    shutil.copytree(BUNDLES / name, folder, ignore=shutil.ignore_patterns("models"))
    return folder


def change_plan(bundle: Path, network: Mapping[str, Any] | None = None, **values: Any) -> None:
    """Change values of plan.json and arguments of its network, and the configs that follow from it."""
    file = bundle / "configs" / "plan.json"
    plan = json.loads(file.read_text(encoding="utf-8")) | values
    plan["network"]["arguments"] |= network or {}
    file.write_text(json.dumps(plan), encoding="utf-8")
    apply_plan(bundle)


def add_random_weights(bundle: Path, zero_bias: bool = False) -> None:
    """Give the bundle random weights as if they were promoted; `zero_bias` makes labels about equally frequent."""
    (bundle / "models").mkdir(exist_ok=True)
    torch.manual_seed(0)
    state = read_plan(bundle / "configs" / "plan.json").create_network().state_dict()
    if zero_bias:
        state["head.bias"].zero_()
    torch.save(state, bundle / "models" / "model.pt")
    record_weights(bundle)


def record_weights(bundle: Path) -> None:
    """Record the weights at models/model.pt as promoted."""
    record = {"weights_sha256": sha256(bundle / "models" / "model.pt")}
    (bundle / "models" / "model.json").write_text(json.dumps(record), encoding="utf-8")


def add_fingerprint(folder: Path, volume_ml: tuple[float, float]) -> None:
    """Write a fingerprint whose cases had volumes in this range and none without a structure."""
    low, high = volume_ml
    volumes = {"smallest": low, "0.5%": low, "median": (low + high) / 2, "99.5%": high, "largest": high}
    statistics = LabelStatistics(volumes, absent=0, pieces=1, stray=1.0, at_border=1.0)
    names = read_plan(folder / "configs" / "plan.json").label_names[1:]
    fingerprint = Fingerprint(5, {}, {}, dict.fromkeys(names, statistics))
    (folder / "models" / "fingerprint.json").write_text(json.dumps(fingerprint.to_dict()))
