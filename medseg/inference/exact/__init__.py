"""Predict exactly as nnU-Net does; read in this order: exact_grid, exact_image, exact_tiles, exact_predictor.

The components of MONAI's workflows are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from medseg.inference.exact.exact_predictor import ExactPredictor

if TYPE_CHECKING:
    from medseg.inference.exact.exact_transforms import ExactInferer, ExactPreprocessd, ExactRestored

__all__ = ["ExactInferer", "ExactPredictor", "ExactPreprocessd", "ExactRestored"]

_HOMES = dict.fromkeys(("ExactInferer", "ExactPreprocessd", "ExactRestored"), "exact_transforms")


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
