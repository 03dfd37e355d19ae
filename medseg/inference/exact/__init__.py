"""Predict exactly as nnU-Net does; read in this order: exact_grid, exact_image, exact_tiles, exact_predictor.

The components of MONAI's workflows are imported when they are first used.
"""

from typing import TYPE_CHECKING

from medseg.inference.exact.exact_predictor import ExactPredictor
from medseg.lazy_names import lazy_names

if TYPE_CHECKING:
    from medseg.inference.exact.exact_transforms import ExactInferer, ExactPreprocessd, ExactRestored

__all__ = ["ExactInferer", "ExactPredictor", "ExactPreprocessd", "ExactRestored"]

_HOMES = dict.fromkeys(("ExactInferer", "ExactPreprocessd", "ExactRestored"), "exact_transforms")

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
