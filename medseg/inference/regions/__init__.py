"""Regions of interest: find them in a whole scan and apply a network that was trained on crops."""

from medseg.inference.regions.atlas import Location, Template, locate, read_template, write_template
from medseg.inference.regions.region_inferer import Box, Region, RegionInferer, RegionLogits, regions_of, template_of
from medseg.inference.regions.region_predictor import RegionPredictor

__all__ = [
    "Box",
    "Location",
    "Region",
    "RegionInferer",
    "RegionLogits",
    "RegionPredictor",
    "Template",
    "locate",
    "read_template",
    "regions_of",
    "template_of",
    "write_template",
]
