"""Draw arrays: planes of a scan, calibration, transforms, and the slice viewer. Matplotlib is imported on first use."""

from medseg.figures.notebook import niivue_widget, segmentation_html
from medseg.figures.reliability import CalibrationBins, calibration_bins, reliability_diagram
from medseg.figures.three_planes import three_planes, three_planes_png
from medseg.figures.transform_figures import deformation_grid, weight_map
from medseg.figures.viewer.segmentation_viewer import SegmentationViewer, segmentation_viewer

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
