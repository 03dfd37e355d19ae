"""Check the cases of a training, and keep the prepared ones in files that all processes map into memory."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import warnings
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from monai.data import CacheDataset
from monai.data.utils import pickle_hashing
from monai.transforms import Compose, RandomizableTrait, Transform

from medseg.datasets import Manifest, case_problems, read_manifest
from medseg.errors import ManifestError, PlanError, first_line
from medseg.versions import software_versions
from medseg.volumes.files import file_sha256
from medseg.weights.state_dict import save_state

# Plain data that pickles of a MetaTensor's header may hold. The functions that rebuild arrays and scalars are NumPy's
# private ones; arrays name them themselves when they are pickled.
_SAFE: list[Any] = [np.ndarray, np.dtype, np.empty(0).__reduce__()[0], np.float64().__reduce__()[0]]
_SAFE += [type(np.dtype(kind)) for kind in "?bBhHiIlLqQfdU"]


class MappedCases(CacheDataset):
    """Cache prepared cases as MONAI's `CacheDataset` does, in files that are mapped into memory.

    The result of the deterministic transforms is written once per case. From then on only the pages that a sample needs
    are in memory, once for this run, its workers, the other processes of the machine and later runs. So the data may be
    larger than memory, a run starts at once, and spawned worker processes (macOS, Windows) receive no copies.

    The name of a file is a digest of the contents of the case's files, the case's other values, the deterministic
    transforms with their arguments, the sources of transforms that are not MONAI's, and the versions of the software.
    If any of these changes, so does the name, and a stale file is never used. Files are written atomically, and a
    damaged one is replaced. Transforms that write into their input change their own copy of the pages.

    Args:
        data: dictionaries of file names, as for `CacheDataset`.
        transform: a `Compose`.
        directory: folder of the files; several data sets may share it. It can be deleted at any time.
        arguments: further arguments of `CacheDataset`; `copy_cache` is not needed.
    """

    def __init__(
        self, data: Sequence[Mapping[str, Any]], transform: Compose, directory: str | Path, **arguments: Any
    ) -> None:
        self.directory = Path(directory)
        self._recipe = _digest_of(transform)
        super().__init__(data, transform, **{"copy_cache": False, "num_workers": 0, "progress": False, **arguments})

    def case_file(self, index: int) -> Path:
        """Return the path of a prepared case, which may not exist yet."""
        return self.directory / f"{_case_digest(self._recipe, self.data[index])}.pt"

    def _fill_cache(self, indices: Sequence[int] | None = None) -> list:
        every = list(range(self.cache_num)) if indices is None else list(indices)
        for index in every[idist.get_rank() :: idist.get_world_size()]:
            self._load_cache_item(index)  # each process prepares its share, then all map all
        idist.barrier()
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
    """Map a prepared case into memory; None if there is none or it is damaged."""
    if not path.is_file():
        return None
    try:
        with torch.serialization.safe_globals(_SAFE):
            return torch.load(path, mmap=True, weights_only=True, map_location="cpu")
    except Exception as error:  # torch.load raises half a dozen kinds for a torn file
        warnings.warn(f"{path}: cannot be read, prepared again ({first_line(error)})", stacklevel=2)
        return None


def _digest_of(transform: Compose) -> str:
    """Digest the deterministic transforms: their arguments, their sources, and the versions of the software."""
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
    """List the source files beside every transform that does not belong to a package with a version."""
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
            digest.update(f"{part}\n".encode())  # the prepared case holds the names as well
    return digest.hexdigest()


class CheckCased(Transform):
    """Check the files of a case before they are loaded; a case that can be trained on passes unchanged.

    MONAI's transforms accept a label map that is shifted against its scan, or that holds an undeclared value, and the
    training goes on with wrong labels; other errors come late and do not name the case. The rules are those of `medseg
    data prepare`: every file complete, finite and of the manifest's dimension, one grid for all of them up to half a
    voxel, and no label value that the manifest lacks. The check is deterministic, so it runs once per cached case.

    Args:
        manifest: the data set, or its name or path (see `medseg.datasets.read_manifest`).
        label_values: the values the network is trained on, as in the plan. They must contain each value of the
            manifest. None if the label map is remapped afterwards.
        spatial_dims: of the files; None takes the manifest's. 3 for a 2D network that gets volumes slice by slice.

    Raises:
        PlanError: the manifest has label values that the plan lacks.
        ManifestError: (call) a case cannot be used; names the case and the file.
    """

    def __init__(
        self,
        manifest: Manifest | str | Path,
        label_values: Iterable[int] | None = None,
        spatial_dims: int | None = None,
    ) -> None:
        manifest = manifest if isinstance(manifest, Manifest) else read_manifest(manifest)
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
