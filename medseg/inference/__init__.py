"""Predict segmentations: sliding windows, restoring to the scan's own grid, and the `Predictor` that combines them.

The components of MONAI's workflows are imported when they are first used, because MONAI takes seconds to import.
"""

from typing import TYPE_CHECKING

from medseg.inference.backends.torch_backend import Backend
from medseg.inference.cases import Case, find_cases
from medseg.inference.predict_files import CaseResult, predict_files
from medseg.inference.predictor import Predictor
from medseg.inference.preprocessing import preprocessing
from medseg.inference.scan import Scan, load_scan
from medseg.inference.segmentation import Segmentation
from medseg.lazy_names import lazy_names

if TYPE_CHECKING:
    from medseg.inference.exact import ExactInferer, ExactPredictor, ExactPreprocessd, ExactRestored
    from medseg.inference.inferers import OverlapTileInferer, SlidingWindowInferer
    from medseg.inference.monai_io import NativeWriter, PlausibilityHandler, ScanReader, scan_files
    from medseg.inference.regions import RegionInferer, RegionPredictor
    from medseg.inference.slice_predictor import SlicePredictor

__all__ = [
    "Backend",
    "Case",
    "CaseResult",
    "ExactInferer",
    "ExactPredictor",
    "ExactPreprocessd",
    "ExactRestored",
    "NativeWriter",
    "OverlapTileInferer",
    "PlausibilityHandler",
    "Predictor",
    "RegionInferer",
    "RegionPredictor",
    "Scan",
    "ScanReader",
    "Segmentation",
    "SlicePredictor",
    "SlidingWindowInferer",
    "find_cases",
    "load_scan",
    "predict_files",
    "preprocessing",
    "scan_files",
]

_HOMES = {
    "ExactInferer": "exact",
    "ExactPredictor": "exact",
    "ExactPreprocessd": "exact",
    "ExactRestored": "exact",
    "NativeWriter": "monai_io",
    "OverlapTileInferer": "inferers",
    "PlausibilityHandler": "monai_io",
    "RegionInferer": "regions",
    "RegionPredictor": "regions",
    "ScanReader": "monai_io",
    "SlicePredictor": "slice_predictor",
    "SlidingWindowInferer": "inferers",
    "scan_files": "monai_io",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
