"""What makes a training this one and no other: a checkpoint of another is refused, not continued."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from ignite.engine import Engine

WAY_OUT = "or train into another output_dir"


def training_identity(engine: Engine, objects: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data that must not change between a checkpoint and what goes on from it.

    Args:
        engine: a MONAI trainer; its loader's seed and cases are taken where it has a `SeededSampler` and a data set of
            dictionaries with a `case`.
        objects: what the checkpoint holds; their kinds are taken.

    Returns:
        `kinds`: class name by object; `seed`: None without one; `cases`: their number and a digest of their names,
        None where they have none.
    """
    loader = getattr(engine, "data_loader", None)
    return {
        "kinds": {name: type(item).__name__ for name, item in objects.items()},
        "seed": getattr(getattr(loader, "sampler", None), "seed", None),
        "cases": _cases(getattr(loader, "dataset", None)),
    }


def difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What a user changed since the checkpoint, with the way back; None where nothing did."""
    for name, kind in now["kinds"].items():
        before = then.get("kinds", {}).get(name, kind)
        if before != kind:
            return f"its {name} is a {before}, this run's a {kind}; resume with the same configs, {WAY_OUT}"
    seed = then.get("seed")
    if None not in (seed, now["seed"]) and seed != now["seed"]:
        return f"was trained with seed {seed}, now it is {now['seed']}; give --seed {seed}, {WAY_OUT}"
    cases = then.get("cases")
    if cases is not None and now["cases"] is not None and cases != now["cases"]:
        return (
            f"was trained on {cases['number']} cases, and this run's {now['cases']['number']} are not the same; give "
            f"the fold and the data it was started with, {WAY_OUT}"
        )
    return None


def _cases(dataset: Any) -> dict[str, Any] | None:
    data = getattr(getattr(dataset, "dataset", dataset), "data", None)
    if not isinstance(data, list) or not all(isinstance(item, Mapping) and "case" in item for item in data):
        return None
    names = sorted(str(item["case"]) for item in data)
    return {"number": len(names), "sha256": hashlib.sha256("\n".join(names).encode()).hexdigest()}
