"""Load bundles without running their code, promote weights into them, verify and export them.

What loading a bundle does not need is imported when it is first used.
"""

from typing import TYPE_CHECKING

from medseg.bundle.export import export
from medseg.bundle.folder import BundleFolder
from medseg.bundle.loading import load, load_network
from medseg.bundle.promote import promote
from medseg.bundle.verify import verify
from medseg.lazy_names import lazy_names

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

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
