"""Read and write state dicts. Reading never runs code that a file may contain."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medseg.errors import WeightsError, first_line
from medseg.volumes import replacing
from medseg.volumes.files import file_sha256

# Keys under which training programs store the state dict in a checkpoint. The first one present is used.
WRAPPERS = ("state_dict", "model_state_dict", "network_weights", "network", "model", "net", "weights")
# Prefixes that wrapper modules (data parallel, compiled, Lightning) add to every key.
PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.")
# NumPy scalars and arrays, which many training programs store beside the weights, are data and safe to unpickle.
_DATA_TYPES: list[Any] = [np.dtype, np.ndarray, *{type(np.dtype(code)) for code in "?bhilqBHILQefd"}]

# A zip archive, and a pickle of protocol 2 in older files.
TORCH_SIGNATURES = (b"PK\x03\x04", b"\x80\x02")


def read(path: str | Path) -> dict[str, Tensor]:
    """Read the state dict of a weights file to the CPU.

    A state dict inside a checkpoint is found under `state_dict`, `model`, `network_weights` and other usual keys.
    Prefixes such as `module.` that all keys share are removed.

    Args:
        path: a `.safetensors` file, or a `.pt`, `.pth`, `.bin` or `.ckpt` file written by `torch.save`. No pickled code
            in it is run.

    Raises:
        WeightsError: the file is missing or damaged, contains Python objects besides tensors, or has no state dict.
    """
    file = Path(path)
    loaded = read_checkpoint(file)
    state = _find_state_dict(loaded)
    if state is None:
        found = ", ".join(map(str, list(loaded)[:5])) if isinstance(loaded, Mapping) else type(loaded).__name__
        raise WeightsError(
            f"{file}: contains no state dict; found {found}; save one with torch.save(model.state_dict())"
        )
    check_claimed_sizes(state, file)
    return strip_prefixes(state)


def check_claimed_sizes(state: Mapping[str, Tensor], file: Path) -> None:
    """Refuse a tensor larger than its file: a few bytes can claim any shape if all of it is one repeated value.

    Raises:
        WeightsError: a tensor claims more bytes than the file has.
    """
    size = file.stat().st_size
    for key, value in state.items():
        if value.numel() * value.element_size() > size:
            raise WeightsError(
                f"{file}: {key} claims {value.numel():,} values, more than the file of {size:,} bytes holds; use the "
                "original file"
            )


def read_checkpoint(path: str | Path) -> Any:
    """Read everything in a weights file to the CPU: tensors, numbers, texts, lists and dictionaries.

    Args:
        path: as in `read`.

    Raises:
        WeightsError: the file is missing or damaged, or contains other Python objects. No pickled code in it is run.
    """
    file = Path(path)
    if file.is_dir():
        raise WeightsError(f"{file}: is a folder; name the file with the weights in it")
    if not file.is_file():
        raise WeightsError(f"{file}: no such file")
    return _read_safetensors(file) if _is_safetensors(file) else _read_torch(file)


def strip_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes of wrapper modules that every key of a state dict shares."""
    stripped = dict(state)
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in stripped)), None):
        stripped = {key.removeprefix(prefix): value for key, value in stripped.items()}
    return stripped


def _read_safetensors(file: Path) -> Any:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{file}: not a readable safetensors file ({first_line(error)})") from error


def _read_torch(file: Path) -> Any:
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            claimed = sum(member.file_size for member in archive.infolist())
        if claimed > file.stat().st_size:  # torch.save does not compress
            raise WeightsError(
                f"{file}: claims {claimed:,} bytes, more than the file of {file.stat().st_size:,} bytes holds; use the "
                "original file"
            )
    reconstruct = getattr(np, "_core", getattr(np, "core", None)).multiarray  # type: ignore[union-attr]
    allowed = [*_DATA_TYPES, reconstruct.scalar, reconstruct._reconstruct]
    # NumPy 1 and 2 write different names of the same functions.
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        allowed += [(reconstruct.scalar, f"{module}.scalar"), (reconstruct._reconstruct, f"{module}._reconstruct")]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of unusual pickles, which either fail or are harmless
            with file.open("rb") as stream:  # given a name, torch would choose the format by its suffix
                return torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{file}: contains pickled Python objects, which could run code when opened, so it is refused; in the "
            f"program that wrote it, save the tensors alone: torch.save(model.state_dict(), ...) ({_reason(error)})"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        raise WeightsError(f"{file}: not a readable weights file ({first_line(error)})") from error


def _is_safetensors(file: Path) -> bool:
    """Tell the format by the content, because weights are often renamed; by the name if the content is neither."""
    with file.open("rb") as stream:
        start = stream.read(9)
    header_bytes = int.from_bytes(start[:8], "little")
    if start[8:] == b"{" and header_bytes < file.stat().st_size:
        return True
    return file.suffix == ".safetensors" and not start.startswith(TORCH_SIGNATURES)


def _find_state_dict(loaded: Any, depth: int = 3) -> dict[str, Tensor] | None:
    if not isinstance(loaded, Mapping) or depth == 0:
        return None
    for name in WRAPPERS:
        found = _find_state_dict(loaded.get(name), depth - 1)
        if found is not None:
            return found
    tensors = {key: value for key, value in loaded.items() if isinstance(key, str) and isinstance(value, Tensor)}
    return tensors if len(tensors) * 2 > len(loaded) else None


def _reason(error: Exception) -> str:
    # torch's message is a page of advice. One line of it names the refused object.
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if "GLOBAL" in line or "Unsupported" in line), first_line(error))[:200]


def sha256(path: str | Path) -> str:
    """Return the SHA-256 digest of a weights file as 64 hexadecimal digits.

    Raises:
        WeightsError: the file cannot be read.
    """
    try:
        return file_sha256(path)
    except OSError as error:
        raise WeightsError(f"{path}: the weights cannot be read ({error.strerror or error}); check the path") from error


FORMATS = (".safetensors", ".pt", ".pth")


def write(
    path: str | Path, weights: nn.Module | Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> str:
    """Write weights to a file, atomically.

    Args:
        path: the output; its suffix `.safetensors`, `.pt` or `.pth` chooses the format. Its folder is created.
        weights: a network or its state dict.
        metadata: text to store in the file (safetensors only).

    Returns:
        The SHA-256 digest of the file.

    Raises:
        WeightsError: the suffix is unknown, there are no tensors, or the format cannot store metadata.
        VolumeError: the folder cannot be written or is full.
    """
    file = Path(path)
    if file.suffix not in FORMATS:
        raise WeightsError(f"{file}: the suffix must be one of {', '.join(FORMATS)}")
    if metadata and file.suffix != ".safetensors":
        raise WeightsError(f"{file}: only .safetensors files store metadata")
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    if not state:
        raise WeightsError(f"{file}: no tensors to write")
    # Each tensor gets its own memory: safetensors refuses views, and torch.save would write a view's whole base.
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    with replacing(file) as temporary:
        if file.suffix == ".safetensors":
            save_file(tensors, temporary, metadata=dict(metadata) if metadata else None)
        else:
            _save(tensors, temporary)
        return file_sha256(temporary)


def save_state(state: Any, path: Path) -> None:
    """Write an object with `torch.save`, atomically.

    Raises:
        VolumeError: the folder cannot be written or is full.
    """
    with replacing(path) as temporary:
        _save(state, temporary)


def _save(state: Any, path: Path) -> None:
    # torch gets an open file, not a path: it would write the path's name into the file, so that files of equal weights
    # would differ, and it reports a full disk as "unexpected pos 640 vs 598".
    with path.open("wb") as stream:
        try:
            torch.save(state, stream)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
