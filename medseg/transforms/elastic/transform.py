"""Deform patches elastically, with rotation, scaling and flips in the same resampling; labels are only copied."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_dst_type, ensure_tuple_rep
from monai.utils.enums import TransformBackends

from medseg.errors import ShapeError
from medseg.transforms.elastic.deformation import Basis, Deformation
from medseg.transforms.elastic.drawing import FORMS, AffineRanges, PerAxis, draw_deformation
from medseg.transforms.elastic.resampling import Mode, Padding, Resampling, check_sampling, deform_together
from medseg.transforms.meta_tensor import spacing_of, without_meta

Form = Literal["relative", "unet_ronneberger2015", "unet3d_cicek2016"]
Unit = Literal["voxel", "mm", "extent"]


class RandElasticDeformation(RandomizableTransform):
    """Deform a channel-first patch, 2D or 3D, by a random smooth map, on any device.

    Displacements u are drawn on a coarse grid of control points and interpolated by cubic splines. Rotation, scaling
    and flips about the patch's centre c form a matrix A that takes part in the same resampling:

    output(x) = input(c + A (x + u(x) − c))

    Forms:

    - "relative" (default): 3 control points per axis, σ = 4 % of the patch's extent, bicubic, never folds.
    - "unet_ronneberger2015": 3 control points per axis, N(0, 10 voxels), bicubic (Ronneberger et al. 2015,
      arXiv:1505.04597, Sec. 3.1). It was published for images of 512 pixels; a patch of 40 voxels would fold.
    - "unet3d_cicek2016": a control point every 32 voxels, N(0, 4 voxels), cubic B-spline (Çiçek et al. 2016,
      arXiv:1606.06650, Sec. 3). The drawn values are the spline's coefficients, so displacements are smaller than
      drawn.

    Args:
        prob: probability of deforming. Otherwise the input itself is returned and nothing is computed.
        form: form that gives the values of the arguments left None.
        sigma: standard deviation of the displacement's components at the control points, one number or one per axis.
        grid: number of control points per axis, ≥ 2, the outer ones at the patch's edges.
        grid_spacing: instead of `grid`, the distance between control points, in `unit` (for "extent" in voxels).
        basis: "bicubic" passes through the drawn values; "bspline" is smoother, and smaller than drawn.
        unit: unit of `sigma` and `grid_spacing`: "voxel", "mm" (with the spacing of the MetaTensor's affine, or 1 mm
            for other arrays), or "extent" (a fraction of the patch's extent).
        fold_free: shrink a draw until its map provably has a positive Jacobian everywhere (before flips).
        rotation_range: largest angle in radians, one number, or one per axis in 3D. Rotations are rotations in mm.
        scale_range: s for factors in [1 − s, 1 + s], or (lowest, highest) factor; a factor above 1 magnifies.
        flip: spatial axes that are mirrored with probability 1/2 each.
        mode: "bilinear", or "nearest" for label maps (voxels of any dtype are copied).
        padding: "border" repeats the edge voxel outside the patch; a number fills it.

    Raises:
        ValueError: a parameter is outside its range, or does not go with another.

    Example:
        >>> deform = RandElasticDeformation(prob=0.5, rotation_range=0.2, flip=(0, 1, 2))
        >>> params = deform.randomize(image.shape[1:])  # None if not to be deformed
        >>> image, label = deform.apply(params, image), deform.apply(params, label, mode="nearest")
    """

    backend: ClassVar[list[TransformBackends]] = [TransformBackends.TORCH]

    def __init__(
        self,
        prob: float = 0.1,
        form: Form = "relative",
        sigma: PerAxis | None = None,
        grid: int | Sequence[int] | None = None,
        grid_spacing: PerAxis | None = None,
        basis: Basis | None = None,
        unit: Unit | None = None,
        fold_free: bool | None = None,
        rotation_range: PerAxis = 0.0,
        scale_range: PerAxis = 0.0,
        flip: Sequence[int] | None = None,
        mode: Mode = "bilinear",
        padding: Padding = "border",
    ) -> None:
        RandomizableTransform.__init__(self, prob)
        if not 0 <= prob <= 1:
            raise ValueError(f"elastic deformation: prob must be in [0, 1], found {prob}")
        if form not in FORMS:
            raise ValueError(f"elastic deformation: form must be one of {sorted(FORMS)}, found {form!r}")
        if grid is not None and grid_spacing is not None:
            raise ValueError("elastic deformation: give grid or grid_spacing, not both")
        changes: dict[str, Any] = {"sigma": sigma, "basis": basis, "unit": unit, "fold_free": fold_free}
        changes = {name: value for name, value in changes.items() if value is not None}
        if grid is not None or grid_spacing is not None:
            changes |= {"grid": grid, "grid_spacing": grid_spacing}
        if unit is not None and unit != FORMS[form].unit and sigma is None:
            raise ValueError(f"elastic deformation: unit={unit!r} needs a sigma in that unit, found None")
        self.form = replace(FORMS[form], **changes)
        self.affine = AffineRanges(rotation_range, scale_range, tuple(flip or ()))
        self.mode, self.padding = check_sampling(mode, padding)
        self._params: Deformation | None = None

    def randomize(
        self, shape: Sequence[int], spacing: Sequence[float] | np.ndarray | None = None
    ) -> Deformation | None:
        """Draw a deformation of a patch.

        Args:
            shape: spatial shape in voxels, 2 or 3 axes.
            spacing: voxel size in mm, one per axis; None is 1 mm.

        Returns:
            The frozen record that `apply` takes, or None if the patch is not to be deformed (see `prob`).

        Raises:
            ShapeError: the patch has not 2 or 3 spatial axes.
        """
        super().randomize(None)
        if not self._do_transform:
            return None
        if len(shape) not in (2, 3) or min(shape) < 1:
            raise ShapeError(
                f"elastic deformation: arrays must be channel-first with 2 or 3 spatial axes, found {tuple(shape)}"
            )
        spacing_mm = np.ones(len(shape)) if spacing is None else np.asarray(spacing, dtype=float)
        return draw_deformation(self.R, shape, spacing_mm, self.form, self.affine)

    def apply(self, params: Deformation, array: Any, mode: Mode | None = None, padding: Padding | None = None) -> Any:
        """Deform one array by a drawn record, deterministically.

        Args:
            params: from `randomize`.
            array: shape `(C, *params.shape)`; array, tensor or MetaTensor.
            mode, padding: those of the constructor if None.

        Returns:
            An array of the same type, shape and device; a MetaTensor keeps its affine. Integers become float32 under
            "bilinear".
        """
        return _deform_arrays(params, [array], [mode or self.mode], [self.padding if padding is None else padding])[0]

    def apply_batch(
        self, params: Sequence[Deformation | None], batch: torch.Tensor, mode: Mode | None = None
    ) -> torch.Tensor:
        """Deform a batch on its device, in one pass.

        Args:
            params: one record per item, drawn for equal shape and spacing; None leaves its item unchanged.
            batch: shape `(B, C, *spatial)`.
            mode: that of the constructor if None.

        Returns:
            A new tensor of the same shape; float32 for integers under "bilinear".
        """
        mode = mode or self.mode
        chosen = [b for b, drawn in enumerate(params) if drawn is not None]
        if len(params) != len(batch):
            raise ShapeError(f"elastic deformation: a batch of {len(batch)} needs as many records, found {len(params)}")
        request = Resampling(batch[chosen], mode, self.padding)
        out = batch.to(request.result_dtype, copy=True)
        if chosen:
            records = [drawn for drawn in params if drawn is not None]
            _check_shape(records[0], batch[0])
            out[chosen] = deform_together([request], records)[0]
        return out

    def __call__(self, img: Any, mode: Mode | None = None, randomize: bool = True) -> Any:
        """Draw and deform `img`, shape `(C, *spatial)`; with `randomize=False` the last draw is used again."""
        if randomize:
            self._params = self.randomize(img.shape[1:], spacing_of(img))
        return img if self._params is None else self.apply(self._params, img, mode)


class RandElasticDeformationd(RandomizableTransform, MapTransform):
    """Dictionary form of `RandElasticDeformation`: one draw and one set of coordinates for all keys.

    Args:
        keys: arrays of one spatial shape; the spacing is read from the first.
        mode: one for all keys or one per key; "bilinear" for images, "nearest" for label maps and their voxel weights.
        prob: probability of deforming a sample. Otherwise it is returned unchanged and nothing is computed.
        form, sigma, grid, grid_spacing, basis, unit, fold_free, rotation_range, scale_range, flip: see
            `RandElasticDeformation`.
        padding: one for all keys or one per key; see `RandElasticDeformation`.
        allow_missing_keys: skip keys that a sample lacks.

    Raises:
        ValueError: see `RandElasticDeformation`.
        ShapeError: (call) the arrays have different spatial shapes.

    Example:
        >>> RandElasticDeformationd(keys=("image", "label"), mode=("bilinear", "nearest"), prob=0.5, flip=(0, 1, 2))
    """

    backend = RandElasticDeformation.backend

    def __init__(
        self,
        keys: KeysCollection,
        mode: Mode | Sequence[Mode] = ("bilinear", "nearest"),
        prob: float = 0.1,
        form: Form = "relative",
        sigma: PerAxis | None = None,
        grid: int | Sequence[int] | None = None,
        grid_spacing: PerAxis | None = None,
        basis: Basis | None = None,
        unit: Unit | None = None,
        fold_free: bool | None = None,
        rotation_range: PerAxis = 0.0,
        scale_range: PerAxis = 0.0,
        flip: Sequence[int] | None = None,
        padding: Padding | Sequence[Padding] = "border",
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        if not isinstance(mode, str) and len(mode) != len(self.keys):
            raise ValueError(
                f"elastic deformation: mode must be one value or one per key, found {mode} for the keys {self.keys}"
            )
        samplings = zip(ensure_tuple_rep(mode, len(self.keys)), ensure_tuple_rep(padding, len(self.keys)), strict=True)
        self.samplings = [check_sampling(*sampling) for sampling in samplings]
        self.deformation = RandElasticDeformation(
            prob, form, sigma, grid, grid_spacing, basis, unit, fold_free, rotation_range, scale_range, flip
        )

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> RandElasticDeformationd:
        """Seed this transform and the array form, which draws for it."""
        super().set_random_state(seed, state)
        self.deformation.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        found = list(self.key_iterator(d, self.samplings))
        if not found:
            return d
        first = d[found[0][0]]
        params = self.deformation.randomize(first.shape[1:], spacing_of(first))
        if params is None:
            return d
        keys, samplings = [key for key, _ in found], [sampling for _, sampling in found]
        modes, paddings = zip(*samplings, strict=True)
        d.update(zip(keys, _deform_arrays(params, [d[key] for key in keys], modes, paddings, keys), strict=True))
        return d


def _deform_arrays(
    params: Deformation,
    arrays: Sequence[Any],
    modes: Sequence[Mode],
    paddings: Sequence[Padding],
    names: Sequence[Hashable] | None = None,
) -> list[Any]:
    requests = []
    for index, (array, mode, padding) in enumerate(zip(arrays, modes, paddings, strict=True)):
        _check_shape(params, array, "" if names is None else f" of {names[index]!r}")
        requests.append(Resampling(torch.as_tensor(without_meta(array))[None], *check_sampling(mode, padding)))
    outputs = deform_together(requests, [params])
    return [convert_to_dst_type(out[0], dst=a, dtype=out.dtype)[0] for out, a in zip(outputs, arrays, strict=True)]


def _check_shape(params: Deformation, array: Any, name: str = "") -> None:
    if tuple(array.shape[1:]) != params.shape:
        raise ShapeError(
            f"elastic deformation: the array{name} has shape {tuple(array.shape[1:])}, expected {params.shape}, "
            "the shape that the map was drawn for; bring all arrays to one grid, or draw again"
        )


RandElasticDeformationD = RandElasticDeformationDict = RandElasticDeformationd
