"""Load bundles without running their code, promote weights into them, verify and export them."""

from medseg.bundle.calibrate import write_calibration
from medseg.bundle.configs import apply_plan, inference_config
from medseg.bundle.ensemble import write_ensemble
from medseg.bundle.export import export
from medseg.bundle.fingerprint import compute_fingerprint, write_fingerprint
from medseg.bundle.folder import BundleFolder
from medseg.bundle.importing import import_bundle
from medseg.bundle.loading import load, load_network
from medseg.bundle.promote import promote
from medseg.bundle.verify import verify

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
    "verify",
    "write_calibration",
    "write_ensemble",
    "write_fingerprint",
]
