"""Pictures of arrays. Matplotlib is imported when the first one is drawn."""

from medseg.figures.calibration import CalibrationBins, calibration_bins
from medseg.figures.deformation_grid import deformation_grid
from medseg.figures.niivue import niivue_widget
from medseg.figures.notebook import segmentation_html
from medseg.figures.reliability import reliability_diagram
from medseg.figures.three_planes import three_planes, three_planes_png
from medseg.figures.viewer.segmentation_viewer import SegmentationViewer, segmentation_viewer
from medseg.figures.weight_map import weight_map

__all__ = [
    "CalibrationBins",
    "SegmentationViewer",
    "calibration_bins",
    "deformation_grid",
    "niivue_widget",
    "reliability_diagram",
    "segmentation_html",
    "segmentation_viewer",
    "three_planes",
    "three_planes_png",
    "weight_map",
]
