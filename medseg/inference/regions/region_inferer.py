"""Apply a network that was trained on crops to regions of a whole scan, as a MONAI Inferer.

Each region is a box whose centre a registration finds in the scan. The box is resampled at the network's spacing and
turned as the template lies in the scan, so that the network sees it as the crops it was trained on. The logits come
back on the scan's own voxels, in the smallest window that holds all boxes: a whole head's logits would take hundreds of
megabytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.utils import convert_to_tensor
from torch.nn import functional as F

from medseg.errors import GeometryError, RegionError, ShapeError
from medseg.inference.regions.atlas import Location, Template, locate, read_template, region_center_hint
from medseg.plan import Plan
from medseg.transforms import NormalizeIntensityByModality
from medseg.volumes.files import file_sha256

# Logit of labels where no box has a say, relative to the background: a probability of 1e-13.
ABSENT = -30.0
# A box is centred once more on what was found in it, unless that lies further away than a location can be wrong.
MAX_RECENTERING_MM = 15.0
# Of a box, at least this fraction must lie in the scan's field of view.
MIN_INSIDE = 0.75


@dataclass(frozen=True, eq=False)
class Region:
    """A region of interest of a plan.

    Args:
        name: e.g. `left`.
        center_mm: centre in mm of the template (RAS+).
        size_mm: size of the box in mm of the scan.
        is_mirrored: whether the network sees the box mirrored left to right.
        label_channels: for each output channel of the network, the channel of the result that it goes to.
    """

    name: str
    center_mm: tuple[float, ...]
    size_mm: tuple[float, ...]
    is_mirrored: bool
    label_channels: tuple[int, ...]


def regions_of(plan: Plan) -> tuple[Region, ...]:
    """Return the regions of a plan.

    Raises:
        RegionError: the plan has none.
    """
    if plan.regions is None:
        raise RegionError(f"{plan.source}: the plan has no regions")
    names = plan.label_names
    return tuple(
        Region(
            box["name"],
            tuple(float(c) for c in box["center_mm"]),
            tuple(float(s) for s in box["size_mm"]),
            box["mirrored"],
            tuple(names.index(label) for label in box["labels"]),
        )
        for box in plan.regions["boxes"]
    )


def template_of(plan: Plan, bundle_root: str | Path | None = None) -> Template:
    """Read the template that a plan's regions refer to.

    Args:
        plan: with regions.
        bundle_root: folder of the bundle; by default that of the file the plan was read from.

    Raises:
        RegionError: the plan has no regions, or the template is missing or was altered.
    """
    if plan.regions is None:
        raise RegionError(f"{plan.source}: the plan has no regions")
    root = Path(plan.source).parent.parent if bundle_root is None else Path(bundle_root)
    path = root / plan.regions["template"]
    if not path.is_file():
        raise RegionError(f"{path}: no such template; restore the bundle")
    found, expected = file_sha256(path), plan.regions["template_sha256"]
    if found != expected:
        raise RegionError(f"{path}: altered: sha256 {found[:12]}…, expected {expected[:12]}…; restore the bundle")
    return read_template(path)


@dataclass(frozen=True, eq=False)
class Box:
    """A grid of the network's spacing around one region of a scan.

    Args:
        affine: voxel index to mm of the scan; a mirrored box has a first axis that points to the left.
        shape: in voxels.
    """

    affine: np.ndarray
    shape: tuple[int, ...]

    @classmethod
    def around(cls, center_mm: np.ndarray, region: Region, rotation: np.ndarray, spacing: Sequence[float]) -> Box:
        """Return the box of a region with this centre in the scan."""
        shape = tuple(max(1, round(size / step)) for size, step in zip(region.size_mm, spacing, strict=True))
        mirror = np.diag([-1.0 if region.is_mirrored else 1.0, 1.0, 1.0])
        affine = np.eye(4)
        affine[:3, :3] = rotation @ mirror * np.asarray(spacing)
        affine[:3, 3] = center_mm - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
        return cls(affine, shape)

    def position_mm(self, index: np.ndarray) -> np.ndarray:
        """Return the position of voxel indices (…, 3) in mm."""
        return index @ self.affine[:3, :3].T + self.affine[:3, 3]

    def corners_mm(self) -> np.ndarray:
        """Return the outer corners (8, 3) in mm."""
        return self.position_mm(np.array(list(product(*((-0.5, n - 0.5) for n in self.shape)))))


@dataclass(frozen=True, eq=False)
class RegionLogits:
    """Logits of all regions on voxels of the scan.

    Args:
        logits: (labels, *window); the background is 0, labels are relative to it, and at the border of the window
            there is background only.
        affine: voxel index of the window to mm.
        boxes: box of each region by name, as predicted last.
        location: where the template lies in the scan.
    """

    logits: torch.Tensor
    affine: np.ndarray
    boxes: Mapping[str, Box]
    location: Location


class RegionInferer(Inferer):
    """Find regions in a scan and run another inferer on each of them.

    Args:
        inferer: applied to one box at a time, e.g. `medseg.inference.SlidingWindowInferer`.
        plan: regions, spacing, normalisation and labels.
        bundle_root: folder that holds the template; by default that of the file the plan was read from.
        centers_mm: centre of regions in mm of the scan, by name, for those that are known. If all are, nothing is
            registered, and the boxes lie along the scan's axes.

    Raises:
        RegionError: the plan has no regions, its template cannot be used, or centers_mm names an unknown region.
    """

    def __init__(
        self,
        inferer: Inferer,
        plan: Plan,
        bundle_root: str | Path | None = None,
        centers_mm: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        self.inferer = inferer
        self.plan = plan
        self.regions = regions_of(plan)
        self.template = template_of(plan, bundle_root)
        self.centers_mm = {name: np.asarray(c, dtype=np.float64) for name, c in (centers_mm or {}).items()}
        self.normalize = NormalizeIntensityByModality(plan.normalization)
        known = [region.name for region in self.regions]
        for name in self.centers_mm:
            if name not in known:
                raise RegionError(f"there is no region {name!r} in {plan.name}; its regions are {', '.join(known)}")

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Return the logits (B, labels, *window) of scans (B, C, *grid), each with the affine of its window.

        The window is the part of the scan's grid that holds all boxes. Windows of different sizes are filled up with
        background.

        Args:
            inputs: scans as they were measured, a MetaTensor that knows its affine.
            network: (b, C, *tile) to (b, K, *tile).
            args: passed on to the network.
            kwargs: passed on to the network.

        Raises:
            RegionError: a region is not found.
            GeometryError: the scans do not know their affine.
        """
        if not isinstance(inputs, MetaTensor):
            raise GeometryError("RegionInferer needs scans that know their affine (a MetaTensor), found a plain tensor")
        affines = np.broadcast_to(inputs.affine.numpy(force=True), (len(inputs), 4, 4))
        names = np.broadcast_to(np.asarray(inputs.meta.get("filename_or_obj", "scan"), dtype=object), (len(inputs),))
        results = [
            self.predict(image.as_tensor(), affine, network, *args, name=str(name), **kwargs)
            for image, affine, name in zip(inputs, affines, names, strict=True)
        ]
        largest = np.max([result.logits.shape[1:] for result in results], axis=0)
        merged = MetaTensor(torch.stack([_filled(result.logits, largest) for result in results]))
        merged.copy_meta_from(inputs)
        windows = torch.from_numpy(np.stack([result.affine for result in results]))
        merged.affine = windows if inputs.affine.ndim == 3 else windows[0]
        return merged

    def predict(
        self,
        image: torch.Tensor,
        affine: np.ndarray,
        network: Callable[..., torch.Tensor],
        *args: Any,
        name: str = "scan",
        **kwargs: Any,
    ) -> RegionLogits:
        """Return the logits of one scan (C, *grid), with where its regions were found; see `__call__`."""
        affine = np.asarray(affine, dtype=np.float64)
        location = self._locate(image, affine, name)
        logits: dict[str, torch.Tensor] = {}
        boxes: dict[str, Box] = {}
        for region in self.regions:
            center = self.centers_mm.get(region.name)
            center = location.to_scan(region.center_mm) if center is None else center
            box = Box.around(center, region, location.rotation, self.plan.spacing or ())
            self._check_inside(box, image.shape[1:], affine, region, name)
            values = self._predict_box(image, affine, box, network, *args, name=name, **kwargs)
            moved = recentered(values, box)
            if moved is not None:
                box = moved
                values = self._predict_box(image, affine, box, network, *args, name=name, **kwargs)
            logits[region.name], boxes[region.name] = values, box
        merged, window_affine = merge_boxes(
            [(region, boxes[region.name], logits[region.name]) for region in self.regions],
            len(self.plan.labels), affine, tuple(image.shape[1:]),
        )  # fmt: skip
        return RegionLogits(merged, window_affine, boxes, location)

    def _locate(self, image: torch.Tensor, affine: np.ndarray, name: str) -> Location:
        missing = {r.name: r.center_mm for r in self.regions if r.name not in self.centers_mm}
        if missing:
            return locate(image[0].numpy(force=True), affine, self.template, missing, name)
        matrix = np.eye(4)
        left, _, right = np.linalg.svd(affine[:3, :3])
        matrix[:3, :3] = left @ right
        if np.linalg.det(matrix[:3, :3]) < 0:
            raise GeometryError(f"{name}: the scan's axes are left-handed; orient it as {self.plan.orientation} first")
        return Location(matrix)

    def _check_inside(self, box: Box, shape: Sequence[int], affine: np.ndarray, region: Region, name: str) -> None:
        """Raise RegionError if too much of a box lies outside the scan."""
        axes = [np.linspace(0, n - 1, 9) for n in box.shape]
        points = box.position_mm(np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3))
        index = _index_of(points, affine)
        inside = float(np.all((index >= -0.5) & (index <= np.array(shape) - 0.5), axis=1).mean())
        if inside < MIN_INSIDE:
            center = ", ".join(f"{c:.0f}" for c in points.mean(axis=0))
            raise RegionError(
                f"{name}: the region {region.name} lies around ({center}) mm, and {inside:.0%} of it is inside the "
                f"scan (needs {MIN_INSIDE:.0%}); predict a scan that shows the whole structure, or "
                f"{region_center_hint([region.name])}"
            )

    def _predict_box(
        self, image: torch.Tensor, affine: np.ndarray, box: Box, network: Callable[..., torch.Tensor],
        *args: Any, name: str, **kwargs: Any,
    ) -> torch.Tensor:  # fmt: skip
        """Return the network's logits (K, *box) of one box."""
        part = resample(image, np.linalg.inv(affine) @ box.affine, box.shape)
        given = self.normalize(MetaTensor(part, meta={"filename_or_obj": name}))
        values = self.inferer(convert_to_tensor(given, track_meta=False)[None], network, *args, **kwargs)[0]
        if len(values) != self.plan.out_channels:
            raise ShapeError(f"the network gives {len(values)} channels, the plan expects {self.plan.out_channels}")
        return values.as_tensor() if isinstance(values, MetaTensor) else values


def recentered(logits: torch.Tensor, box: Box) -> Box | None:
    """Return the box around the structure that was found in it; None if nothing was found, or far from the centre.

    Boxes with the same content give the same result, however the registration ended.

    Args:
        logits: (K, *box), channel 0 is the background.
        box: the box of the logits.
    """
    index = torch.nonzero(logits.argmax(0)).numpy(force=True)
    if len(index) == 0:
        return None
    shift = (index.min(axis=0) + index.max(axis=0)) / 2 - (np.array(box.shape) - 1) / 2
    shift_mm = box.affine[:3, :3] @ shift
    if np.linalg.norm(shift_mm) > MAX_RECENTERING_MM:
        return None
    affine = box.affine.copy()
    affine[:3, 3] += shift_mm
    return replace(box, affine=affine)


def resample(image: torch.Tensor, matrix: np.ndarray, shape: Sequence[int]) -> torch.Tensor:
    """Resample a volume by trilinear interpolation; outside, its border is repeated.

    Args:
        image: (C, *grid).
        matrix: 4×4, voxel index of the result to voxel index of the image.
        shape: of the result.

    Returns:
        (C, *shape) float32.
    """
    position, low = _positions(matrix, shape), []
    window = [slice(None)]
    for axis, size in enumerate(image.shape[1:]):
        first = int(np.clip(np.floor(position[..., axis].min().item()), 0, size - 1))
        last = int(np.clip(np.ceil(position[..., axis].max().item()), first, size - 1))
        window.append(slice(first, last + 1))
        low.append(first)
    part = image[tuple(window)].to(torch.float32)
    return _sample(part, position - torch.tensor(low, dtype=torch.float64))


def merge_boxes(
    parts: Sequence[tuple[Region, Box, torch.Tensor]], num_labels: int, affine: np.ndarray, shape: tuple[int, ...]
) -> tuple[torch.Tensor, np.ndarray]:
    """Put the logits of boxes on the voxels of a scan; where boxes overlap, the larger logit of each label wins.

    Logits are taken relative to the background's, which leaves a softmax unchanged, so that those of two boxes can be
    compared.

    Args:
        parts: region, box and logits (K, *box) of each region.
        num_labels: channels of the result.
        affine: voxel index to mm of the scan.
        shape: of the scan.

    Returns:
        Logits (num_labels, *window), with a border of background, and the affine of the window.
    """
    corners = _index_of(np.concatenate([box.corners_mm() for _, box, _ in parts]), affine)
    first = np.clip(np.floor(corners.min(axis=0)).astype(int), 0, np.array(shape) - 1) - 1
    last = np.clip(np.ceil(corners.max(axis=0)).astype(int), 0, np.array(shape) - 1) + 1
    window_affine = affine.copy()
    window_affine[:3, 3] += affine[:3, :3] @ first
    size = tuple(int(n) for n in last - first + 1)
    merged = torch.full((num_labels, *size), ABSENT)
    merged[0] = 0
    for region, box, logits in parts:
        matrix = np.linalg.inv(box.affine) @ window_affine
        relative = (logits - logits[:1]).to("cpu", torch.float32)
        inner = _inner_window(box, window_affine, size)
        offset = np.eye(4)
        offset[:3, 3] = [part.start for part in inner]
        position = _positions(matrix @ offset, [part.stop - part.start for part in inner])
        ends = torch.tensor(box.shape, dtype=torch.float64)
        is_inside = ((position >= -0.5) & (position <= ends - 0.5)).all(-1)
        values = _sample(relative, position).masked_fill_(~is_inside, ABSENT)
        for channel, label in enumerate(region.label_channels):
            if label:  # the background is 0 everywhere
                target = merged[label][inner]
                torch.maximum(target, values[channel], out=target)
    return merged, window_affine


def _inner_window(box: Box, window_affine: np.ndarray, size: Sequence[int]) -> tuple[slice, ...]:
    """Return the voxels of the window that can lie in a box, without the window's border."""
    index = _index_of(box.corners_mm(), window_affine)
    first = np.clip(np.floor(index.min(axis=0)).astype(int), 1, np.array(size) - 1)
    last = np.clip(np.ceil(index.max(axis=0)).astype(int) + 1, first, np.array(size) - 1)
    return tuple(slice(int(start), int(stop)) for start, stop in zip(first, last, strict=True))


def _index_of(points_mm: np.ndarray, affine: np.ndarray) -> np.ndarray:
    inverse = np.linalg.inv(affine)
    return points_mm @ inverse[:3, :3].T + inverse[:3, 3]


def _positions(matrix: np.ndarray, shape: Sequence[int]) -> torch.Tensor:
    """Return the positions (*shape, 3), in double precision, of all voxel indices under a 4×4 matrix."""
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in shape), indexing="ij")
    moved = torch.from_numpy(np.ascontiguousarray(matrix, dtype=np.float64))
    return sum(axis[..., None] * moved[:3, n] for n, axis in enumerate(axes)) + moved[:3, 3]


def _sample(values: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """Interpolate (C, *grid) at positions (*shape, 3); outside, the border is repeated."""
    spans = torch.tensor([max(n - 1, 1) for n in values.shape[1:]], dtype=torch.float64)
    grid = (2 * position / spans - 1).flip(-1).to(values.device, torch.float32)
    return F.grid_sample(values[None], grid[None], mode="bilinear", padding_mode="border", align_corners=True)[0]


def _filled(logits: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Return logits with background behind their last voxels, so that they have the given shape."""
    if tuple(logits.shape[1:]) == tuple(shape):
        return logits
    filled = logits.new_full((len(logits), *(int(n) for n in shape)), ABSENT)
    filled[0] = 0
    filled[(slice(None), *(slice(0, n) for n in logits.shape[1:]))] = logits
    return filled
