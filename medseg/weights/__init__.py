"""Weights: reading and writing files, loading the published layouts."""

from medseg.weights.adapt import change_input_channels
from medseg.weights.digest import sha256
from medseg.weights.layouts import LAYOUTS, Layout, detect
from medseg.weights.load import LoadReport, load_into
from medseg.weights.read import read
from medseg.weights.write import write

__all__ = [
    "LAYOUTS",
    "Layout",
    "LoadReport",
    "change_input_channels",
    "detect",
    "load_into",
    "read",
    "sha256",
    "write",
]
