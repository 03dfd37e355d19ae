"""MONAI components that prepare, predict and restore scans as `ExactPredictor` does, for the configs of a bundle."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import MapTransform
from monai.utils import MetaKeys

from medseg.errors import GeometryError
from medseg.inference.exact.exact_grid import ExactGrid, exact_grid, logits_step
from medseg.inference.exact.exact_image import exact_image, exact_labels
from medseg.inference.exact.exact_tiles import ORDER, ExactWindow, merge_exact, rounds_to_half
from medseg.inference.tiling.blending import FinishedBlock
from medseg.networks import Ensemble
from medseg.plan import Plan
from medseg.transforms.restore.label_decision import LabelDecision, LabelRestorer
from medseg.transforms.restore.resample import SeparableResampler
from medseg.volumes import Grid

BOX = "nonzero_box"  # key in the metadata of a prepared image: first and last + 1 voxel along each axis of the model


class ExactPreprocessd(MapTransform):
    """Crop, normalise and resample an image as the plan's `resampling` states, and its label map with it.

    Args:
        keys: images (C, *native grid) with the metadata that `LoadImaged` writes.
        plan: with `resampling`.
        label_key: key of a label map (1, *native grid) of the same scan; None if there is none. Each voxel of the model
            grid gets the label of the nearest voxel.
        allow_missing_keys: skip images that a case lacks.
    """

    def __init__(
        self, keys: KeysCollection, plan: Plan, label_key: str | None = None, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.plan = plan
        self.label_key = label_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the case with (C, *model grid) images; a 2D image stays one."""
        d = dict(data)
        for key in self.key_iterator(d):
            source = d[key]
            native = _native_grid(source.meta, source.shape[1:])
            arrays = [channel.numpy(force=True) for channel in source.as_tensor()]
            image, grid = exact_image(arrays, native, self.plan, str(source.meta.get("filename_or_obj", "")))
            d[key] = self._on_model_grid(image, grid, source, native)
            if self.label_key is not None:
                label = d[self.label_key]
                d[self.label_key] = self._on_model_grid(
                    torch.stack([exact_labels(part.numpy(force=True), grid) for part in label.as_tensor()]),
                    grid, label, native,
                )  # fmt: skip
        return d

    @staticmethod
    def _on_model_grid(values: torch.Tensor, grid: ExactGrid, source: MetaTensor, native: Grid) -> MetaTensor:
        affine = torch.from_numpy(grid.model_affine(native.affine))
        known = {key: value for key, value in source.meta.items() if key != MetaKeys.AFFINE}
        meta = {**known, BOX: torch.tensor([[part.start, part.stop] for part in grid.box])}
        meta.setdefault(MetaKeys.ORIGINAL_AFFINE, torch.from_numpy(native.affine.copy()))
        meta.setdefault(MetaKeys.SPATIAL_SHAPE, torch.tensor(native.shape))
        return MetaTensor(values[:, 0] if grid.is_flat else values, affine=affine, meta=meta)


class ExactInferer(Inferer):
    """Predict images tile by tile as `ExactPredictor` does, and return the blended logits in half precision.

    Args:
        plan: with `resampling`.
        sw_batch_size: tiles per forward pass.
    """

    def __init__(self, plan: Plan, sw_batch_size: int = 1) -> None:
        super().__init__()
        tile = tuple(plan.tile) if plan.spatial_dims == 3 else (1, *plan.tile)
        self.is_2d = plan.spatial_dims == 2
        self.window = ExactWindow(tile, plan.overlap, plan.blending, sw_batch_size, is_pipelined=False)

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Return the logits (B, K, *model grid) of images (B, C, *model grid). A MetaTensor keeps its metadata.

        Args:
            inputs: images from `ExactPreprocessd`.
            network: maps tiles (b, C, *tile) to logits (b, K, *tile). The members of a `medseg.networks.Ensemble` are
                blended by themselves.
            args: passed to the network.
            kwargs: passed to the network.
        """
        plain = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        is_flat = self.is_2d and plain.ndim == 4
        images = plain[:, :, None] if is_flat else plain
        members: list[Callable[..., Any]] = [*network.members] if isinstance(network, Ensemble) else [network]

        def predict(tiles: torch.Tensor) -> torch.Tensor:
            given = tiles[:, :, 0] if self.is_2d else tiles
            logits = torch.cat([_plain(member(given, *args, **kwargs)) for member in members], dim=1)
            return logits[:, :, None] if self.is_2d else logits

        each = [self._predict(image.cpu(), predict, plain.device, len(members)) for image in images]
        merged = torch.empty(len(each), *each[0].shape, dtype=torch.float16)  # autocast cannot stack half precision
        for number, values in enumerate(each):
            merged[number] = values
        merged = merged[:, :, 0] if is_flat else merged
        return MetaTensor(merged).copy_meta_from(inputs) if isinstance(inputs, MetaTensor) else merged

    def _predict(
        self, image: torch.Tensor, predict: Callable[[torch.Tensor], torch.Tensor], device: torch.device, count: int
    ) -> torch.Tensor:
        merged: torch.Tensor | None = None
        tiles = self.window.lay_tiles(image.shape[1:])

        def place(block: FinishedBlock) -> None:
            nonlocal merged
            assert block.values is not None
            if merged is None:
                merged = torch.empty(len(block.values), *image.shape[1:], dtype=torch.float16)
            merged[(slice(None), *block.region)] = block.values

        merge_exact(image, tiles, self.window, lambda batch: predict(batch.to(device)), place, count)
        assert merged is not None  # an image has at least one tile
        return merged


class ExactRestored(MapTransform):
    """Restore logits of `ExactInferer` to a label map on the scan's own grid, as `ExactPredictor` does.

    Args:
        keys: logits (K, *model grid).
        plan: with `resampling`.
        ref_key: key of the image that `ExactPreprocessd` prepared.
        label_values: value of each label, background first; None takes the plan's.
        allow_missing_keys: skip keys that a case lacks.
    """

    def __init__(
        self,
        keys: KeysCollection,
        plan: Plan,
        ref_key: str = "image",
        label_values: list[int] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.plan = plan
        self.ref_key = ref_key
        self.label_values = label_values

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the case with label maps (1, *native grid)."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self._restore(d[key], d[self.ref_key].meta)
        return d

    def _restore(self, logits: torch.Tensor, meta: Mapping[str, Any]) -> MetaTensor:
        if BOX not in meta:
            raise GeometryError(f"{self.ref_key}: has no {BOX} in its metadata; prepare it with ExactPreprocessd")
        native = _native_grid(meta, ())
        box = [slice(int(start), int(stop)) for start, stop in torch.as_tensor(meta[BOX]).tolist()]
        grid, step = exact_grid(native, self.plan, box), logits_step(self.plan)
        plain = (logits.as_tensor() if isinstance(logits, MetaTensor) else logits).cpu()
        values = plain[:, None] if grid.is_flat else plain
        decision = LabelDecision(self.label_values or self.plan.label_values, self.plan.activation)
        resampler = SeparableResampler(grid.logits_map(step), axis_order=ORDER)
        labels = torch.empty(grid.box_shape, dtype=decision.dtype)
        restorer = LabelRestorer(resampler, decision, rounds_to_half=rounds_to_half(grid, step))
        restorer(values, (0, 0, 0), [slice(0, size) for size in grid.box_shape], labels)
        whole = torch.from_numpy(grid.in_whole_scan(labels.numpy(), decision.label_values[0]))
        known = {key: value for key, value in meta.items() if key not in (MetaKeys.AFFINE, BOX)}
        known[MetaKeys.SPATIAL_SHAPE] = torch.tensor(native.shape)
        return MetaTensor(whole[None], affine=torch.from_numpy(native.affine.copy()), meta=known)


def _native_grid(meta: Mapping[str, Any], shape: Any) -> Grid:
    """Return the grid of the scan's file from the metadata of its image."""
    affine = np.eye(4)
    found = np.asarray(torch.as_tensor(meta.get(MetaKeys.ORIGINAL_AFFINE, meta.get(MetaKeys.AFFINE, affine))))
    if found.shape == (3, 3):
        affine[:2, :2], affine[:2, 3] = found[:2, :2], found[:2, 2]
    else:
        affine = found.astype(np.float64)
    known = torch.as_tensor(meta[MetaKeys.SPATIAL_SHAPE]).flatten().tolist() if not len(shape) else shape
    return Grid(tuple(int(size) for size in known), affine)


def _plain(output: Any) -> torch.Tensor:
    return output.as_tensor() if isinstance(output, MetaTensor) else output
