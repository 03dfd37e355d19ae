"""medseg: medical volumetric segmentation on MONAI.

The public names below are imported when first used, so `import medseg` stays cheap.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "load": "medseg.bundle",
    "load_network": "medseg.bundle",
    "read_plan": "medseg.plan",
    "Plan": "medseg.plan",
    "MedsegError": "medseg.errors",
}
_SUBPACKAGES = {
    "bundle", "datasets", "errors", "evaluation", "figures", "inference", "losses", "networks", "plan", "training",
    "transforms", "volumes", "weights",
}  # fmt: skip

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _SUBPACKAGES:
        return import_module(f"medseg.{name}")
    raise AttributeError(f"module 'medseg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_SUBPACKAGES})
