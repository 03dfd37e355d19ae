"""Prediction: tiles, blending, restoring to the scan's own grid, and the Predictor that does all of it."""

from medseg.inference.case_result import CaseResult
from medseg.inference.native_writer import NativeWriter
from medseg.inference.overlap_tile import OverlapTile
from medseg.inference.predict_files import predict_files
from medseg.inference.predictor import Predictor
from medseg.inference.preprocessing import preprocessing
from medseg.inference.scan_files import scan_files
from medseg.inference.scan_reader import ScanReader
from medseg.inference.segmentation import Segmentation
from medseg.inference.slice_predictor import SlicePredictor
from medseg.inference.sliding_window import SlidingWindow

__all__ = [
    "CaseResult",
    "NativeWriter",
    "OverlapTile",
    "Predictor",
    "ScanReader",
    "Segmentation",
    "SlicePredictor",
    "SlidingWindow",
    "predict_files",
    "preprocessing",
    "scan_files",
]
