"""Finding a manifest by the name of a shipped one or by path, and reading it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from medseg.datasets.manifest import Manifest, parse_manifest
from medseg.datasets.nnunet import DATASET_FILE, is_dataset_json, parse_dataset_json
from medseg.errors import ManifestError, did_you_mean, one_line

# A wheel carries the manifests inside the package; a checkout keeps them at the top, where people look for them.
_IN_WHEEL = Path(__file__).parent / "manifests"
_IN_CHECKOUT = Path(__file__).parents[2] / "data_manifests"


def manifest_folder() -> Path:
    """The folder of the shipped manifests.

    Raises:
        ManifestError: the installation lacks it.
    """
    for folder in (_IN_CHECKOUT, _IN_WHEEL):
        if folder.is_dir():
            return folder
    raise ManifestError(f"{_IN_WHEEL}: the shipped manifests are absent; install medseg again or give a manifest file")


def list_manifests() -> list[str]:
    """Names of the shipped manifests."""
    return sorted(path.stem for path in manifest_folder().glob("*.yaml"))


def read_manifest(name_or_path: Path | str) -> Manifest:
    """Read a shipped manifest by name ("hippocampus"), any manifest file by path, or a raw nnU-Net data set.

    Args:
        name_or_path: a name, a manifest file, or a `dataset.json` of nnU-Net or the Decathlon or the folder it lies in.

    Raises:
        ManifestError: no such manifest, or its content breaks a rule; one line that names the file and the key.
    """
    path = _find(name_or_path)
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            content = json.loads(text)
            return parse_dataset_json(content, path) if is_dataset_json(content) else parse_manifest(content, path)
        content = yaml.load(text, Loader=_UniqueKeyLoader)
    except json.JSONDecodeError as error:
        raise ManifestError(f"{path}: is not valid JSON: {error}") from error
    except OSError as error:
        raise ManifestError(f"{path}: could not be read: {error.strerror}; check its name and permissions") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: is not valid YAML: {one_line(error)}") from error
    return parse_manifest(content, path)


def _find(name_or_path: Path | str) -> Path:
    path = Path(name_or_path)
    is_name = isinstance(name_or_path, str) and name_or_path in list_manifests()
    if not is_name and path.is_dir():
        if not (path / DATASET_FILE).is_file():
            raise ManifestError(
                f"{path}: a folder without {DATASET_FILE}; name a manifest file or a raw nnU-Net folder"
            )
        return path / DATASET_FILE
    if isinstance(name_or_path, Path) or path.suffix in (".yaml", ".yml", ".json") or len(path.parts) > 1:
        if not path.is_file():
            raise ManifestError(f"{path}: no such manifest file; shipped ones are {', '.join(list_manifests())}")
        return path
    names = list_manifests()
    if name_or_path not in names and path.is_file():
        raise ManifestError(f"{path}: no manifest by its name; manifests end in .yaml, .yml or .json")
    if name_or_path not in names:
        hint = did_you_mean(str(name_or_path), names)
        raise ManifestError(
            f"{name_or_path}: no such manifest{hint}; shipped ones are {', '.join(names)}, or give a file"
        )
    return manifest_folder() / f"{name_or_path}.yaml"


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML lets a later key replace an earlier one silently; here a key twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)
