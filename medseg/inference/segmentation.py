"""The result of a prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medseg.errors import GeometryError, OptionError
from medseg.inference.saving import map_names as map_names  # kept here for those who import it
from medseg.inference.saving import save_segmentation
from medseg.volumes import Volume


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Labels on the scan's own grid.

    Args:
        array: integers in the axis order of the file the scan came from.
        labels: value of each label by name, background included.
        scan: the scan's first channel; its grid and header are what a saved file gets.
        provenance: how the segmentation was made, written beside every saved file.
        entropy: (i, j, k) uint8, 0 sure to 255 undecided; None unless asked for.
        probabilities: half-precision map by label; None unless asked for.
        intervals_ml: smallest and largest likely volume by label; None unless asked for.
    """

    array: np.ndarray
    labels: Mapping[str, int]
    scan: Volume
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)
    entropy: np.ndarray | None = field(default=None, repr=False)
    probabilities: Mapping[str, np.ndarray] | None = field(default=None, repr=False)
    intervals_ml: Mapping[str, Sequence[float]] | None = None

    def __post_init__(self) -> None:
        if tuple(self.array.shape) != self.scan.grid.shape:
            raise GeometryError(
                f"{self.scan.name}: segmentation of shape {self.array.shape} is not on the scan's grid "
                f"{self.scan.grid.shape}"
            )

    def __repr__(self) -> str:
        size, volumes = "×".join(str(n) for n in self.array.shape), self.volumes_ml()
        if self.array.ndim == 3:
            found = ", ".join(f"{name} {volume:.2f} ml" for name, volume in volumes.items())
            return f"Segmentation({self.scan.name}, {size} voxels: {found})"
        shares = {name: np.mean(self.array == self.labels[name]) for name in volumes}  # a picture has no thickness
        found = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
        return f"Segmentation({self.scan.name}, {size} pixels: {found})"

    @property
    def affine(self) -> np.ndarray:
        """Voxel index to mm (RAS+), the scan's own."""
        return self.scan.grid.affine

    def volumes_ml(self) -> dict[str, float]:
        """Volume of each label but the background, in millilitres; 0 where a label is absent."""
        counts = np.bincount(self.array.ravel(), minlength=max(self.labels.values()) + 1)
        voxel_ml = self.scan.grid.voxel_volume_mm3 / 1000
        return {name: float(counts[value] * voxel_ml) for name, value in self.labels.items() if value != 0}

    def save(self, path: str | Path) -> Path:
        """Write the segmentation with the scan's geometry, and how it was made in a `.json` beside it.

        An entropy map goes to `<name>_entropy` and probabilities to `<name>_probability_<label>` beside it.

        Args:
            path: the suffix chooses the format; `.dcm` is a DICOM Segmentation, where the scan is a DICOM series.

        Raises:
            VolumeError: a file cannot be written, or the `.json` is there and not medseg's; nothing is changed then.
        """
        path = Path(path)
        save_segmentation(self, path)
        return path

    def show(self, path: str | Path | None = None) -> Any:
        """Draw three planes through the middle of the segmentation; return the figure, or save it to `path`."""
        from medseg.figures import three_planes

        return three_planes(self.scan.array, self.array, self.affine, labels=self.labels, path=path)

    def _repr_png_(self) -> bytes | None:
        """The picture a notebook shows; None where matplotlib is not installed."""
        from medseg.figures import three_planes_png

        try:
            return three_planes_png(self.scan.array, self.array, self.affine, labels=self.labels)
        except ImportError:
            return None

    def view(self, backend: Literal["medseg", "niivue"] = "medseg") -> Any:
        """A viewer to leaf through the slices, for a notebook's cell; it asks no network.

        Args:
            backend: "medseg" is the report's viewer, which has `save(path)` for a page of its own; "niivue" is an
                ipyniivue widget with the scan and the labels over it, in 3D too (`pip install 'medseg[niivue]'`).

        Raises:
            ImportError: ipyniivue is not installed.
            OptionError: there is no such backend.
        """
        from medseg.figures import niivue_widget, segmentation_viewer

        if backend == "niivue":
            return niivue_widget(self.scan.array, self.array, self.affine, self.labels)
        if backend != "medseg":
            raise OptionError(f"backend must be medseg or niivue, found {backend}")
        name = Path(self.scan.name).name
        return segmentation_viewer(self.scan.array, self.array, self.affine, self.labels, name, self._has_patient)

    def _repr_html_(self) -> str:
        """What a notebook shows: three planes, the volumes, and a viewer of the slices."""
        from medseg.figures import segmentation_html

        return segmentation_html(
            self.scan.array,
            self.array,
            self.affine,
            self.labels,
            self.volumes_ml(),
            name=Path(self.scan.name).name,
            has_patient=self._has_patient,
        )

    @property
    def _has_patient(self) -> bool:
        """Whether the scan's file says where it lies in a patient."""
        return self.scan.format not in ("png", "tiff")
