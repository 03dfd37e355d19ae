"""Pictures of arrays. Matplotlib is imported when the first one is drawn."""

from medseg.figures.calibration import CalibrationBins, calibration_bins
from medseg.figures.deformation_grid import deformation_grid
from medseg.figures.notebook import segmentation_html
from medseg.figures.reliability import reliability_diagram
from medseg.figures.three_planes import three_planes, three_planes_png
from medseg.figures.weight_map import weight_map

__all__ = [
    "CalibrationBins",
    "calibration_bins",
    "deformation_grid",
    "reliability_diagram",
    "segmentation_html",
    "three_planes",
    "three_planes_png",
    "weight_map",
]
