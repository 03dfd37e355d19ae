"""Where the files of a bundle lie, and what they say, read as plain data."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigWorkflow

from medseg import weights
from medseg.errors import BundleError, WeightsError
from medseg.plan import Plan, read_plan

WEIGHTS = "models/model.pt"


@dataclass(frozen=True)
class BundleFolder:
    """A bundle on disk. Nothing in it is evaluated, imported or applied: JSON, YAML and tensors are read as data.

    Raises:
        BundleError: the folder is not a bundle medseg can load.
    """

    path: Path

    def __post_init__(self) -> None:
        if not self.path.is_dir():
            raise BundleError(f"{self.path}: no such bundle folder; give the folder that holds configs/plan.json")
        for name in ("configs/plan.json", "configs/metadata.json"):
            if not (self.path / name).is_file():
                raise BundleError(
                    f"{self.path}: {name} is missing, so this is not a medseg bundle; "
                    "other MONAI bundles run with `python -m monai.bundle run`"
                )

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @cached_property
    def plan(self) -> Plan:
        """The plan, checked."""
        return read_plan(self.path / "configs" / "plan.json")

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """configs/metadata.json."""
        return self.read_json("configs/metadata.json")

    @property
    def weights_path(self) -> Path:
        """The promoted weights."""
        return self.path / WEIGHTS

    @cached_property
    def checksums(self) -> dict[str, str]:
        """SHA-256 of each weight file by its path in the bundle, from large_files.yml."""
        listing = self.path / "large_files.yml"
        if not listing.is_file():
            return {}
        try:
            entries = yaml.safe_load(listing.read_text(encoding="utf-8"))["large_files"]
            return {entry["path"]: entry["hash_val"] for entry in entries}
        except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise BundleError(f"{listing}: needs large_files: [{{path, hash_type, hash_val}}] ({error!r})") from None

    def checked_weights(self) -> tuple[Path, str]:
        """The promoted weights and their SHA-256, compared with the one recorded at promotion.

        Raises:
            WeightsError: there are none, none is recorded for them, or they differ from the record.
        """
        path = self.weights_path
        if not path.is_file():
            raise WeightsError(
                f"{path}: the bundle has no weights yet; train it and run "
                f"`medseg bundle promote {self.path} --from RUN`, or give others with --weights"
            )
        found = weights.sha256(path)
        recorded = self.checksums.get(WEIGHTS)
        if recorded is None:
            raise WeightsError(
                f"{self.path / 'large_files.yml'}: lists no sha256 for {WEIGHTS}; promote the weights again"
            )
        if found != recorded:
            raise WeightsError(
                f"{path}: sha256 {found[:12]}… differs from the recorded {recorded[:12]}…, so the file was altered or "
                "cut short; restore it or promote weights you trust"
            )
        return path, found

    def inference_differs_from_template(self) -> bool:
        """Whether configs/inference.json could do other than `medseg.load` does."""
        path = self.path / "configs" / "inference.json"
        return path.is_file() and self.read_json("configs/inference.json") != inference_template()

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the bundle by its path in it."""
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except OSError as error:
            raise BundleError(f"{self.path / name}: could not be read: {error.strerror}") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise BundleError(f"{self.path / name}: not valid JSON ({error})") from None


def inference_template() -> dict[str, Any]:
    """The inference config every bundle starts from."""
    return json.loads((files("medseg.bundle") / "template" / "inference.json").read_text(encoding="utf-8"))


def bundle_root() -> str:
    """The folder of the bundle whose config MONAI is evaluating; what configs begin with as their `bundle_root`.

    With it a bundle runs, and `monai.bundle.load` loads it, from any working directory. MONAI tells the expressions of
    a config nothing of where its file lies, so the workflow that evaluates them is looked for among the callers.

    Returns:
        The folder as the path of the config names it; "." where no workflow asks (a ConfigParser alone) or the config
        does not lie beside a plan: then the working directory must be the bundle's folder.
    """
    frame = sys._getframe(1)
    while (caller := frame.f_back) is not None:
        workflow = caller.f_locals.get("self")
        if isinstance(workflow, ConfigWorkflow):
            configs = Path(workflow.config_root_path)
            return str(configs.parent) if _is_of_a_bundle(configs) else "."
        frame = caller
    return "."


def _is_of_a_bundle(configs: Path) -> bool:
    return configs.name == "configs" and (configs / "plan.json").is_file()
