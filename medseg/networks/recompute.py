"""Activation checkpointing: keep a stage's inputs only and run it again in the backward pass."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def run(stage: nn.Module, *inputs: Tensor, recompute: bool) -> Tensor:
    """Return `stage(*inputs)`, recomputed in the backward pass if `recompute` and gradients are wanted.

    The second run leaves the running statistics of batch normalisation alone, so training with and without
    checkpointing is the same.
    """
    if not (recompute and torch.is_grad_enabled()):
        return stage(*inputs)
    if torch.compiler.is_compiling():
        return checkpoint(stage, *inputs, use_reentrant=False)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _frozen_statistics(stage)

    return checkpoint(stage, *inputs, use_reentrant=False, context_fn=contexts)


@contextmanager
def _frozen_statistics(stage: nn.Module) -> Iterator[None]:
    norms = [m for m in stage.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    kept = [(m, m.momentum, m.num_batches_tracked) for m in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = None
    try:
        yield
    finally:
        for norm, momentum, count in kept:
            norm.momentum = momentum
            norm.num_batches_tracked = count
