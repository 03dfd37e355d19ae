"""Prediction: tiles, blending, restoring to the scan's own grid, and the Predictor that does all of it."""

from medseg.inference.inferers import OverlapTileInferer, SlidingWindowInferer
from medseg.inference.monai_io import NativeWriter, ScanReader, scan_files
from medseg.inference.predict_files import CaseResult, predict_files
from medseg.inference.predictor import Predictor
from medseg.inference.preprocessing import preprocessing
from medseg.inference.segmentation import Segmentation
from medseg.inference.slice_predictor import SlicePredictor

__all__ = [
    "CaseResult",
    "NativeWriter",
    "OverlapTileInferer",
    "Predictor",
    "ScanReader",
    "Segmentation",
    "SlicePredictor",
    "SlidingWindowInferer",
    "predict_files",
    "preprocessing",
    "scan_files",
]
