"""Writing a state dict so that a reader never sees half a file."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from medseg.errors import WeightsError
from medseg.weights.digest import sha256

FORMATS = (".safetensors", ".pt", ".pth")


def write(
    path: str | Path, weights: nn.Module | Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> str:
    """Write `weights` to `path`, atomically, and return the file's SHA-256.

    Args:
        path: ends in `.safetensors`, `.pt` or `.pth`, which chooses the format. The folder is made if it is missing.
        weights: a network or its state dict; tensors are written as they are, from the CPU.
        metadata: words kept in the file (safetensors only).

    Raises:
        WeightsError: the ending is unknown, there is nothing to write, or metadata cannot be kept in this format.
    """
    file = Path(path)
    if file.suffix not in FORMATS:
        raise WeightsError(f"{file}: the ending must be one of {', '.join(FORMATS)}")
    if metadata and file.suffix != ".safetensors":
        raise WeightsError(f"{file}: only .safetensors files keep metadata")
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    if not state:
        raise WeightsError(f"{file}: no tensors to write")
    # one memory a tensor: safetensors refuses views and shared storage, and torch.save would write a view's whole base
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.", suffix=".partial")
    os.close(handle)
    temporary = Path(name)
    try:
        if file.suffix == ".safetensors":
            save_file(tensors, temporary, metadata=dict(metadata) if metadata else None)
        else:
            torch.save(tensors, temporary)
        mode = 0o666 & ~_umask()
        temporary.chmod(mode)
        digest = sha256(temporary)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
    return digest


def _umask() -> int:
    # mkstemp makes private files; the finished one gets what open() would have given it
    mask = os.umask(0)
    os.umask(mask)
    return mask
