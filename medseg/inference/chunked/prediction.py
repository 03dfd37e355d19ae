"""Segment a Zarr image strip by strip into a label image, and continue where a killed run has stopped."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from medseg.errors import MedsegError, MemoryLimitError, VolumeError
from medseg.inference.chunked.intensities import fit_scalings
from medseg.inference.chunked.model_image import ModelImage, RollingImage
from medseg.inference.chunked.strips import LabelLayers, Strip, cut_strip, strip_boxes, strip_bytes
from medseg.inference.memory import MARGIN, candidates, keep_freed_memory
from medseg.inference.plausibility import check_field_of_view
from medseg.inference.scan import Scan
from medseg.inference.scan_size import check_growth, warn_of_small_voxels
from medseg.inference.segmentation import label_image_attributes, provenance_path, provenance_record, write_record
from medseg.inference.tiling.blending import importance_map
from medseg.inference.tiling.merging import check_finite_values, merge_tiles
from medseg.inference.tiling.streaming import NativeAssembly, Window
from medseg.machine import available_bytes, resident_bytes
from medseg.transforms.restore.grid_map import map_grids
from medseg.transforms.restore.label_decision import LabelRestorer
from medseg.transforms.restore.resample import SeparableResampler
from medseg.volumes.files import locked, read_json, replacing, swap_in, write_error
from medseg.volumes.formats import image_sha256
from medseg.volumes.zarr_images import PyramidWriter, ZarrImage, layout_like

if TYPE_CHECKING:
    from medseg.inference.predictor import Predictor

Box = tuple[slice, ...]
# Without a memory limit, strips are cut so that this share of the free memory suffices.
FREE_SHARE = 0.7


@dataclass
class Progress:
    """Strips and layers of chunks that are finished, kept in a file beside the unfinished store.

    Args:
        file: the JSON file.
        identity: input, weights and settings; the progress of another identity is discarded.
        strips: number of strips; 0 before they are chosen.
        done: numbers of the finished layers of each strip.
    """

    file: Path
    identity: dict[str, Any]
    strips: int = 0
    done: list[list[int]] = field(default_factory=list)

    def load(self) -> bool:
        """Take over the progress of an earlier run of the same identity; return False if there is none."""
        try:
            found = read_json(self.file, VolumeError)
        except VolumeError:
            return False
        if not isinstance(found, dict) or found.get("identity") != self.identity:
            return False
        self.strips, self.done = int(found["strips"]), [list(map(int, layers)) for layers in found["done"]]
        return True

    def save(self) -> None:
        """Write the file atomically."""
        values = {"identity": self.identity, "strips": self.strips, "done": self.done}
        with replacing(self.file) as temporary:
            temporary.write_text(json.dumps(values), encoding="utf-8")

    @property
    def num_layers(self) -> int:
        """Number of finished layers."""
        return sum(map(len, self.done))


class ChunkedPrediction:
    """Prediction of one Zarr image, whose voxels are never in memory as a whole.

    Args:
        predictor: the loaded model.
        paths: stores of the channels, or one store with all channels.
        target: folder of the label image.

    Raises:
        VolumeError, GeometryError: as `medseg.inference.load_scan`, and for chunks that are missing.
        ScanError: the field of view is too large for a network that was trained on crops.
    """

    def __init__(self, predictor: Predictor, paths: Sequence[Path], target: Path) -> None:
        self.predictor = predictor
        self.target = target
        self.images = [ZarrImage(path) for path in paths]
        plan, first = predictor.plan, self.images[0]
        found = sum(image.num_channels for image in self.images)
        if found != plan.in_channels:
            names = ", ".join(channel.get("name", "?") for channel in plan.channels)
            raise VolumeError(
                f"{first.path}: {plan.name} takes {plan.in_channels} channel(s) ({names}), found {found}; give a store "
                "with these channels, or one store per channel in that order"
            )
        for image in self.images:
            if len(image.shape) != plan.spatial_dims:
                raise VolumeError(f"{image.path}: {plan.name} takes {plan.spatial_dims}D images, found {image.shape}")
            difference = image.grid.difference(first.grid, first.path)
            if difference:
                raise VolumeError(f"{image.path}: {difference}; the channels of a case must share one grid")
        self.notes = [note for image in self.images for note in (*image.notes, *image.check_chunks())]
        self.scan = Scan(tuple(image.placeholder() for image in self.images), notes=tuple(self.notes))
        if predictor.fingerprint is not None:
            if not predictor.force:
                check_field_of_view(self.scan.name, first.grid, predictor.fingerprint)
            self.notes.append(f"{first.path}: pieces and positions of the structures were not compared with training")
        check_growth(self.scan.name, first.grid, plan, predictor.force)
        self.layout = layout_like(target, self.scan.reference)
        self.seconds: dict[str, float] = {}

    def run(self) -> dict[str, Any]:
        """Predict what an earlier run has not finished, and return the record beside the label image.

        Raises:
            MemoryLimitError: the memory limit cannot be kept.
            VolumeError: the label image cannot be written; what is finished is kept for the next run.
        """
        folder = self.target.with_name(f".{self.target.name}.unfinished")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder / "lock", f"{self.target}: another run is writing it; wait until it ends"):
                record = self._run(folder)
            shutil.rmtree(folder, ignore_errors=True)
        except MedsegError:
            raise
        except OSError as error:
            raise write_error(self.target, error) from error
        return record

    def _run(self, folder: Path) -> dict[str, Any]:
        with self._timed("read"):
            digests = [image_sha256(image.path) for image in self.images]
        self.scan = replace(self.scan, input_sha256=tuple(digests))
        identity = {**self.predictor.identity, "input_sha256": digests}
        progress = Progress(folder / "progress.json", json.loads(json.dumps(identity)))
        writer = PyramidWriter(folder / "store", self.layout, _numpy_dtype(self.predictor.decision.dtype))
        is_resumed = progress.load()
        with self._timed("preprocess"):
            image = self._model_image()
        strips, window = self._fit(image, writer.chunks, progress.strips)
        if not is_resumed:
            shutil.rmtree(folder / "store", ignore_errors=True)
            writer.create(self._attributes())
            progress.strips, progress.done = len(strips), [[] for _ in strips]
            progress.save()
        else:
            writer.open()
        resumed = progress.num_layers
        with self._timed("predict"):
            self._predict(image, strips, window, writer, progress)
        with self._timed("write"):
            writer.build_levels()
            record = self._record(writer, len(strips), resumed)
            _remove_partial_chunks(folder / "store")
            swap_in(folder / "store", self.target, lambda: write_record(record, provenance_path(self.target)))
        return record

    def _model_image(self) -> ModelImage:
        image = ModelImage(self.images, self.predictor.plan)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            warn_of_small_voxels(self.scan.name, self.scan.reference.grid, self.predictor.plan)
            image.scalings = fit_scalings(image, self.predictor.plan)
        self.notes += [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
        return image

    def _resampler(self, image: ModelImage) -> SeparableResampler:
        """Return the resampler from the model grid to the grid of the store."""
        grid_map = map_grids(image.model.affine, image.model.shape, image.native.affine, image.native.shape)
        assert grid_map is not None  # the axes of OME-Zarr are perpendicular
        return SeparableResampler(grid_map, self.predictor.window.interpolation)

    def _fit(self, image: ModelImage, chunks: Sequence[int], fixed: int) -> tuple[list[Box], Window]:
        """Return the fewest strips, and the fastest window, that keep the memory limit.

        Args:
            image: the network's input.
            chunks: of the label image.
            fixed: number of strips of an earlier run; 0 if it is free.
        """
        predictor, resampler = self.predictor, self._resampler(image)
        if predictor.max_ram is not None:
            keep_freed_memory(False)
        grid = predictor.window.lay_tiles(image.model.shape)
        axis = resampler.native_axes[1]
        network = {size: predictor.workload().network_bytes(size) for size in {predictor.window.batch_size, 1}}
        resident = resident_bytes()
        limit = predictor.max_ram or resident + int(FREE_SHARE * available_bytes())
        head = predictor.backend.head_weight
        num_values = predictor.decision.num_channels if head is None else head.shape[1]
        most = ceil(image.native.shape[axis] / chunks[axis])
        least = None
        for window in candidates(predictor.window):
            window = replace(window, batch_size=1 if window.batch_size not in network else window.batch_size)
            for count in [fixed] if fixed else range(1, most + 1):
                boxes = strip_boxes(image.native.shape, resampler, chunks, count)
                strip = cut_strip(boxes[len(boxes) // 2], grid, resampler)
                held, busy = strip_bytes(
                    strip, image.shape[0], num_values, head is not None, predictor.decision, window, chunks,
                    self.images[0].dtype.itemsize,
                )  # fmt: skip
                forward = network[window.batch_size]
                total = resident + held + (busy + forward if window.is_pipelined else max(busy, forward)) + MARGIN
                if total <= limit:
                    return boxes, window
                least = total if least is None else min(least, total)
        raise MemoryLimitError(
            f"{self.scan.name}: needs at least {(least or 0) / 1e6:,.0f} MB of memory ({resident / 1e6:,.0f} MB for "
            f"the process), the limit is {limit / 1e6:,.0f} MB; raise --max-ram"
        )

    def _predict(
        self, image: ModelImage, boxes: Sequence[Box], window: Window, writer: PyramidWriter, progress: Progress
    ) -> None:
        resampler = self._resampler(image)
        grid = window.lay_tiles(image.model.shape)
        axis = resampler.native_axes[0]
        thickness = writer.chunks[axis]
        pending: list[tuple[int, Strip]] = []
        for number, box in enumerate(boxes):
            remaining = _remaining(box, axis, thickness, progress.done[number])
            if remaining is not None:
                pending.append((number, cut_strip(remaining, grid, resampler)))
        total, done = sum(strip.grid.num_tiles for _, strip in pending), 0

        def count(tiles: int) -> None:
            nonlocal done
            done += tiles
            if self.predictor.on_tiles is not None:
                self.predictor.on_tiles(done, total)

        for number, strip in pending:

            def write(box: Box, labels: np.ndarray, number: int = number) -> None:
                writer.write(box, labels)
                writer.flush(box)
                progress.done[number].append(box[axis].start // thickness)
                progress.save()

            self._predict_strip(image, strip, window, thickness, write, count)

    def _predict_strip(
        self,
        image: ModelImage,
        strip: Strip,
        window: Window,
        thickness: int,
        write: Callable[[Box, np.ndarray], None],
        on_tiles: Callable[[int], None],
    ) -> None:
        predictor, backend = self.predictor, self.predictor.backend
        head_weight, head_bias = (
            None if part is None else part.cpu() for part in (backend.head_weight, backend.head_bias)
        )
        num_values = predictor.decision.num_channels if head_weight is None else head_weight.shape[1]
        grid = strip.grid
        axis = grid.axis_order[0]
        rolling = RollingImage(image, strip.origin, grid.image_shape, axis, grid.tile[axis])
        restorer = LabelRestorer(
            strip.resampler, predictor.decision, head_weight, head_bias, slab_values=window.slab_values
        )
        cpu = torch.device("cpu")
        layers = LabelLayers(strip, thickness, predictor.decision, write)
        assembly = NativeAssembly(restorer, layers, num_values, cpu)
        weight = importance_map(grid.tile, window.blending, cpu)

        def predict(tiles: torch.Tensor) -> torch.Tensor:
            values = predictor.predict_tiles(tiles)
            check_finite_values(values)  # at once, because finished layers are written before the last tile
            return values

        merge_tiles(
            rolling, grid, weight, predict, assembly.add, window.batch_size, on_tiles=on_tiles,
            is_pipelined=window.is_pipelined,
        )  # fmt: skip

    def _attributes(self) -> dict[str, Any]:
        return label_image_attributes(
            self.layout.multiscale, self.predictor.plan.labels, self.scan.reference, self.target
        )

    def _record(self, writer: PyramidWriter, num_strips: int, resumed: int) -> dict[str, Any]:
        plan, voxel_ml = self.predictor.plan, self.scan.reference.grid.voxel_volume_mm3 / 1000
        counts = writer.counts(max(plan.label_values) + 1)
        settings = {
            **self.predictor.identity, "tiles_left_out": 0, "backend_reason": self.predictor.backend_reason,
            "strips": num_strips, "layers_of_earlier_run": resumed,
        }  # fmt: skip
        record = provenance_record(
            plan, self.predictor.bundle, self.predictor.weights_sha256, settings, self.scan, self.seconds, self.notes
        )
        volumes = {name: float(counts[value] * voxel_ml) for name, value in plan.labels.items() if value != 0}
        return {**record, "output": self.target.name, "maps": [], "volumes_ml": volumes}

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = perf_counter()
        yield
        self.seconds[stage] = perf_counter() - started


def _remaining(box: Box, axis: int, thickness: int, done: Sequence[int]) -> Box | None:
    """Return the part of a strip whose layers are not finished; None if all are.

    Layers are finished in the order of the tiles, so the rest is one box.
    """
    last = ceil(box[axis].stop / thickness) - 1
    missing = [number for number in range(box[axis].start // thickness, last + 1) if number not in set(done)]
    if not missing:
        return None
    part = list(box)
    part[axis] = slice(missing[0] * thickness, min((missing[-1] + 1) * thickness, box[axis].stop))
    return tuple(part)


def _remove_partial_chunks(store: Path) -> None:
    """Remove the temporary files that zarr leaves behind when it is killed."""
    for file in store.rglob("*.partial"):
        file.unlink()


def _numpy_dtype(dtype: torch.dtype) -> np.dtype:
    return torch.empty(0, dtype=dtype).numpy().dtype
