"""Augmenting whole batches on the device they are trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.transforms import Randomizable
from monai.utils import convert_to_dst_type

from medseg.training.distributed import process_count, process_rank
from medseg.training.sampling import drawn_from
from medseg.transforms import RandElasticDeformationd
from medseg.transforms.elastic.resampling import Resampling, deform_together

Batch = dict[str, torch.Tensor]
Transform = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class BatchAugmentation:
    """Apply random dictionary transforms to a batch where it lies: `augment` of `TrainingUpdate`, for GPUs.

    Every item gets a draw of its own, as if the transforms had been applied to it alone. The deformation resamples the
    whole batch at once, to the same values but for rounding; other transforms go item by item, on the device. The draws
    depend on the seed, the number of the step and the item's place in the batches of all processes alone, so a resumed
    training draws the same and so do two processes with half the batch each.

    Args:
        transforms: dictionary transforms that keep an item's shape, e.g. the bundle's random ones after the crop.
        seed: of the training.

    Returns (the call): a new batch with the transforms' keys changed.
    """

    def __init__(self, transforms: Sequence[Transform], seed: int = 0) -> None:
        self.transforms = list(transforms)
        self.seed = seed

    def __call__(self, batch: Batch, step: int) -> Batch:
        """Augment `image` (B, C, …) and whatever else the transforms have keys for.

        Args:
            batch: name → (B, …) tensors on one device.
            step: number of the training step.
        """
        batch = dict(batch)
        size = len(next(iter(batch.values())))
        for number, transform in enumerate(self.transforms):
            places = [item * process_count() + process_rank() for item in range(size)]
            seeds = [draw_seed(self.seed, step, place, number) for place in places]
            if isinstance(transform, RandElasticDeformationd):
                _deform(transform, batch, seeds)
            else:
                _each(transform, batch, seeds)
        return batch


def draw_seed(seed: int, step: int, place: int, number: int) -> int:
    """The 32 bits the randomness of one transform (the `number`-th) for one item of a step comes from."""
    return int(np.random.SeedSequence((seed, step, place, number)).generate_state(1)[0])


def _deform(transform: RandElasticDeformationd, batch: Batch, seeds: Sequence[int]) -> None:
    found = list(transform.key_iterator(batch, transform.samplings))
    if not found:
        return
    first = batch[found[0][0]]
    shape, spacings, draws = first.shape[2:], _spacings(first), []
    for item, seed in enumerate(seeds):
        transform.set_random_state(seed=seed)
        draws.append(transform.deformation.randomize(shape, spacings[item]))
    drawn = {item: params for item, params in enumerate(draws) if params is not None}
    chosen = list(drawn)
    if not chosen:
        return
    plain = {key: batch[key].as_subclass(torch.Tensor) for key, _ in found}
    requests = [Resampling(plain[key][chosen], *sampling) for key, sampling in found]
    for (key, _), request, deformed in zip(
        found, requests, deform_together(requests, list(drawn.values())), strict=True
    ):
        out = plain[key].to(request.result_dtype, copy=True)
        out[chosen] = deformed
        batch[key] = convert_to_dst_type(out, dst=batch[key], dtype=out.dtype)[0]


def _spacings(batch: torch.Tensor) -> list[np.ndarray | None]:
    """Voxel size of every item in mm; None where the batch has no geometry."""
    if not isinstance(batch, MetaTensor):
        return [None] * len(batch)
    axes = batch.ndim - 2
    affines = batch.affine.expand(len(batch), -1, -1)
    return [np.asarray(affine_to_spacing(affine, axes), dtype=float) for affine in affines]


def _each(transform: Transform, batch: Batch, seeds: Sequence[int]) -> None:
    items = []
    for item, seed in enumerate(seeds):
        if isinstance(transform, Randomizable):
            transform.set_random_state(seed=seed)
        with drawn_from(seed):
            items.append(transform({key: value[item] for key, value in batch.items()}))
    for key, value in batch.items():
        out = torch.stack([item[key].as_subclass(torch.Tensor) for item in items])
        batch[key] = convert_to_dst_type(out, dst=value, dtype=out.dtype)[0]
