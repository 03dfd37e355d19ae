"""A segmentation on the scan's own grid, its files, and the record of how it was made."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from medseg.errors import GeometryError, OptionError, VolumeError
from medseg.inference.confidence import VolumeCounts
from medseg.inference.scan import Scan
from medseg.plan import Plan
from medseg.versions import software_versions
from medseg.volumes import Volume, is_zarr, replacing, staged, write_volume
from medseg.volumes.files import file_sha256, read_json
from medseg.volumes.ngff import Multiscale, label_attributes
from medseg.volumes.result_files import is_dicom_seg, map_names, map_path, provenance_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOTICE = "Research use only. Not a medical device; not for diagnosis or treatment."


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Labels on the scan's own grid.

    Args:
        array: integers, in the axis order of the scan's file.
        labels: value of each label by name, background included.
        scan: first channel of the scan, whose grid and header a saved file gets.
        provenance: record of how the segmentation was made, which is written beside every saved file.
        entropy: (i, j, k) uint8 from 0 (sure) to 255 (undecided); None unless it was requested.
        probabilities: half-precision map by label; None unless requested.
        intervals_ml: smallest and largest likely volume by label: the 90 % intervals of a calibrated bundle, else what
            `Uncertainty` states; None without a calibration unless requested.
        regions: label values of each structure by name, if structures are unions of labels.
        predicted_dice: Dice that the probabilities expect by label, for a calibrated bundle; None for an absent label.
        counts: voxels by calibrated probability, from which intervals and Dice follow.

    Raises:
        GeometryError: the array does not have the shape of the scan.
    """

    array: np.ndarray
    labels: Mapping[str, int]
    scan: Volume
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)
    entropy: np.ndarray | None = field(default=None, repr=False)
    probabilities: Mapping[str, np.ndarray] | None = field(default=None, repr=False)
    intervals_ml: Mapping[str, Sequence[float]] | None = None
    regions: Mapping[str, Sequence[int]] = field(default_factory=dict)
    predicted_dice: Mapping[str, float | None] | None = None
    counts: VolumeCounts | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if tuple(self.array.shape) != self.scan.grid.shape:
            raise GeometryError(
                f"{self.scan.name}: the segmentation is not on the scan's grid; found shape {self.array.shape}, "
                f"expected {self.scan.grid.shape}"
            )

    def __repr__(self) -> str:
        size, volumes = "×".join(str(n) for n in self.array.shape), self.volumes_ml()
        if self.array.ndim == 3:
            found = ", ".join(f"{name} {volume:.2f} ml" for name, volume in volumes.items())
            return f"Segmentation({self.scan.name}, {size} voxels: {found})"
        # An image without a thickness has no volume.
        shares = {name: np.isin(self.array, values).mean() for name, values in self._structures.items()}
        found = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
        return f"Segmentation({self.scan.name}, {size} pixels: {found})"

    @property
    def affine(self) -> np.ndarray:
        """Affine of the scan: voxel index to mm (RAS+)."""
        return self.scan.grid.affine

    @property
    def suspicions(self) -> list[str]:
        """Reasons why the segmentation is unlike those of the training data, one line each."""
        return list(self.provenance.get("suspicions", ()))

    @property
    def status(self) -> Literal["done", "suspicious"]:
        """`suspicious` if there are suspicions, else `done`."""
        return "suspicious" if self.suspicions else "done"

    def with_suspicions(self, suspicions: Sequence[str]) -> Segmentation:
        """Return the segmentation with the result of its checks in the record."""
        status = "suspicious" if suspicions else "done"
        return replace(self, provenance={**self.provenance, "status": status, "suspicions": list(suspicions)})

    def volumes_ml(self) -> dict[str, float]:
        """Return the volume of each label except the background, or of each region, in millilitres.

        The volume of an absent one is 0.
        """
        counts = np.bincount(self.array.ravel(), minlength=max(self.labels.values()) + 1)
        voxel_mm3 = self.scan.grid.voxel_volume_mm3
        # dividing last gives 2.042 for 2042 voxels of 1 mm³, and not 2.0420000000000003
        return {name: float(counts[list(values)].sum() * voxel_mm3 / 1000) for name, values in self._structures.items()}

    @property
    def _structures(self) -> dict[str, Sequence[int]]:
        """Label values of each structure: the regions, or every label but the background."""
        return dict(self.regions) or {name: [value] for name, value in self.labels.items() if value != 0}

    def save(self, path: str | Path) -> Path:
        """Write the segmentation with the scan's geometry, and a `.json` beside it that records how it was made.

        An entropy map is written to `<name>_entropy` and probabilities to `<name>_probability_<label>`.

        Args:
            path: its suffix chooses the format; `.dcm` is a DICOM Segmentation, for scans that are DICOM series.

        Returns:
            The path.

        Raises:
            VolumeError: a file cannot be written, or a `.json` of another program is in the way. No file is changed
                then.
        """
        path = Path(path)
        save_segmentation(self, path)
        return path

    def show(self, path: str | Path | None = None) -> Figure | None:
        """Draw three planes through the middle of the segmentation.

        Args:
            path: file to save the figure to; None returns the figure.
        """
        from medseg.figures import three_planes

        return three_planes(self.scan.array, self.array, self.affine, labels=self.labels, path=path)

    def _repr_png_(self) -> bytes | None:
        """Return the picture that a notebook shows; None if matplotlib is not installed."""
        from medseg.figures import three_planes_png

        try:
            return three_planes_png(self.scan.array, self.array, self.affine, labels=self.labels)
        except ImportError:
            return None

    def view(self, backend: Literal["medseg", "niivue"] = "medseg") -> Any:
        """Return a viewer of the slices for a notebook's cell. It works offline.

        Args:
            backend: "medseg" is the report's viewer, whose `save(path)` writes a page of its own. "niivue" is an
                ipyniivue widget that shows the labels over the scan, also in 3D (`pip install 'medseg[niivue]'`).

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
        """Return what a notebook shows: three planes, the volumes, and a viewer of the slices."""
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
        """True if the scan's file format states its position in a patient."""
        return self.scan.format not in ("png", "tiff")


def has_our_record(path: Path) -> bool:
    """Return True if medseg's record is beside the segmentation at `path`.

    Raises:
        VolumeError: another program wrote the `.json` (a BIDS sidecar, for example), so it must not be replaced.
    """
    beside = provenance_path(path)
    if not beside.is_file():
        return False
    try:
        found = read_json(beside, VolumeError)
    except VolumeError:
        found = None
    if not (isinstance(found, dict) and found.keys() >= {"notice", "plan_sha256"}):
        raise VolumeError(f"{beside}: exists and was not written by medseg; choose another output folder")
    return True


def was_edited(path: Path) -> bool:
    """Return True if the segmentation at `path` is not the one that its record describes, e.g. corrected by hand."""
    try:
        record = read_json(provenance_path(path), VolumeError)
        return record["output"] == path.name and file_sha256(path) != record["output_sha256"]
    except (OSError, KeyError):
        return False  # no file, or a record of an earlier version


def save_segmentation(segmentation: Segmentation, path: Path) -> dict[str, Any]:
    """Write all files of a segmentation. They appear together, when each of them is complete.

    Maps of an earlier segmentation at the same path are removed if they are not replaced.

    Args:
        segmentation: what to write.
        path: file of the labels; its suffix chooses the format.

    Returns:
        The record beside them.

    Raises:
        VolumeError: a file cannot be written, or a `.json` of another program is in the way. No file is changed then.
    """
    earlier_maps = _maps_beside(path) if has_our_record(path) else []
    maps = map_names(segmentation.entropy is not None, segmentation.probabilities or ())
    record = {
        **segmentation.provenance, "output": path.name, "maps": maps, "volumes_ml": segmentation.volumes_ml(),
    }  # fmt: skip
    if segmentation.intervals_ml is not None:
        record["volume_intervals_ml"] = dict(segmentation.intervals_ml)
    if segmentation.predicted_dice is not None:
        record["predicted_dice"] = dict(segmentation.predicted_dice)
    outdated = [map_path(path, name) for name in earlier_maps if name not in maps]
    with staged(path, outdated) as target:
        record["warnings"] = [*record.get("warnings", ()), *_write_labels(segmentation, target)]
        if target.is_file():  # a Zarr store is a folder
            record["output_sha256"] = file_sha256(target)
        if segmentation.entropy is not None:
            write_volume(map_path(target, "entropy"), segmentation.entropy, like=segmentation.scan)
        for label, probability in (segmentation.probabilities or {}).items():
            file = map_path(target, f"probability_{label}")
            write_volume(file, probability.astype(np.float32), like=segmentation.scan)
        write_record(record, provenance_path(target))
    return record


def write_record(record: Mapping[str, Any], path: Path) -> None:
    """Write the record beside a segmentation, atomically."""
    with replacing(path) as temporary:
        # A file name that is not Unicode cannot be encoded in UTF-8; JSON has an equivalent escape for it.
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def _maps_beside(path: Path) -> list[str]:
    """Return the names of the maps that the record of the segmentation at `path` lists."""
    record = read_json(provenance_path(path), VolumeError)
    names = record.get("maps") if record.get("output") == path.name else None
    return [str(name) for name in names] if isinstance(names, list) else []


def _write_labels(segmentation: Segmentation, path: Path) -> list[str]:
    """Write the labels and return warnings about the file."""
    if is_zarr(path):
        write_label_image(path, segmentation.array, segmentation.scan, segmentation.labels)
        return []
    if not is_dicom_seg(path):
        write_volume(path, segmentation.array, like=segmentation.scan)
        return []
    from medseg.volumes.dicom.seg import SegmentationAlgorithm, write_dicom_seg

    record = segmentation.provenance
    algorithm = SegmentationAlgorithm(
        name=str(record.get("bundle") or record.get("plan") or "medseg"),
        version=str(record.get("versions", {}).get("medseg", "unknown")),
        serial_number="+".join(record.get("weights_sha256", ())) or "unknown",
    )
    return write_dicom_seg(path, segmentation.array, segmentation.scan, segmentation.labels, algorithm)


def write_label_image(path: Path, array: np.ndarray, like: Volume, labels: Mapping[str, int]) -> None:
    """Write labels as an OME-Zarr label image with the levels of the image that they belong to.

    Args:
        path: folder to create.
        array: labels in the axis order of `like`.
        like: the scan.
        labels: value of each label by name.
    """
    from medseg.volumes import zarr_images

    layout = zarr_images.layout_like(path, like)
    # `path` lies in a hidden folder beside the final one.
    zarr_images.write(path, array, like, label_image_attributes(layout.multiscale, labels, like, path.parent))


def label_image_attributes(
    multiscale: Multiscale, labels: Mapping[str, int], scan: Volume, target: Path
) -> dict[str, Any]:
    """Return the attributes of a label image: names and colours of its labels, and the image that it belongs to.

    Args:
        multiscale: axes and levels.
        labels: value of each label by name.
        scan: the labelled image.
        target: folder of the label image.
    """
    from medseg.figures.canvas import label_palette, rgb

    ordered = dict(sorted(labels.items(), key=lambda item: item[1]))
    colors = [rgb(color) for color in label_palette(len([value for value in ordered.values() if value]))]
    is_image = scan.format == "zarr" and scan.path is not None and scan.header["multiscale"].version
    source = Path(os.path.relpath(scan.path, target)).as_posix() if is_image and scan.path is not None else ""
    return label_attributes(multiscale, "labels", ordered, colors, source)


def provenance_record(
    plan: Plan,
    bundle: str,
    weights_sha256: Sequence[str],
    settings: Mapping[str, Any],
    scan: Scan,
    seconds: Mapping[str, float],
    warnings: Sequence[str],
) -> dict[str, Any]:
    """Return the record of how one segmentation was made, as plain data.

    Args:
        plan: the plan that was used.
        bundle: name of the bundle; "" takes the plan's.
        weights_sha256: digest of each weights file, several for an ensemble.
        settings: of the predictor.
        scan: what was segmented.
        seconds: time of each step.
        warnings: one line each.
    """
    return {
        "schema_version": 1,
        "notice": NOTICE,
        "bundle": bundle or plan.name,
        "weights_sha256": list(weights_sha256),
        "plan": plan.name,
        "plan_sha256": plan.digest,
        "input": [volume.name for volume in scan.images],
        "input_sha256": list(scan.input_sha256),
        "labels": dict(plan.labels),
        **({"regions": json.loads(json.dumps(dict(plan.label_regions)))} if plan.label_regions else {}),
        **settings,
        "versions": software_versions(),
        "machine": platform.machine(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "warnings": list(warnings),
    }
