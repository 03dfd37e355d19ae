"""Find a manifest by name or path and read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from medseg.datasets.manifest import Manifest, parse_manifest
from medseg.datasets.nnunet import DATASET_FILE, is_dataset_json, parse_dataset_json
from medseg.errors import ManifestError, did_you_mean, one_line

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
    """Read a shipped manifest, a manifest file, or a raw nnU-Net dataset.

    Args:
        name_or_path: name of a shipped manifest such as "hippocampus"; path of a manifest file; or path of the
            `dataset.json` of an nnU-Net or Decathlon dataset, or of the folder that contains it.
        folds: name of one of the manifest's `fold_sets`; None for its own folds.

    Raises:
        ManifestError: there is no such manifest, or its content breaks a rule. The message is one line that names the
            file and the key.
    """
    manifest = _read(_find(name_or_path))
    return manifest if folds is None else manifest.with_folds(folds)


def _read(path: Path) -> Manifest:
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors on Windows write a byte order mark
        if path.suffix == ".json":
            content = json.loads(text)
            return parse_dataset_json(content, path) if is_dataset_json(content) else parse_manifest(content, path)
        content = yaml.load(text, Loader=_UniqueKeyLoader)
    except json.JSONDecodeError as error:
        raise ManifestError(f"{path}: not valid JSON ({error})") from error
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
        if not (path / DATASET_FILE).is_file():
            raise ManifestError(
                f"{path}: the folder contains no {DATASET_FILE}; give a manifest file or a raw nnU-Net dataset"
            )
        return path / DATASET_FILE
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


class _UniqueKeyLoader(yaml.SafeLoader):
    """Load YAML and refuse a key that is given twice, where YAML itself keeps the last one silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)
