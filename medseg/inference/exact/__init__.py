"""Predict exactly as nnU-Net does; read in this order: exact_grid, exact_image, exact_tiles, exact_predictor."""

from medseg.inference.exact.exact_predictor import ExactPredictor
from medseg.inference.exact.exact_transforms import ExactInferer, ExactPreprocessd, ExactRestored

__all__ = ["ExactInferer", "ExactPredictor", "ExactPreprocessd", "ExactRestored"]
