"""Count the floating-point operations of a forward pass from the shapes of its tensors alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_CONVOLUTIONS = (F.conv2d, F.conv3d)
_TRANSPOSED = (F.conv_transpose2d, F.conv_transpose3d)
_POOL_SETTINGS = ("kernel_size", "stride", "padding")
_POOLS = (F.max_pool2d, F.max_pool3d, F.avg_pool2d, F.avg_pool3d)  # PyTorch's layers round odd sizes down
# Functions whose result has the shape of their first argument, and whose work does not count.
_POINTWISE = {
    F.batch_norm, F.instance_norm, F.group_norm, F.layer_norm, F.relu, F.leaky_relu, F.prelu, F.gelu, F.dropout,
    torch.batch_norm, torch.instance_norm, torch.group_norm, torch.layer_norm,
}  # fmt: skip


def forward_flops(network: nn.Module, shape: Sequence[int]) -> int | None:
    """Count the operations of convolutions, linear layers and attention, each multiplication and addition as one.

    PyTorch's `FlopCounterMode` counts the same where no stage is folded (see `medseg.networks.folding`). It needs
    tensors without values, and importing what they need takes a second.

    Args:
        network: the network.
        shape: (B, C, *tile) of the input.

    Returns:
        None for a network with layers of another library, whose functions are not known here.

    Raises:
        RuntimeError: the network cannot take the shape; and what its own checks raise.
    """
    if not all(type(module).__module__.startswith(("medseg.networks.", "torch.nn.")) for module in network.modules()):
        return None
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    without_values = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    with torch.inference_mode(), _CountedShapes() as counted:
        functional_call(network, without_values, (torch.empty(tuple(shape), device="meta"),))
    return counted.flops


class _CountedShapes(TorchFunctionMode):
    """Return empty tensors of the right shape from the functions of layers, and add up what they would compute.

    Convolutions without values would be computed by functions of PyTorch that import its compiler.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _POINTWISE:
            return args[0]
        if func in _CONVOLUTIONS:
            return self._convolution(*args, **kwargs)
        if func in _TRANSPOSED:
            return self._transposed(*args, **kwargs)
        if func is F.linear:
            return self._linear(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return self._attention(*args[:3])
        if func in _POOLS:
            return _pooled(*args[:4], **{name: kwargs[name] for name in _POOL_SETTINGS if name in kwargs})
        if func is torch.cat:
            return _joined(*args, **kwargs)
        return func(*args, **kwargs)

    def _convolution(
        self, x: torch.Tensor, weight: torch.Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0,
        dilation: Any = 1, groups: int = 1,
    ) -> torch.Tensor:  # fmt: skip
        _check_channels(x, weight.shape[1] * groups)
        dims = x.ndim - 2
        if padding == "same":
            size = list(x.shape[2:])
        else:
            settings = zip(
                x.shape[2:], weight.shape[2:], _each(stride, dims), _each(0 if padding == "valid" else padding, dims),
                _each(dilation, dims), strict=True,
            )  # fmt: skip
            size = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in settings]
        self.flops += 2 * len(x) * prod(size) * weight.numel()
        return x.new_empty((len(x), weight.shape[0], *size))

    def _transposed(
        self, x: torch.Tensor, weight: torch.Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0,
        output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
    ) -> torch.Tensor:  # fmt: skip
        _check_channels(x, weight.shape[0])
        given = (stride, padding, output_padding, dilation)
        settings = zip(x.shape[2:], weight.shape[2:], *(_each(value, x.ndim - 2) for value in given), strict=True)
        size = [(n - 1) * s - 2 * p + d * (k - 1) + o + 1 for n, k, s, p, o, d in settings]
        self.flops += 2 * len(x) * prod(x.shape[2:]) * weight.numel()
        return x.new_empty((len(x), weight.shape[1] * groups, *size))

    def _linear(self, x: torch.Tensor, weight: torch.Tensor, bias: Any = None) -> torch.Tensor:
        if x.shape[-1] != weight.shape[1]:
            raise RuntimeError(f"a linear layer takes {weight.shape[1]} values, found {x.shape[-1]}")
        self.flops += 2 * x.numel() * weight.shape[0]
        return x.new_empty((*x.shape[:-1], weight.shape[0]))

    def _attention(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        self.flops += 2 * query.numel() * key.shape[-2] + 2 * prod(query.shape[:-1]) * value.shape[-2:].numel()
        return query.new_empty((*query.shape[:-1], value.shape[-1]))


def _pooled(x: torch.Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0) -> torch.Tensor:
    given = (kernel_size, stride or kernel_size, padding)
    settings = zip(x.shape[2:], *(_each(value, x.ndim - 2) for value in given), strict=True)
    return x.new_empty((*x.shape[:2], *((n + 2 * p - k) // s + 1 for n, k, s, p in settings)))


def _joined(tensors: Sequence[torch.Tensor], dim: int = 0) -> torch.Tensor:
    first, *others = tensors
    shape = list(first.shape)
    for other in others:
        if [n for axis, n in enumerate(other.shape) if axis != dim] != [
            n for axis, n in enumerate(first.shape) if axis != dim
        ]:
            raise RuntimeError(f"maps of the shapes {tuple(first.shape)} and {tuple(other.shape)} cannot be joined")
        shape[dim] += other.shape[dim]
    return first.new_empty(shape)


def _each(value: Any, dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value) * (dims if len(value) == 1 else 1)


def _check_channels(x: torch.Tensor, expected: int) -> None:
    if x.shape[1] != expected:
        raise RuntimeError(f"a convolution takes {expected} channels, found {x.shape[1]}")
