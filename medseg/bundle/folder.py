"""Where the files of a bundle lie, and what they say, read as plain data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from medseg import weights
from medseg.bundle.configs import inference_config
from medseg.errors import BundleError, WeightsError
from medseg.plan import Plan, read_plan

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
        return read_plan(self.path / "configs" / "plan.json")

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
        path = self.weights_path
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
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except OSError as error:
            raise BundleError(f"{self.path / name}: could not be read: {error.strerror}") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise BundleError(f"{self.path / name}: not valid JSON ({error})") from None
