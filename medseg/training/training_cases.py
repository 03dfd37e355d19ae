"""Load and check the cases of a training, and keep the prepared ones in files that all processes map into memory."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import warnings
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import CacheDataset
from monai.data.utils import pickle_hashing
from monai.transforms import Compose, RandomizableTrait, Transform
from monai.utils import ensure_tuple

from medseg.datasets import Manifest, read_case, read_manifest, replace_values
from medseg.errors import PlanError, first_line
from medseg.inference.scan import Scan
from medseg.versions import software_versions
from medseg.volumes import unchanged
from medseg.volumes.files import file_sha256
from medseg.weights.state_dict import save_state

# Plain data that pickles of a MetaTensor's header may hold. The functions that rebuild arrays and scalars are NumPy's
# private ones; arrays name them themselves when they are pickled.
_SAFE: list[Any] = [np.ndarray, np.dtype, np.empty(0).__reduce__()[0], np.float64().__reduce__()[0]]
_SAFE += [type(np.dtype(kind)) for kind in "?bBhHiIlLqQfdU"]

# Label of voxels that count neither in the loss nor in the metrics; all labels of a training fit uint8.
IGNORED = 255
# Spacing and other transforms of MONAI turn label maps into float32, which holds integers below this exactly.
LARGEST_EXACT = 1 << 24


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
        with unchanged(_files(self.data[idx])):  # the name of the prepared file is the digest of these files
            path = self.case_file(idx)
            if (found := _read(path)) is None:
                item = super()._load_cache_item(idx)
        if found is None:
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
    for source in sorted(set(_sources(deterministic))):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _sources(steps: Sequence[Any]) -> Iterator[Path]:
    """List the source files of every transform that does not belong to a package with a version."""
    modules = {type(step).__module__: Path(inspect.getfile(type(step))).parent for step in steps}
    for name, folder in modules.items():
        package = name.partition(".")[0]
        if package == "medseg":  # the transforms read files with the whole package
            yield from Path(__file__).parents[1].rglob("*.py")
        elif package not in ("monai", "torch", "__main__"):
            yield from folder.glob("*.py")


def _files(case: Mapping[str, Any]) -> list[Path]:
    parts = [part for value in case.values() for part in (value if isinstance(value, list | tuple) else [value])]
    return [Path(part) for part in parts if isinstance(part, str | Path) and Path(part).is_file()]


def _case_digest(recipe: str, case: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(recipe.encode())
    for key, value in sorted(case.items()):
        for part in value if isinstance(value, list | tuple) else [value]:
            digest.update(f"{key}\n".encode())
            if isinstance(part, str | Path) and Path(part).is_file():
                digest.update(file_sha256(part).encode())
            digest.update(f"{part}\n".encode())  # the prepared case holds the names as well
    return digest.hexdigest()


class LoadCased(Transform):
    """Load a case with the reader of `medseg predict`, check it, and number its labels as the network's channels.

    MONAI's `LoadImaged` accepts a label map that is shifted against its scan, or that holds an undeclared value, and
    the training goes on with wrong labels. It also needs other packages for some formats, and names no case in an
    error. This transform reads every format that medseg predicts, once. The rules are those of `medseg data prepare`:
    every file complete, finite and of the manifest's dimension, all of them on one grid up to half a voxel, and no
    label value that the manifest lacks. A file with the same voxels in another axis order is reordered.

    Label values may be any integers. Inside a training, labels are the network's channels: the labels of the plan
    sorted by value are 0, 1, 2, …, and voxels of the manifest's ignore label are `IGNORED`. The background of a case in
    which only some labels were annotated has a label of `partial_labels`.

    Args:
        keys: of "image", "label" and "instances"; files of other keys are left as they are.
        manifest: the data set, or its name or path (see `medseg.datasets.read_manifest`).
        labels: value of each label by name, as in the plan; None takes the manifest's. Each value of the manifest must
            be there, and a name must not have two values.
        spatial_dims: of the files; None takes the manifest's. 3 for a 2D network that gets volumes slice by slice.

    Returns:
        (call) the case with a MetaTensor per key: the image (C, …) float32, the label map (1, …) uint8, and the
        instance map (1, …) int32.

    Raises:
        PlanError: the labels of the manifest and of the plan do not fit together.
        ManifestError: (call) a case cannot be used; names the case and the file.
    """

    def __init__(
        self,
        keys: KeysCollection,
        manifest: Manifest | str | Path,
        labels: Mapping[str, int] | None = None,
        spatial_dims: int | None = None,
    ) -> None:
        self.keys = ensure_tuple(keys)
        manifest = manifest if isinstance(manifest, Manifest) else read_manifest(manifest)
        self.manifest = manifest if spatial_dims is None else dataclasses.replace(manifest, spatial_dims=spatial_dims)
        labels = manifest.labels if labels is None else labels
        self.channel_of_value = _channel_of_value(manifest, labels)
        codes = _partial_codes(manifest, labels)
        self._background_of_case = {
            case.id: codes[frozenset(case.labels)]
            for case in manifest.cases
            if case.labels is not None and frozenset(case.labels) in codes
        }

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        files = {role: _paths(data[role]) for role in self.keys}
        volumes = read_case(self.manifest, files, str(data.get("case") or next(iter(files.values()))[0]))
        loaded = dict(data)
        for role, of_role in volumes.items():
            if role == "image":
                loaded[role] = Scan(tuple(of_role)).to_tensor()
            else:
                numbered = of_role[0].array
                numbered = self._numbered(numbered, data.get("case")) if role == "label" else _counted(numbered)
                loaded[role] = Scan((dataclasses.replace(of_role[0], array=numbered),)).to_tensor(numbered.dtype)
        return loaded

    def _numbered(self, label_map: np.ndarray, case: Any) -> np.ndarray:
        numbered = replace_values(label_map, self.channel_of_value, np.uint8)
        if case in self._background_of_case:
            numbered[numbered == 0] = self._background_of_case[case]
        return numbered


def partial_labels(manifest: Manifest | str | Path, labels: Mapping[str, int] | None = None) -> dict[int, list[int]]:
    """Return the classes that the background of partially labelled cases stands for, as the losses take them.

    In a case in which only some labels were annotated, a voxel without a label is background or has a label that was
    not annotated. `LoadCased` gives these voxels a label of their own, 254, 253, …, one per set of annotated labels.

    Args:
        manifest: the data set, or its name or path. Its cases state the annotated labels under `labels`.
        labels: value of each label by name, as in the plan; None takes the manifest's.

    Returns:
        The numbers of the classes by label; empty if every case is annotated completely.

    Raises:
        PlanError: there are more labels and sets than a training has numbers for.
    """
    manifest = manifest if isinstance(manifest, Manifest) else read_manifest(manifest)
    labels = manifest.labels if labels is None else labels
    values = sorted(labels.values())
    return {
        code: [number for number, value in enumerate(values) if value not in {labels[name] for name in annotated}]
        for annotated, code in _partial_codes(manifest, labels).items()
    }


def _partial_codes(manifest: Manifest, labels: Mapping[str, int]) -> dict[frozenset[str], int]:
    """Return the label of the background for each set of annotated labels that leaves one out."""
    foreground = {name for name, value in labels.items() if value != 0}
    found = {frozenset(case.labels) for case in manifest.cases if case.labels is not None}
    partial = sorted((each for each in found if not foreground <= each), key=sorted)
    if len(labels) + len(partial) > IGNORED:
        raise PlanError(
            f"{manifest.name}: {len(labels)} labels and {len(partial)} sets of annotated labels are more than a "
            f"training can number; found {len(labels) + len(partial)}, expected at most {IGNORED}"
        )
    return {annotated: IGNORED - 1 - number for number, annotated in enumerate(partial)}


def _paths(value: Any) -> list[Path]:
    return [Path(part) for part in ensure_tuple(value)]


def _channel_of_value(manifest: Manifest, labels: Mapping[str, int]) -> dict[int, int]:
    """Return the network's channel, or `IGNORED`, for each value that a label file of the manifest may hold.

    Raises:
        PlanError: the plan lacks a value of the manifest, has another one for the same name, or too many.
    """
    values = sorted(labels.values())
    for name, value in manifest.labels.items():
        if labels.get(name, value) != value:
            raise PlanError(
                f"the plan has the value {labels[name]} for {name}, and {manifest.name} has {value}; correct labels in "
                "plan.json or in the manifest"
            )
    lacking = [f"{name} ({value})" for name, value in manifest.labels.items() if value not in values]
    if lacking:
        raise PlanError(
            f"the plan has no label for {', '.join(lacking)} of {manifest.name}; add it to labels in plan.json, or map "
            "its value to another label with file_values in the manifest"
        )
    if len(values) > IGNORED:
        raise PlanError(f"a training can have at most {IGNORED} labels; found {len(values)}; merge some of them")
    if manifest.ignore_label in values:
        raise PlanError(
            f"{manifest.ignore_label} is a label of the plan and the ignore_label of {manifest.name}; change one"
        )
    channels: dict[int | None, int] = {value: channel for channel, value in enumerate(values)}
    channels[manifest.ignore_label] = IGNORED
    return {stored: channels[label] for stored, label in manifest.label_of_value.items()}


def _counted(instances: np.ndarray) -> np.ndarray:
    """Return an instance map as int32; numbers that float32 cannot tell apart are counted anew."""
    if instances.max(initial=0) < LARGEST_EXACT:
        return instances.astype(np.int32)
    values, numbers = np.unique(instances, return_inverse=True)
    return (numbers.reshape(instances.shape) + int(values[0] != 0)).astype(np.int32)
