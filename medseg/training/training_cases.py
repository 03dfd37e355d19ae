"""Prepared cases on disk, mapped into memory: made once, shared by all workers, processes and runs."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import warnings
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset
from monai.data.utils import pickle_hashing
from monai.transforms import Compose, RandomizableTrait, Transform

from medseg.datasets import Manifest, case_problems
from medseg.errors import ManifestError, PlanError, first_line
from medseg.training.distributed import barrier, process_count, process_rank
from medseg.versions import software_versions
from medseg.volumes.files import file_sha256
from medseg.weights.state_dict import save_state

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
        warnings.warn(f"{path}: cannot be read, made again ({first_line(error)})", stacklevel=2)
        return None


def _digest_of(transform: Compose) -> str:
    """What the deterministic transforms are: their arguments, their sources, and the versions beneath them."""
    steps = transform.flatten().transforms
    first_random = transform.flatten().get_index_of_first(
        lambda step: isinstance(step, RandomizableTrait) or not isinstance(step, Transform)
    )
    deterministic = list(steps[:first_random])
    digest = hashlib.sha256(json.dumps(software_versions(), sort_keys=True).encode())
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


class CheckCased(Transform):
    """First of a case's transforms: let it pass as it is, or say in one line what is wrong with its files.

    MONAI's transforms take a label map that is shifted against its scan, or that holds a value nobody declared, and the
    training goes on with wrong labels; other errors come late and do not name the case. The rules are those of
    `medseg data prepare`: every file whole, finite and of the manifest's dimension, one grid for all of them up to half
    a voxel, no label value that the manifest lacks. Being deterministic it is done once a case, where cases are cached.

    Args:
        manifest: the data set.
        label_values: the values the network is trained on, the plan's; each value of the manifest must be among them.
            None where the label map is remapped afterwards.
        spatial_dims: of the files; None takes the manifest's. 3 where a 2D network is given volumes to cut into slices.

    Raises:
        PlanError: the manifest has label values that the plan lacks.
        ManifestError: (call) a case cannot be used; names the case and the file.
    """

    def __init__(
        self, manifest: Manifest, label_values: Iterable[int] | None = None, spatial_dims: int | None = None
    ) -> None:
        self.manifest = manifest if spatial_dims is None else dataclasses.replace(manifest, spatial_dims=spatial_dims)
        known = None if label_values is None else set(label_values)
        lacking = [name for name, value in manifest.labels.items() if known is not None and value not in known]
        if lacking:
            shown = ", ".join(f"{name} ({manifest.labels[name]})" for name in lacking)
            raise PlanError(
                f"the plan has no label for {shown} of {manifest.name}; add it to labels in plan.json, or map it to "
                "another value in the configs and give CheckCased no label_values"
            )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        roles = [role for role in ("image", "label", "instances") if role in data]
        files = {role: _paths(data[role]) for role in roles}
        problems = case_problems(self.manifest, files, str(data.get("case", files["image"][0])))
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise ManifestError(problems[0] + more)
        return dict(data)


def _paths(value: Any) -> list[Path]:
    return [Path(part) for part in (value if isinstance(value, list | tuple) else [value])]
