"""A second device made of main memory: tensors on it refuse to meet tensors of the CPU, as those of a GPU do."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

# torch lets tensors of this device be sliced without hardware for it.
DEVICE = torch.device("meta")
COPIES = (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)


class OtherTensor(torch.Tensor):
    """Claims to lie on `DEVICE`; `held` has the values."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> OtherTensor:
        wrapper = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), dtype=held.dtype, device=DEVICE, requires_grad=False
        )
        wrapper.held = held
        return wrapper

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} was called on the other device outside of OtherDevice")


class OtherDevice(TorchDispatchMode):
    """Compute on `DEVICE` inside this context.

    `waits` counts how often a value was looked at, for which a CPU waits until a GPU has done all its work. `limit`
    is the largest tensor in bytes that the device holds; a larger one is out of memory.
    """

    def __init__(self, limit: float = float("inf")) -> None:
        super().__init__()
        self.waits = 0
        self.limit = limit
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
        others = [leaf for leaf in given if isinstance(leaf, OtherTensor)]
        if others and func not in COPIES:
            strangers = [leaf for leaf in given if not isinstance(leaf, OtherTensor) and leaf.ndim]
            assert not strangers, f"{func} got tensors of two devices"
        self.waits += bool(others) and func is torch.ops.aten._local_scalar_dense.default
        target = kwargs.get("device")
        is_here = bool(others) if target is None else torch.device(target).type == DEVICE.type
        if func is torch.ops.aten.copy_.default:
            is_here = isinstance(args[0], OtherTensor)
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        with torch.inference_mode(False):  # a wrapper of a tensor made in inference mode cannot be sliced
            found = func(*tree_map(_held, args), **tree_map(_held, kwargs))
        if func is torch.ops.aten._to_copy.default and found.data_ptr() == _held(args[0]).data_ptr():
            found = found.clone()
        mine = {id(_held(leaf)): leaf for leaf in others}  # what changes in place stays the same tensor
        return tree_map(lambda leaf: self._placed(leaf, is_here, mine), found)

    def _placed(self, leaf: Any, is_here: bool, mine: dict[int, Any]) -> Any:
        if not isinstance(leaf, torch.Tensor) or not is_here:
            return leaf
        size = leaf.numel() * leaf.element_size()
        self.largest = max(self.largest, size)
        if size > self.limit:
            raise torch.OutOfMemoryError(f"{size} bytes")
        with torch.inference_mode(False):
            return mine.get(id(leaf)) if id(leaf) in mine else OtherTensor(leaf)


def _held(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, OtherTensor) else leaf
