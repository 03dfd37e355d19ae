"""Images on disk and in memory: grids, volumes, reading and writing. Needs neither torch nor MONAI."""

from medseg.volumes.atomic import replacing
from medseg.volumes.formats import SUFFIXES, format_of, stem_of, suffix_of
from medseg.volumes.grid import Grid
from medseg.volumes.memory import as_volume
from medseg.volumes.read import check_finite, read_grid, read_label_map, read_volume
from medseg.volumes.volume import Volume
from medseg.volumes.write import write_volume

__all__ = [
    "SUFFIXES",
    "Grid",
    "Volume",
    "as_volume",
    "check_finite",
    "format_of",
    "read_grid",
    "read_label_map",
    "read_volume",
    "replacing",
    "stem_of",
    "suffix_of",
    "write_volume",
]
