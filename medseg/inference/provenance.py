"""The record written beside every segmentation."""

from __future__ import annotations

import functools
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from medseg.plan import Plan

NOTICE = "Research use only. Not a medical device; not for diagnosis or treatment."


@dataclass(frozen=True)
class ModelFacts:
    """Where a network's weights came from.

    Args:
        bundle: name or folder of the bundle.
        weights_sha256: digest of each weights file, several for an ensemble.
    """

    bundle: str = ""
    weights_sha256: tuple[str, ...] = ()


def software_versions() -> dict[str, str]:
    """Versions of what computed the result."""
    packages = ["medseg", "torch", "monai", "numpy", "nibabel", "SimpleITK"]
    if "openvino" in sys.modules:  # a part of what computed the result only where it was used
        packages.append("openvino")
    return {"python": platform.python_version(), **{package: _installed_version(package) for package in packages}}


@functools.cache  # a look-up reads the package's metadata file, and a volume in slices asks once a slice
def _installed_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def record(
    plan: Plan, facts: ModelFacts, settings: Mapping[str, Any], sources: Sequence[str],
    input_sha256: Sequence[str | None], seconds: Mapping[str, float], warnings: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """How one segmentation was made, as plain data."""
    return {
        "schema_version": 1,
        "notice": NOTICE,
        "bundle": facts.bundle or plan.name,
        "weights_sha256": list(facts.weights_sha256),
        "plan": plan.name,
        "plan_sha256": plan.digest,
        "input": list(sources),
        "input_sha256": list(input_sha256),
        "labels": dict(plan.labels),
        **settings,
        "versions": software_versions(),
        "machine": platform.machine(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "warnings": list(warnings),
    }
