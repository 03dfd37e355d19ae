"""Refuse a network that is too large before any memory is allocated for it, and build one without initial weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.overrides import TorchFunctionMode

from medseg.errors import NetworkError, first_line
from medseg.machine import physical_memory

MAX_LAYERS = 20_000  # the largest published network here has about 500
# Tensor methods of which initialisations consist.
_FILLS = {"uniform_", "normal_", "fill_", "zero_", "erfinv_", "mul_", "add_", "clamp_"}


def check_size(name: str, build: Callable[[], nn.Module], max_bytes: int | None = None) -> int:
    """Refuse a network whose parameters exceed a limit. It is built on PyTorch's meta device, which allocates nothing.

    Args:
        name: name of the network, for error messages.
        build: function that returns the network.
        max_bytes: limit of the parameters and buffers in their own precision; None for the physical memory.

    Returns:
        Bytes of the parameters and buffers.

    Raises:
        NetworkError: the limit is exceeded, or the network has more than 20,000 layers.
    """
    limit = physical_memory() if max_bytes is None else max_bytes
    # Drawing weights on the meta device would import PyTorch's compiler: 1.5 s and 70 MB.
    with torch.device("meta"), WithoutInitialization(), _RealNumbers(), _at_most_layers(name):
        try:
            network = build()
        except (RuntimeError, OverflowError) as error:  # a size beyond 64 bits
            raise NetworkError(
                f"{name}: no network can have these sizes ({first_line(error)}); correct them"
            ) from error
    size = sum(tensor.numel() * tensor.element_size() for tensor in [*network.parameters(), *network.buffers()])
    if size > limit:
        raise NetworkError(
            f"{name}: the parameters need {size / 2**20:,.0f} MB, expected at most {limit / 2**20:,.0f} MB; use fewer "
            "channels or stages"
        )
    return size


class WithoutInitialization(TorchFunctionMode):
    """Build networks in this context without filling their parameters, whose values are undefined afterwards.

    The memory of such a parameter is reserved but not touched, so that the system does not provide it. Buffers, such as
    the statistics of a batch normalisation, are filled as usual.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of PyTorch, unless it fills a parameter."""
        kwargs = kwargs or {}
        target = kwargs["tensor"] if "tensor" in kwargs else args[0] if args else None
        if isinstance(target, nn.Parameter):
            is_fill = getattr(func, "__name__", "") in _FILLS
            if is_fill or getattr(func, "__module__", "") == "torch.nn.init":
                return target
        return func(*args, **kwargs)


class _RealNumbers(TorchFunctionMode):
    """Compute schedules of a few numbers for real, because networks read them while they are built."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.linspace:
            kwargs = {**(kwargs or {}), "device": "cpu"}
        return func(*args, **(kwargs or {}))


@contextmanager
def _at_most_layers(name: str) -> Iterator[None]:
    """Stop the construction of a network that has more layers than any published one."""
    count = 0

    def count_layer(*_: object) -> None:
        nonlocal count
        count += 1
        if count > MAX_LAYERS:
            raise NetworkError(f"{name}: more than {MAX_LAYERS:,} layers; use fewer stages or convolutions")

    handle = register_module_module_registration_hook(count_layer)
    try:
        yield
    finally:
        handle.remove()
