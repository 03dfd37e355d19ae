"""Read and write weights, and load published layouts into medseg's networks."""

from medseg.weights.layouts import LAYOUTS, Layout, detect
from medseg.weights.load import LoadReport, change_input_channels, load_into
from medseg.weights.state_dict import read, read_checkpoint, sha256, write

__all__ = [
    "LAYOUTS",
    "Layout",
    "LoadReport",
    "change_input_channels",
    "detect",
    "load_into",
    "read",
    "read_checkpoint",
    "sha256",
    "write",
]
