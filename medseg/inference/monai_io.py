"""Read, write and check scans in MONAI's workflows exactly as `medseg predict` does."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import ImageReader, ImageWriter, MetaTensor
from monai.utils import MetaKeys, ensure_tuple

from medseg.errors import VolumeError
from medseg.inference.cases import find_cases
from medseg.inference.plausibility import (
    FINGERPRINT,
    field_of_view_problem,
    measure,
    read_fingerprint,
    suspicions,
)
from medseg.inference.scan import Scan, on_one_grid
from medseg.inference.scan_size import check_growth, check_memory
from medseg.inference.segmentation import Segmentation, provenance_path, provenance_record
from medseg.inference.slice_predictor import Stack, plane_plan
from medseg.plan import Plan
from medseg.volumes import (
    Grid,
    Volume,
    check_input,
    read_channel_grid,
    read_channels,
    read_header,
    read_volume,
    replacing,
    write_volume,
)
from medseg.volumes.files import file_sha256

logger = logging.getLogger(__name__)


class ScanReader(ImageReader):
    """A `reader` for `LoadImaged` with the formats and the checks of `medseg predict`.

    There is one file per channel, or one file with all channels.

    MONAI's own readers need another package for NRRD and MetaImage, and accept voxels that are not finite.

    Args:
        plan: refuse scans that its spacing would turn into a huge image (see `check_growth`); None checks nothing.
    """

    def __init__(self, plan: Plan | None = None) -> None:
        super().__init__()
        self.plan = plan

    def verify_suffix(self, filename: Any) -> bool:
        """Accept every file; a format that medseg cannot read is refused by name later."""
        return True

    def read(self, data: Any, **kwargs: Any) -> list[Path]:
        """Return the files without reading them, because MONAI would answer an error here with its other readers."""
        return [Path(file) for file in ensure_tuple(data)]

    def get_data(self, img: Sequence[Path]) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the channels (C, *native grid) in float32, and their metadata.

        Raises:
            VolumeError: a file cannot be read, or holds voxels that are not finite.
            GeometryError: the channels lie on different grids, or the scan's voxels are far too large.
            MemoryLimitError: the scan on the model grid does not fit into memory.
        """
        volumes = read_channels(img[0]) if len(img) == 1 else on_one_grid([read_volume(path) for path in img])
        if self.plan is not None:
            _check_growth(Scan(tuple(volumes)), self.plan)
        image = Scan(tuple(volumes)).to_tensor()
        return image.numpy(), {**image.meta, "affine": image.affine.numpy(), "original_channel_dim": 0}


def _check_growth(scan: Scan, plan: Plan) -> None:
    """Refuse a scan as `medseg predict` does, if its grid is one that the plan resamples as a whole."""
    if plan.regions is not None:
        return  # `RegionInferer` resamples boxes only
    if plan.slice_axis is not None:
        scan, plan = next(iter(Stack(scan, plan.slice_axis))), plane_plan(plan)
    if scan.reference.grid.spatial_dims == plan.spatial_dims:  # another number of axes is refused later
        check_growth(scan.name, scan.reference.grid, plan)
        check_memory(scan.name, scan.reference.grid, plan)


class NativeWriter(ImageWriter):
    """A `writer` for `SaveImaged` that keeps the scan's grid: shape, affine, sform, qform, their codes, and units.

    MONAI's own writer sets both codes to 1, writes no units, and drops a last axis of one voxel. This one writes
    atomically, in the smallest type that holds the labels.

    Args:
        **kwargs: accepted because `SaveImaged` gives every writer its output_dtype and scale; not used.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()

    def set_data_array(self, data_array: Any, channel_dim: int | None = 0, **kwargs: Any) -> None:
        """Take the first channel of an array (C, *native grid), or all of (*native grid) if channel_dim is None."""
        array = data_array.numpy(force=True) if isinstance(data_array, torch.Tensor) else np.asarray(data_array)
        self.data_obj = array if channel_dim is None else np.take(array, 0, axis=channel_dim)

    def set_metadata(self, meta_dict: Mapping[str, Any] | None, **kwargs: Any) -> None:
        """Take the affine and, if the scan is a NIfTI file, its header."""
        meta = meta_dict or {}
        known, affine = np.asarray(meta.get(MetaKeys.AFFINE, np.eye(4)), dtype=np.float64), np.eye(4)
        if known.shape == (3, 3):
            affine[:2, :2], affine[:2, 3] = known[:2, :2], known[:2, 2]
        else:
            affine = known
        array, scan = self.data_obj, Path(str(meta.get("filename_or_obj", "")))
        # Read the header from the file, because MONAI's Spacing has changed the voxel sizes in the metadata.
        header = read_header(scan) if scan.is_file() else None
        self.like = Volume(array, Grid(array.shape, affine), header=header)

    def write(self, filename: Any, verbose: bool = True, **kwargs: Any) -> None:
        """Write the file in the format of its suffix."""
        super().write(filename, verbose=verbose)
        write_volume(Path(filename), self.like.array, self.like)


def scan_files(inputs: Iterable[str | Path], num_channels: int = 1) -> list[dict[str, Any]]:
    """Return one `{"image": files, "case": name}` per case that the inputs name; see `find_cases`.

    Raises:
        VolumeError: as `find_cases`, or a case lacks channels, or an input does not exist, is empty, or cannot be read.
    """
    cases = find_cases(inputs, num_channels)
    for case in cases:
        if case.problem:
            raise VolumeError(case.problem)
        for path in case.paths:
            check_input(path)
        found = read_channel_grid(case.paths[0])[1] if len(case.paths) == 1 else num_channels
        if found != num_channels:
            raise VolumeError(f"{case.paths[0]}: holds {found} channels where {num_channels} are expected; convert it")
    return [{"image": [str(path) for path in case.paths], "case": case.name} for case in cases]


class PlausibilityHandler:
    """Write a record beside every label map of MONAI's runner, which says if the result is suspicious and why.

    The checks are those of `medseg predict`, from the fingerprint in the bundle's `models/`. A field of view that
    `medseg predict` refuses makes the result suspicious here, because a handler sees the result only.

    Args:
        plan: labels and name.
        bundle_root: folder of the bundle. Without a fingerprint in it, the status is always "done".
        key: of the label map in the engine's output, after `SaveImaged`.
    """

    def __init__(self, plan: Plan, bundle_root: str | Path = ".", key: str = "pred") -> None:
        self.plan = plan
        self.key = key
        file = Path(bundle_root) / FINGERPRINT
        self.fingerprint = read_fingerprint(file) if file.is_file() else None
        # model.pt, and the further networks of an ensemble
        self.weights_sha256 = [file_sha256(file) for file in sorted(Path(bundle_root).glob("models/model*.pt"))]

    def attach(self, engine: Engine) -> None:
        """Attach the handler to a MONAI evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the records of one batch, and log what is suspicious."""
        for item in engine.state.output:
            label_map = item[self.key]
            target = label_map.meta.get(MetaKeys.SAVED_TO)
            if target:
                self._write(Path(str(target)), label_map)

    def _write(self, target: Path, label_map: MetaTensor) -> None:
        array, affine = label_map[0].numpy(force=True), label_map.affine.numpy(force=True)
        full = np.eye(4)
        axes = [*range(len(affine) - 1), 3] if len(affine) < 4 else [0, 1, 2, 3]
        full[np.ix_(axes, axes)] = affine
        grid, name = Grid(array.shape, full), str(label_map.meta.get("filename_or_obj", target))
        found: list[str] = []
        if self.fingerprint is not None:
            problem = field_of_view_problem(grid, self.fingerprint)
            found = [*([problem] if problem else [])]
            found += suspicions(measure(array, self.plan.structures, grid), self.fingerprint)
        segmentation = Segmentation(array, dict(self.plan.labels), Volume(array, grid, Path(name)))
        record = provenance_record(self.plan, "", self.weights_sha256, {}, Scan((segmentation.scan,)), {}, [])
        record |= {"output": target.name, "volumes_ml": segmentation.volumes_ml()}
        record |= {"status": "suspicious" if found else "done", "suspicions": found}
        with replacing(provenance_path(target)) as temporary:
            temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        for suspicion in found:
            logger.warning(f"{name}: suspicious: {suspicion}")
