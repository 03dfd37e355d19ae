"""Images on disk and in memory: grids, volumes, reading and writing. Needs neither torch nor MONAI."""

import medseg.volumes.deferred_pydicom  # noqa: F401 (before anything imports nibabel)
from medseg.volumes.files import check_out_folder, remove_leftovers, replacing, staged
from medseg.volumes.formats import (
    DICOM_SEG_SUFFIX,
    SUFFIXES,
    WRITTEN_SUFFIX,
    files_of,
    format_of,
    image_sha256,
    is_zarr,
    stem_of,
    suffix_of,
    unchanged,
)
from medseg.volumes.grid import Grid, reorder
from medseg.volumes.in_memory import as_channels, as_volume
from medseg.volumes.io import (
    check_finite,
    check_grid_fits,
    check_input,
    holds_dicom,
    is_dicom,
    read_channel_grid,
    read_channels,
    read_colored_label_map,
    read_grid,
    read_header,
    read_label_map,
    read_volume,
    write_volume,
)
from medseg.volumes.volume import Volume

__all__ = [
    "DICOM_SEG_SUFFIX",
    "SUFFIXES",
    "WRITTEN_SUFFIX",
    "Grid",
    "Volume",
    "as_channels",
    "as_volume",
    "check_finite",
    "check_grid_fits",
    "check_input",
    "check_out_folder",
    "files_of",
    "format_of",
    "holds_dicom",
    "image_sha256",
    "is_dicom",
    "is_zarr",
    "read_channel_grid",
    "read_channels",
    "read_colored_label_map",
    "read_grid",
    "read_header",
    "read_label_map",
    "read_volume",
    "remove_leftovers",
    "reorder",
    "replacing",
    "staged",
    "stem_of",
    "suffix_of",
    "unchanged",
    "write_volume",
]
