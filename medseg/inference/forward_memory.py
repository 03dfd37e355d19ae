"""How much memory one forward pass takes, found without computing it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Follows the bytes of every tensor made inside; `peak` is the most that lived at once.

    `largest_operation` is the size of the inputs and outputs of the largest single operation: convolution libraries
    reorder them into layouts of their own, which the tensors do not show.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0
        self.largest_operation = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and take stock."""
        output = func(*args, **(kwargs or {}))
        touched: dict[int, int] = {}
        for leaf in tree_leaves((args, kwargs, output)):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                touched[storage._cdata] = storage.nbytes()
        for leaf in tree_leaves(output):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        self.largest_operation = max(self.largest_operation, sum(touched.values()))
        return output


def forward_bytes(run: Callable[[torch.Tensor], Any], shape: Sequence[int]) -> int:
    """Bytes that `run` needs beside its parameters for an input of that shape (B, C, *tile), fp32.

    The pass is done on tensors without storage. An estimate: live tensors plus half of the largest operation's inputs
    and outputs for the layouts a convolution library copies them into (measured on a CPU: a tenth to four tenths).
    """
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live:
        run(torch.empty(tuple(shape)))
    return live.peak + live.largest_operation // 2
