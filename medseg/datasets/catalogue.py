"""Find a manifest by name or path and read it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import yaml

from medseg.datasets.layouts.describe import describe_layout, with_stratified_folds
from medseg.datasets.layouts.patients import patients_of
from medseg.datasets.manifest import Manifest
from medseg.datasets.manifest_content import parse_manifest
from medseg.datasets.nnunet import DATASET_FILE, default_folds, is_dataset_json, parse_dataset_json
from medseg.errors import ManifestError, did_you_mean, one_line
from medseg.volumes.files import read_json

# A thousand cases take about 20 kB. Reading a megabyte takes some seconds.
MAX_YAML_BYTES, MAX_NODES = 1024**2, 1_000_000

MANIFEST_FILE = "manifest.yaml"
# A checkout keeps the manifests at the top, where people look for them. A wheel carries them inside the package.
_IN_CHECKOUT = Path(__file__).parents[2] / "data_manifests"
_IN_WHEEL = Path(__file__).parent / "manifests"


def manifest_folder() -> Path:
    """Return the folder of the shipped manifests.

    Raises:
        ManifestError: the installation does not contain it.
    """
    for folder in (_IN_CHECKOUT, _IN_WHEEL):
        if folder.is_dir():
            return folder
    raise ManifestError(f"{_IN_WHEEL}: the shipped manifests are missing; install medseg again or give a manifest file")


def list_manifests() -> list[str]:
    """Return the names of the shipped manifests."""
    return sorted(path.stem for path in manifest_folder().glob("*.yaml"))


def read_manifest(name_or_path: Path | str, folds: str | None = None) -> Manifest:
    """Read a shipped manifest, a manifest file, or the layout of a folder.

    Args:
        name_or_path: name of a shipped manifest such as "hippocampus"; path of a manifest file; path of the
            `dataset.json` of an nnU-Net or Decathlon dataset; or a folder in any layout of ``describe_dataset``.
        folds: name of one of the manifest's `fold_sets`; None for its own folds.

    Raises:
        ManifestError: there is no such manifest, or its content breaks a rule. The message is one line that names the
            file and the key.
    """
    path = _find(name_or_path)
    manifest = describe_dataset(path) if path.is_dir() else _read(path)
    return manifest if folds is None else manifest.with_folds(folds)


def describe_dataset(
    path: Path | str,
    *,
    labels: Path | str | None = None,
    ignored: int | None = None,
    modality: str | None = None,
    patients: str | None = None,
    folds: Literal["patients", "nnunet"] | None = None,
    problems: list[str] | None = None,
) -> Manifest:
    """Describe a data set in any usual layout.

    The layouts are: a folder of images beside a folder of label maps; nnU-Net's raw data sets (version 1 and 2) and
    tasks of the Medical Segmentation Decathlon; a folder per case; BIDS; and a manifest file, or a folder with a
    `manifest.yaml`. Without a file that names the labels, every label map is read for its values.

    Args:
        path: the folder, or a manifest or `dataset.json`.
        labels: a table that names the values or colours of the label maps (see ``read_table``); None takes the one in
            the folder, if there is one.
        ignored: value in the label files of voxels that count neither in the loss nor in the metrics.
        modality: modality of all channels, such as "MR"; None guesses it from the names of channels and, for CT, from
            the intensities.
        patients: a regular expression or column that holds the patient of each case (see ``patients_of``). None takes
            the subjects of BIDS, the patients of a manifest, or else makes each case its own patient.
        folds: "patients" makes five folds by patient, in which every label is as evenly spread as possible. "nnunet"
            makes nnU-Net's default folds. None keeps the folds or the train, val and test folders of the data set, and
            takes nnU-Net's for its data sets and "patients" for others.
        problems: takes one line per file or case that does not fit, which is then left out of the manifest. None
            raises the first of them.

    Returns:
        The manifest. Its ``folder`` is the folder that its files lie in.

    Raises:
        ManifestError: there is no such folder, its layout is unknown or ambiguous, it holds no case, or a problem of a
            case and ``problems`` is None.
    """
    path = Path(path)
    if not path.exists():
        raise ManifestError(f"{path}: no such folder or manifest; check the path")
    if folds not in (None, "patients", "nnunet"):
        raise ManifestError(f"folds must be patients or nnunet; found {folds!r}")
    file = (
        path
        if path.is_file()
        else next((path / n for n in (MANIFEST_FILE, DATASET_FILE) if (path / n).is_file()), None)
    )
    if file is None:
        manifest = describe_layout(path, None if labels is None else Path(labels), ignored, modality, problems)
    else:
        given = [
            name
            for name, value in (("labels", labels), ("ignored", ignored), ("modality", modality))
            if value is not None
        ]
        if given:
            raise ManifestError(f"{file}: states the labels and channels itself; change it, and leave {given[0]} out")
        manifest = replace(_read(file), folder=file.parent)
    if patients is not None:
        found = patients_of(manifest.cases, patients)
        cases = tuple(replace(case, patient=found[case.id]) for case in manifest.cases)
        manifest, folds = replace(manifest, cases=cases), folds or "patients"
    if folds == "nnunet":
        numbered = {number: tuple(ids) for number, ids in default_folds(list(manifest.case_ids)).items()}
        return replace(manifest, folds=numbered, splits={}, test_fold=None)
    return with_stratified_folds(manifest) if folds == "patients" else manifest


def _read(path: Path) -> Manifest:
    try:
        if path.suffix == ".json":
            content = read_json(path, ManifestError)
            return parse_dataset_json(content, path) if is_dataset_json(content) else parse_manifest(content, path)
        if (size := path.stat().st_size) > MAX_YAML_BYTES:
            raise ManifestError(f"{path}: too large; found {size:,} bytes, expected at most {MAX_YAML_BYTES:,}")
        # editors on Windows write a byte order mark
        content = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_BoundedLoader)
    except RecursionError:
        raise ManifestError(f"{path}: nested too deeply to be read; write it again") from None
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror}); check its name and permissions") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: not valid YAML ({one_line(error)})") from error
    return parse_manifest(content, path)


def _find(name_or_path: Path | str) -> Path:
    path = Path(name_or_path)
    names = list_manifests()
    if isinstance(name_or_path, str) and name_or_path in names:
        return manifest_folder() / f"{name_or_path}.yaml"
    if path.is_dir():
        return path
    if isinstance(name_or_path, Path) or path.suffix in (".yaml", ".yml", ".json") or len(path.parts) > 1:
        if not path.is_file():
            raise ManifestError(f"{path}: no such manifest file; shipped manifests are {', '.join(names)}")
        return path
    if path.is_file():
        raise ManifestError(f"{path}: not a manifest by its name; found {path.suffix!r}, expected .yaml, .yml or .json")
    raise ManifestError(
        f"{name_or_path}: no such manifest{did_you_mean(str(name_or_path), names)}; shipped manifests are "
        f"{', '.join(names)}; you can also give a file"
    )


class _BoundedLoader(yaml.SafeLoader):
    """Load YAML and refuse a key that is given twice, of which YAML keeps the last one silently, and alias bombs."""

    def get_single_node(self) -> Any:
        root = super().get_single_node()
        if root is not None and _size(root, {}) > MAX_NODES:
            raise yaml.constructor.ConstructorError(None, None, "its aliases stand for too many values", None)
        return root

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Return the number of values of a YAML node, those that aliases repeat included."""
    if id(node) not in known:
        known[id(node)] = 1  # of a node that contains itself
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] += 0 if isinstance(node, yaml.ScalarNode) else sum(_size(part, known) for part in parts)
    return known[id(node)]
