"""Find and read the files of a bundle as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from medseg import weights
from medseg.bundle.configs import ENSEMBLE, inference_config, member_file, num_members
from medseg.errors import BundleError, WeightsError
from medseg.inference.confidence import Calibration, read_calibration
from medseg.inference.plausibility import FINGERPRINT, Fingerprint, read_fingerprint
from medseg.plan import Plan, read_plan
from medseg.volumes.files import read_json

# Value of train.json for a manifest that lies in the bundle, as a planned one does.
OWN_MANIFEST = "$@bundle_root + '/configs/manifest.yaml'"
WEIGHTS, RECORD, CALIBRATION = "models/model.pt", "models/model.json", "models/calibration.json"


@dataclass(frozen=True)
class BundleFolder:
    """A bundle on disk. JSON files and tensors are read as data; nothing is evaluated, imported or applied.

    Args:
        path: folder of the bundle.

    Raises:
        BundleError: medseg cannot load a bundle from the folder.
    """

    path: Path

    def __post_init__(self) -> None:
        if not self.path.is_dir():
            raise BundleError(f"{self.path}: no such folder; give the folder of a bundle, which has configs/plan.json")
        for name in ("configs/plan.json", "configs/metadata.json"):
            if not (self.path / name).is_file():
                raise BundleError(
                    f"{self.path}: not a bundle of medseg, because {name} is missing; run other MONAI bundles with "
                    "`python -m monai.bundle run`"
                )

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.resolve().name

    @cached_property
    def plan(self) -> Plan:
        """The plan, read from configs/plan.json and checked."""
        return read_plan(self.inside("configs/plan.json"))

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """Content of configs/metadata.json."""
        return self.read_json("configs/metadata.json")

    @cached_property
    def fingerprint(self) -> Fingerprint | None:
        """models/fingerprint.json: what the training cases were like; None if the bundle has none.

        Raises:
            BundleError: the file is not a fingerprint.
        """
        return read_fingerprint(self.inside(FINGERPRINT)) if (self.path / FINGERPRINT).is_file() else None

    def calibration(self, weights_sha256: Sequence[str]) -> Calibration | None:
        """Return models/calibration.json; None if there is none, or if it belongs to other weights than these.

        Raises:
            BundleError: the file is not a calibration, or names labels that the plan does not have.
        """
        if not (self.path / CALIBRATION).is_file():
            return None
        found = read_calibration(self.inside(CALIBRATION))
        unknown = {*found.thresholds, *found.dice_offset} - {*self.plan.labels}
        if unknown:
            raise BundleError(f"{self.path / CALIBRATION}: unknown label {min(unknown)!r}; calibrate the bundle again")
        return found if list(weights_sha256) == [found.weights_sha256] else None

    @property
    def manifest(self) -> str | Path:
        """Name of the data set's manifest in train.json, or its file in the bundle.

        Raises:
            BundleError: train.json names no manifest.
        """
        manifest = self.read_json("configs/train.json").get("manifest")
        if not isinstance(manifest, str):
            raise BundleError(f"{self.path}: train.json names no manifest; give one")
        return self.inside("configs/manifest.yaml") if manifest == OWN_MANIFEST else manifest

    @property
    def recorded_sha256(self) -> str | None:
        """SHA-256 of the promoted weights as recorded in models/model.json; None if it is not recorded."""
        if not (self.path / RECORD).is_file():
            return None
        digest = self.read_json(RECORD).get("weights_sha256")
        return digest if isinstance(digest, str) else None

    @property
    def members(self) -> list[tuple[Path, str]]:
        """Weights file and SHA-256 of each network of the bundle, checked: one, or more for an ensemble.

        Raises:
            WeightsError: weights are missing, their SHA-256 is not recorded, or it differs from the record.
            BundleError: models/ensemble.json does not list the members.
        """
        if not (self.path / ENSEMBLE).is_file():
            return [self.checked_weights()]
        members = self.read_json(ENSEMBLE).get("members")
        names = [item.get("file") if isinstance(item, dict) else None for item in members or ()]
        expected = [Path(member_file(number)).name for number in range(1, len(names) + 1)]
        if not isinstance(members, list) or names != expected or len(names) < 2:
            raise BundleError(
                f"{self.path / ENSEMBLE}: must list the members model.pt, model_2.pt, … in this order; found "
                f"{names}; write the ensemble again"
            )
        return [
            self._checked(member_file(number), item.get("weights_sha256"))
            for number, item in enumerate(members, start=1)
        ]

    def checked_weights(self) -> tuple[Path, str]:
        """Return the path of the promoted weights and their SHA-256, after comparing it with the recorded one.

        For an ensemble, these are the weights of its first member; see `members`.

        Raises:
            WeightsError: there are no weights, their SHA-256 is not recorded, or it differs from the record.
        """
        return self._checked(WEIGHTS, self.recorded_sha256)

    def _checked(self, name: str, recorded: object) -> tuple[Path, str]:
        path = self.inside(name)
        if not path.is_file():
            raise WeightsError(
                f"{path}: no such file, the bundle has no weights yet; train it and run "
                f"`medseg bundle promote {self.path} --from RUN`, or give other weights with --weights"
            )
        found = weights.sha256(path)
        if not isinstance(recorded, str):
            raise WeightsError(
                f"{self.path / RECORD}: no weights_sha256 of {name} is recorded; promote the weights again"
            )
        if found != recorded:
            raise WeightsError(
                f"{path}: the file was changed or is incomplete; found the SHA-256 {found[:12]}…, expected "
                f"{recorded[:12]}…; restore the file or promote weights that you trust"
            )
        return path, found

    def inference_differs_from_template(self) -> bool:
        """Return True if configs/inference.json differs from the package's template filled from the plan."""
        path = self.path / "configs" / "inference.json"
        return path.is_file() and self.read_json("configs/inference.json") != inference_config(
            self.plan, num_members(self.path)
        )

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file of the bundle, given its path in the bundle."""
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
