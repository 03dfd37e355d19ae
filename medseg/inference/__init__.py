"""Predict segmentations: sliding windows, restoring to the scan's own grid, and the `Predictor` that combines them."""

from medseg.inference.backends.torch_backend import Backend
from medseg.inference.cases import Case, find_cases
from medseg.inference.exact import ExactInferer, ExactPredictor, ExactPreprocessd, ExactRestored
from medseg.inference.inferers import OverlapTileInferer, SlidingWindowInferer
from medseg.inference.monai_io import NativeWriter, PlausibilityHandler, ScanReader, scan_files
from medseg.inference.predict_files import CaseResult, predict_files
from medseg.inference.predictor import Predictor
from medseg.inference.preprocessing import preprocessing
from medseg.inference.regions import RegionInferer, RegionPredictor
from medseg.inference.scan import Scan, load_scan
from medseg.inference.segmentation import Segmentation
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
