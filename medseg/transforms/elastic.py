"""Random elastic deformation with rotation, scaling and flips in one resampling; labels never leave their set."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_dst_type, ensure_tuple_rep
from monai.utils.enums import TransformBackends

from medseg.errors import ShapeError
from medseg.transforms.elastic_parameters import Deformation
from medseg.transforms.elastic_resampling import Mode, deform_batch
from medseg.transforms.separable_upsampling import Basis, Lattice

Range = float | Sequence[float]


class RandElasticDeformation(RandomizableTransform):
    backend = [TransformBackends.TORCH]

    def __init__(
        self,
        prob: float = 0.1,
        sigma: Range | None = None,
        grid: int | Sequence[int] = 3,
        grid_spacing: Range | None = None,
        basis: Basis = "bicubic",
        unit: str = "voxel",
        rotation_range: Range = 0.0,
        scale_range: Range = 0.0,
        flip: Sequence[int] | None = None,
        fold_free: bool = True,
        mode: Mode = "bilinear",
        padding: str | float = "border",
    ) -> None:
        RandomizableTransform.__init__(self, prob)
        self.sigma, self.grid, self.grid_spacing, self.basis, self.unit = sigma, grid, grid_spacing, basis, unit
        self.rotation_range, self.scale_range, self.flip = rotation_range, scale_range, tuple(flip or ())
        self.fold_free, self.mode, self.padding = fold_free, mode, padding

    def randomize(self, shape: Sequence[int], spacing: Sequence[float] | None = None) -> Deformation | None:  # type: ignore[override]
        super().randomize(None)
        if not self._do_transform:
            return None
        shape = tuple(int(n) for n in shape)
        ndim = len(shape)
        spacing_mm = np.ones(ndim) if spacing is None else np.asarray(spacing, dtype=float)
        extent = np.maximum(np.array(shape) - 1.0, 1.0)
        if self.grid_spacing is None:
            counts = np.array(ensure_tuple_rep(self.grid, ndim))
            lattices = tuple(
                Lattice(-e / (g - 1), e / (g - 1), int(g) + 2) for e, g in zip(extent, counts, strict=True)
            )
        else:
            steps = np.array(ensure_tuple_rep(self.grid_spacing, ndim), dtype=float)
            steps = steps / spacing_mm if self.unit == "mm" else steps
            counts = np.ceil(extent / steps - 1e-9).astype(int) + 3
            lattices = tuple(
                Lattice((e - s * (k - 1)) / 2, s, int(k)) for e, s, k in zip(extent, steps, counts, strict=True)
            )
        if self.sigma is None:
            sigma = 0.05 * extent
        else:
            sigma = np.array(ensure_tuple_rep(self.sigma, ndim), dtype=float)
            sigma = sigma / spacing_mm if self.unit == "mm" else sigma
        drawn = self.R.standard_normal((ndim, *counts)) * sigma.reshape(-1, *[1] * ndim)
        if self.grid_spacing is None:
            drawn = np.pad(drawn, [(0, 0)] + [(1, 1)] * ndim, mode="edge")
        matrix = self._draw_matrix(ndim, spacing_mm)
        return Deformation(shape, self.basis, lattices, drawn, matrix)

    def _draw_matrix(self, ndim: int, spacing_mm: np.ndarray) -> np.ndarray:
        matrix = np.eye(ndim)
        planes = [(0, 1)] if ndim == 2 else [(1, 2), (0, 2), (0, 1)]
        limits = ensure_tuple_rep(self.rotation_range, len(planes))
        for (i, j), limit in zip(planes, limits, strict=True):
            angle = self.R.uniform(-limit, limit)
            rotation = np.eye(ndim)
            rotation[[i, j], [i, j]] = np.cos(angle)
            rotation[i, j], rotation[j, i] = -np.sin(angle), np.sin(angle)
            matrix = matrix @ rotation
        low, high = (
            self.scale_range if isinstance(self.scale_range, Sequence) else (1 - self.scale_range, 1 + self.scale_range)
        )
        factor = self.R.uniform(low, high)
        signs = np.ones(ndim)
        for axis in self.flip:
            signs[axis] = -1.0 if self.R.random() < 0.5 else 1.0
        return matrix * spacing_mm / spacing_mm[:, None] * signs / factor

    def apply(
        self, params: Deformation, array: Any, mode: Mode | None = None, padding: str | float | None = None
    ) -> Any:
        if tuple(array.shape[1:]) != params.shape:
            raise ShapeError(
                f"elastic deformation: the map was drawn for spatial shape {params.shape}, the array has "
                f"{tuple(array.shape[1:])}; deform arrays of one grid together, or draw again"
            )
        tensor = array.as_tensor() if isinstance(array, MetaTensor) else torch.as_tensor(array)
        out = deform_batch(tensor[None], [params], mode or self.mode, self.padding if padding is None else padding)[0]
        return convert_to_dst_type(out, dst=array, dtype=out.dtype)[0]

    def __call__(self, img: Any, mode: Mode | None = None, randomize: bool = True) -> Any:
        if randomize:
            self._params = self.randomize(img.shape[1:], spacing_of(img))
        if self._params is None:
            return img
        return self.apply(self._params, img, mode)


def spacing_of(array: Any) -> np.ndarray | None:
    """Voxel size in mm of a MetaTensor, one value a spatial axis; None for plain arrays."""
    if not isinstance(array, MetaTensor):
        return None
    return np.asarray(array.pixdim, dtype=float)[: array.ndim - 1]


class RandElasticDeformationd(RandomizableTransform, MapTransform):
    backend = RandElasticDeformation.backend

    def __init__(
        self,
        keys: KeysCollection,
        mode: Mode | Sequence[Mode] = ("bilinear", "nearest"),
        prob: float = 0.1,
        padding: str | float | Sequence[str | float] = "border",
        allow_missing_keys: bool = False,
        **arguments: Any,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, 1.0)
        self.mode = ensure_tuple_rep(mode, len(self.keys))
        self.padding = ensure_tuple_rep(padding, len(self.keys))
        self.deformation = RandElasticDeformation(prob=prob, **arguments)

    def set_random_state(self, seed: int | None = None, state: Any = None) -> RandElasticDeformationd:
        super().set_random_state(seed, state)
        self.deformation.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        first = self.first_key(d)
        if first == ():
            return d
        params = self.deformation.randomize(d[first].shape[1:], spacing_of(d[first]))
        if params is None:
            return d
        for key, mode, padding in self.key_iterator(d, self.mode, self.padding):
            d[key] = self.deformation.apply(params, d[key], mode, padding)
        return d


RandElasticDeformationD = RandElasticDeformationDict = RandElasticDeformationd
