"""Where the files of a bundle lie, and what they say, read as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from medseg import weights
from medseg.bundle.configs import inference_config
from medseg.errors import BundleError, WeightsError
from medseg.plan import Plan, read_plan
from medseg.volumes.files import read_json

WEIGHTS, RECORD = "models/model.pt", "models/model.json"


@dataclass(frozen=True)
class BundleFolder:
    """A bundle on disk. Nothing in it is evaluated, imported or applied: JSON and tensors are read as data.

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
        return read_plan(self.inside("configs/plan.json"))

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """configs/metadata.json."""
        return self.read_json("configs/metadata.json")

    @property
    def weights_path(self) -> Path:
        """The promoted weights."""
        return self.path / WEIGHTS

    @property
    def recorded_sha256(self) -> str | None:
        """SHA-256 of the promoted weights as recorded in models/model.json; None where there is no record."""
        if not (self.path / RECORD).is_file():
            return None
        record = self.read_json(RECORD)
        digest = record.get("weights_sha256") if isinstance(record, dict) else None
        return digest if isinstance(digest, str) else None

    def checked_weights(self) -> tuple[Path, str]:
        """The promoted weights and their SHA-256, compared with the one recorded at promotion.

        Raises:
            WeightsError: there are none, none is recorded for them, or they differ from the record.
        """
        path = self.inside(WEIGHTS)
        if not path.is_file():
            raise WeightsError(
                f"{path}: the bundle has no weights yet; train it and run "
                f"`medseg bundle promote {self.path} --from RUN`, or give others with --weights"
            )
        found = weights.sha256(path)
        recorded = self.recorded_sha256
        if recorded is None:
            raise WeightsError(
                f"{self.path / RECORD}: records no weights_sha256 for {WEIGHTS}; promote the weights again"
            )
        if found != recorded:
            raise WeightsError(
                f"{path}: sha256 {found[:12]}… differs from the recorded {recorded[:12]}…, so the file was altered or "
                "cut short; restore it or promote weights you trust"
            )
        return path, found

    def inference_differs_from_template(self) -> bool:
        """Return whether configs/inference.json differs from the package's template filled from the plan."""
        path = self.path / "configs" / "inference.json"
        return path.is_file() and self.read_json("configs/inference.json") != inference_config(self.plan)

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the bundle by its path in it."""
        content = read_json(self.inside(name), BundleError)
        if not isinstance(content, dict):
            raise BundleError(f"{self.path / name}: must hold a JSON object; found {type(content).__name__}")
        return content

    def inside(self, name: str) -> Path:
        """Return the path of a file of the bundle.

        Raises:
            BundleError: a symbolic link on the way leads out of the bundle.
        """
        path = self.path / name
        if not path.resolve().is_relative_to(self.path.resolve()):
            raise BundleError(
                f"{path}: a link that leads out of the bundle, to {path.resolve()}; put the file itself into the bundle"
            )
        return path
