"""Augment whole batches on the device they are trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.transforms import Randomizable
from monai.utils import convert_to_dst_type

from medseg.training.sampling import seeded_generators
from medseg.transforms import RandElasticDeformationd
from medseg.transforms.elastic.resampling import Resampling, deform_together

Batch = dict[str, torch.Tensor]
Transform = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class BatchAugmentation:
    """Apply random dictionary transforms to a whole batch on its device: the `augment` of `SupervisedUpdate`, for GPUs.

    Every item gets its own draw, as if the transforms were applied to it alone. The deformation resamples the whole
    batch at once, to the same values up to rounding. Other transforms are applied item by item, on the device. A draw
    depends only on the seed, the number of the step and the item's position in the joint batch of all processes. So a
    resumed training draws the same, and so do two processes with half the batch each.

    Args:
        transforms: dictionary transforms that keep an item's shape, e.g. a bundle's random ones after the crop.
        seed: of the training.
    """

    def __init__(self, transforms: Sequence[Transform], seed: int = 0) -> None:
        self.transforms = list(transforms)
        self.seed = seed

    def __call__(self, batch: Batch, step: int) -> Batch:
        """Augment a batch.

        Args:
            batch: name → (B, …) tensors on one device: `image` (B, C, …) and the transforms' other keys.
            step: number of the training step.

        Returns:
            A new batch in which the transforms' keys are changed.
        """
        batch = dict(batch)
        size = len(next(iter(batch.values())))
        positions = [item * idist.get_world_size() + idist.get_rank() for item in range(size)]
        for number, transform in enumerate(self.transforms):
            seeds = [draw_seed(self.seed, step, position, number) for position in positions]
            if isinstance(transform, RandElasticDeformationd):
                _deform(transform, batch, seeds)
            else:
                _apply_to_each(transform, batch, seeds)
        return batch


def draw_seed(seed: int, step: int, position: int, number: int) -> int:
    """Return the 32-bit seed of the `number`-th transform for one item of a step."""
    return int(np.random.SeedSequence((seed, step, position, number)).generate_state(1)[0])


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
    """Return the voxel size of every item in mm; None if the batch has no geometry."""
    if not isinstance(batch, MetaTensor):
        return [None] * len(batch)
    axes = batch.ndim - 2
    affines = batch.affine.expand(len(batch), -1, -1)
    return [np.asarray(affine_to_spacing(affine, axes), dtype=float) for affine in affines]


def _apply_to_each(transform: Transform, batch: Batch, seeds: Sequence[int]) -> None:
    items = []
    for item, seed in enumerate(seeds):
        if isinstance(transform, Randomizable):
            transform.set_random_state(seed=seed)
        with seeded_generators(seed):
            items.append(transform({key: value[item] for key, value in batch.items()}))
    for key, value in batch.items():
        out = torch.stack([item[key].as_subclass(torch.Tensor) for item in items])
        batch[key] = convert_to_dst_type(out, dst=value, dtype=out.dtype)[0]
