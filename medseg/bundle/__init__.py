"""Load bundles without running their code, promote weights into them, verify and export them.

What loading a bundle does not need is imported when it is first used. A function with the name of its module cannot be.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from medseg.bundle.export import export
from medseg.bundle.folder import BundleFolder
from medseg.bundle.loading import load, load_network
from medseg.bundle.promote import promote
from medseg.bundle.verify import verify

if TYPE_CHECKING:
    from medseg.bundle.calibrate import write_calibration
    from medseg.bundle.configs import apply_plan, inference_config
    from medseg.bundle.ensemble import write_ensemble
    from medseg.bundle.fingerprint import compute_fingerprint, write_fingerprint
    from medseg.bundle.importing import import_bundle
    from medseg.bundle.measure_int8 import quantize

__all__ = [
    "BundleFolder",
    "apply_plan",
    "compute_fingerprint",
    "export",
    "import_bundle",
    "inference_config",
    "load",
    "load_network",
    "promote",
    "quantize",
    "verify",
    "write_calibration",
    "write_ensemble",
    "write_fingerprint",
]

_HOMES = {
    "apply_plan": "configs",
    "compute_fingerprint": "fingerprint",
    "import_bundle": "importing",
    "inference_config": "configs",
    "quantize": "measure_int8",
    "write_calibration": "calibrate",
    "write_ensemble": "ensemble",
    "write_fingerprint": "fingerprint",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
