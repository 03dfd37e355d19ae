"""Prepared cases on disk, mapped into memory: made once, shared by all workers, processes and runs."""

from __future__ import annotations

import hashlib
import inspect
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset
from monai.data.utils import pickle_hashing
from monai.transforms import Compose, RandomizableTrait, Transform

from medseg.training.processes import barrier, process_count, process_rank
from medseg.training.record import versions
from medseg.training.state_files import save_state
from medseg.volumes.digest import file_sha256

# what a MetaTensor's header holds beside plain values and tensors
_SAFE = [np.ndarray, np.dtype, np._core.multiarray._reconstruct, np._core.multiarray.scalar]  # type: ignore[attr-defined]
_SAFE += [type(np.dtype(kind)) for kind in "?bBhHiIlLqQfdU"]


class MappedCases(CacheDataset):
    """MONAI's `CacheDataset` with its cache in files that are mapped into memory instead of read.

    What the deterministic transforms make of a case is written once and, from then on, in this run, its workers, the
    other processes of the machine and later runs, only the pages a sample needs are in memory, once for all of them.
    So data may be larger than memory, a run starts at once, and worker processes that are spawned (macOS, Windows) get
    no copies.

    A file's name is a digest of the contents of the case's files, the case's other values, the deterministic transforms
    with their arguments, the sources of those that are not MONAI's, and the versions of what computes: whatever
    changes, changes the name, and a stale file is never used. Files appear whole or not at all; a damaged one is made
    again. Samples that write into what they were given change their own pages alone.

    Args:
        data: as `CacheDataset`, dictionaries of file names.
        transform: a `Compose`.
        directory: for the files; delete it when you like, several data sets may share it.
        arguments: the others of `CacheDataset`; `copy_cache` is not needed.
    """

    def __init__(
        self, data: Sequence[Mapping[str, Any]], transform: Compose, directory: str | Path, **arguments: Any
    ) -> None:
        self.directory = Path(directory)
        self._recipe = _digest_of(transform)
        super().__init__(data, transform, **{"copy_cache": False, "num_workers": 0, "progress": False, **arguments})

    def case_file(self, index: int) -> Path:
        """Where the prepared case is, or will be."""
        return self.directory / f"{_case_digest(self._recipe, self.data[index])}.pt"

    def _fill_cache(self, indices: Sequence[int] | None = None) -> list:
        every = list(range(self.cache_num)) if indices is None else list(indices)
        for index in every[process_rank() :: process_count()]:
            self._load_cache_item(index)  # each process makes its share, then all map all
        barrier()
        return super()._fill_cache(every)

    def _load_cache_item(self, idx: int) -> Any:
        path = self.case_file(idx)
        if (found := _read(path)) is None:
            item = super()._load_cache_item(idx)
            save_state(item, path)
            found = _read(path)
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._cache = self._fill_cache()


def _read(path: Path) -> Any:
    """Map a prepared case; None where there is none or it is damaged."""
    if not path.is_file():
        return None
    try:
        with torch.serialization.safe_globals(_SAFE):
            return torch.load(path, mmap=True, weights_only=True, map_location="cpu")
    except Exception as error:  # torch.load raises half a dozen kinds for one torn file
        warnings.warn(f"{path}: cannot be read, made again ({str(error).splitlines()[0]})", stacklevel=2)
        return None


def _digest_of(transform: Compose) -> str:
    """What the deterministic transforms are: their arguments, their sources, and the versions beneath them."""
    steps = transform.flatten().transforms
    first_random = transform.flatten().get_index_of_first(
        lambda step: isinstance(step, RandomizableTrait) or not isinstance(step, Transform)
    )
    deterministic = list(steps[:first_random])
    digest = hashlib.sha256(json.dumps(versions(), sort_keys=True).encode())
    for step in deterministic:
        digest.update(type(step).__qualname__.encode() + pickle_hashing(step))
    for source in sorted(_sources(deterministic)):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _sources(steps: Sequence[Any]) -> Iterator[Path]:
    """The files around every transform that comes without a version."""
    folders = {
        Path(inspect.getfile(type(step))).parent
        for step in steps
        if type(step).__module__.partition(".")[0] not in ("monai", "torch", "__main__")
    }
    for folder in folders:
        yield from folder.glob("*.py")


def _case_digest(recipe: str, case: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(recipe.encode())
    for key, value in sorted(case.items()):
        for part in value if isinstance(value, list | tuple) else [value]:
            digest.update(f"{key}\n".encode())
            if isinstance(part, str | Path) and Path(part).is_file():
                digest.update(file_sha256(part).encode())
            digest.update(f"{part}\n".encode())  # names are in the prepared case, too
    return digest.hexdigest()
