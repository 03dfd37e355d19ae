"""What a compiled model was made from, so that it is taken from a cache only where nothing has changed."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn


def model_digest(network: nn.Module, shape: Sequence[int], *details: str) -> str:
    """SHA-256 of a network's weights, structure and code, of the shape it is compiled for, and of further details.

    Args:
        network: on the CPU.
        shape: (B, C, *tile).
        details: e.g. the compiler's version and the precision.
    """
    facts = [str(network), str(tuple(shape)), torch.__version__, *details]
    with suppress(LookupError, ImportError):  # run from a checkout that is not installed
        facts.append(version("medseg"))
    content = hashlib.sha256("|".join(facts).encode())
    for file in sorted(_source_files(network)):
        with suppress(OSError):
            content.update(Path(file).read_bytes())
    for name, tensor in sorted(network.state_dict().items()):
        content.update(name.encode())
        content.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def _source_files(network: nn.Module) -> set[str]:
    """Files that define the network's own classes; torch's are known by its version."""
    files = set()
    for kind in {type(module) for module in network.modules()}:
        if not kind.__module__.startswith("torch."):
            with suppress(TypeError, OSError):  # defined where there is no file, as in a notebook
                files.add(inspect.getfile(kind))
    return files
