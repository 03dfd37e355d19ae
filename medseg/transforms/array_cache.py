"""Results of a costly function of arrays on disk, found by a digest of everything they depend on.

The file's name is the sha256 of the input arrays, the parameters and the source code that computes the result. A stale
hit is impossible: whatever changes, changes the name.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from medseg.volumes.files import replacing


def cached_arrays(
    folder: Path | str,
    inputs: Mapping[str, np.ndarray | None],
    parameters: Mapping[str, Any],
    code: Sequence[ModuleType],
    compute: Callable[[], Sequence[np.ndarray]],
) -> list[np.ndarray]:
    """The arrays `compute` returns, read from `folder` when they were computed before from the same things.

    Args:
        folder: made when absent; many processes may share it, files appear whole or not at all.
        inputs: the arrays the result depends on, by name.
        parameters: all other values it depends on; JSON types.
        code: modules whose source the result depends on.
        compute: called without arguments when there is no file yet, or it cannot be read.
    """
    path = Path(folder) / f"{_digest(inputs, parameters, code)}.npz"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return [stored[f"arr_{index}"] for index in range(len(stored.files))]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        arrays = list(compute())
    with replacing(path, suffix=".npz") as temporary:
        np.savez(temporary, *arrays)
    return arrays


def _digest(inputs: Mapping[str, np.ndarray | None], parameters: Mapping[str, Any], code: Sequence[ModuleType]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(inputs.items()):
        described = None if array is None else (array.dtype.str, array.shape)
        digest.update(json.dumps([name, described]).encode())
        if array is not None:
            digest.update(np.ascontiguousarray(array).data)
    digest.update(json.dumps(parameters, sort_keys=True).encode())
    for module in code:
        digest.update(_source(module))
    return digest.hexdigest()


@cache
def _source(module: ModuleType) -> bytes:
    file = getattr(module, "__file__", None)
    if file is None:
        raise ValueError(f"{module.__name__} has no source file, so results of its code cannot be cached")
    return Path(file).read_bytes()
