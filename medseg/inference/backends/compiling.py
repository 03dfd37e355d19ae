"""torch.compile, where there is a compiler and a probe shows that it pays."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from time import perf_counter

import torch

from medseg.inference.backends.torch_backend import TorchBackend

# Compiling takes a minute or so; a smaller gain would not bring that back.
WORTHWHILE = 0.9


def compile_if_it_pays(backend: TorchBackend, example: torch.Tensor) -> str:
    """Compile a backend's network and keep that where a pass over the example then takes at most 0.9 of the time.

    Args:
        backend: changed where compiling pays.
        example: a full batch (B, C, *tile).

    Returns:
        One line that says what was done and why.
    """
    if not has_compiler(backend.device):
        return f"eager: no compiler for {backend.device.type} was found"
    before = _seconds(backend, example)
    try:
        backend.run = torch.compile(backend.eager)
        after = _seconds(backend, example)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler can fail in any way, and the network runs without it
        backend.run = backend.eager
        return f"eager: compiling failed ({type(error).__name__})"
    if after > WORTHWHILE * before:
        backend.run = backend.eager
        return f"eager: compiled, a batch takes {after / before:.2f} of the time"
    return f"compiled: a batch takes {after / before:.2f} of the eager time"


def has_compiler(device: torch.device) -> bool:
    """Whether torch.compile finds what it needs: a C++ compiler for a CPU, Triton for CUDA."""
    if device.type == "cuda":
        return find_spec("triton") is not None
    if device.type != "cpu":
        return False
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++", "cl"))


def _seconds(backend: TorchBackend, example: torch.Tensor) -> float:
    """The shorter of two passes, after one that warms up and compiles."""
    times = []
    for _ in range(3):
        begin = perf_counter()
        backend(example)
        if backend.device.type == "cuda":
            torch.cuda.synchronize(backend.device)
        times.append(perf_counter() - begin)
    return min(times[1:])
