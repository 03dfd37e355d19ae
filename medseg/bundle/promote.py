"""Promote the weights of a training run into a bundle."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg import weights
from medseg.bundle.configs import ENSEMBLE, apply_plan, format_json
from medseg.bundle.folder import CALIBRATION, FINGERPRINT, RECORD, WEIGHTS, BundleFolder
from medseg.bundle.golden import GOLDEN, describe, make_golden_sample, sample_as_bytes
from medseg.bundle.int8_file import INT8
from medseg.errors import BundleError, WeightsError
from medseg.volumes import files


@dataclass(frozen=True)
class Promotion:
    """Promoted weights: their path, SHA-256 and size, and descriptions of the golden sample and the calibration."""

    weights: Path
    sha256: str
    megabytes: float
    golden_sample: str
    calibration: str


def promote(
    bundle: str | Path, run: str | Path, data: str | Path | None = None, manifest: str | Path | None = None
) -> Promotion:
    """Copy the final weights of a run and their record into a bundle's `models/`. The record holds their SHA-256.

    The network's fp32 logits for a generated input are stored beside the weights, as the golden sample. `medseg bundle
    verify` compares the weights with it, and a lower precision must agree with it before it is used. An ensemble bundle
    becomes one with a single network.

    Args:
        bundle: folder of the bundle.
        run: the `output_dir` of a finished training, with `model.pt` and `training.json`.
        data: folder of the training data, from which the bundle's fingerprint is computed. The confidence is
            calibrated on the fold that the training left out; if there is none, the bundle has no calibration. Without
            `data`, an earlier fingerprint and calibration are removed.
        manifest: name or file of its manifest; None takes that of the bundle's train.json.

    Raises:
        BundleError: the run is not finished, or was trained with another plan.
        WeightsError: the weights do not fit the bundle's network, or the record was written for other weights.
    """
    folder = BundleFolder(Path(bundle))
    source, record = finished_run(folder, run)
    digest = record["weights_sha256"]
    network = folder.plan.create_network()
    weights.load_into(network, source)  # fails before anything is replaced if the weights do not fit
    sample = make_golden_sample(network.eval(), folder.plan, digest)
    fingerprint = None
    if data is not None:
        from medseg.bundle.fingerprint import compute_fingerprint
        from medseg.datasets import read_manifest

        described = read_manifest(folder.manifest if manifest is None else manifest)
        fold = record.get("settings", {}).get("fold", "all")
        fingerprint = compute_fingerprint(folder.plan, described, data, fold)
    target = folder.path / WEIGHTS
    files.remove_leftovers(target.parent)
    is_ensemble = (folder.path / ENSEMBLE).is_file()
    members = [folder.path / ENSEMBLE, *target.parent.glob("model_*.pt")] if is_ensemble else []
    outdated = [folder.path / name for name in (FINGERPRINT, CALIBRATION, INT8)]
    with files.staged(target, outdated=[*outdated, *members]) as temporary:
        shutil.copyfile(source, temporary)
        if weights.sha256(temporary) != digest:
            raise WeightsError(f"{source}: was changed while it was copied; wait for the training to end")
        texts = {RECORD: json.dumps(record, indent=2)}
        if fingerprint is not None:
            texts[FINGERPRINT] = format_json(fingerprint.to_dict())
        for name, text in texts.items():
            temporary.with_name(Path(name).name).write_text(text + "\n", encoding="utf-8")
        temporary.with_name(Path(GOLDEN).name).write_bytes(sample_as_bytes(sample))
    if is_ensemble:
        apply_plan(folder.path)
    megabytes, calibration = source.stat().st_size / 1e6, _calibrate(folder, data, manifest)
    return Promotion(folder.path / WEIGHTS, digest, megabytes, describe(sample, folder.plan), calibration)


def finished_run(folder: BundleFolder, run: str | Path) -> tuple[Path, dict[str, Any]]:
    """Return the weights file and the record of a finished training of a bundle, checked.

    Raises:
        BundleError: the run is not finished, or was trained with another plan.
        WeightsError: the record was written for other weights.
    """
    run = Path(run)
    source, record_file = run / "model.pt", run / "training.json"
    for file in (source, record_file):
        if not file.is_file():
            raise BundleError(
                f"{run}: not the output_dir of a finished training, because {file.name} is missing; finish the training"
            )
    record = files.read_json(record_file, BundleError)
    try:
        plan_digest, weights_sha256 = record["plan_digest"], record["weights_sha256"]
    except (KeyError, TypeError) as error:
        raise BundleError(f"{record_file}: not the record of a finished training ({error!r}); train again") from None
    if plan_digest != folder.plan.digest:
        raise BundleError(
            f"{run}: trained with another plan than {folder.plan.source}; train again, or restore the plan"
        )
    if weights.sha256(source) != weights_sha256:
        raise WeightsError(f"{source}: its record {record_file.name} was written for other weights; train again")
    return source, record


def _calibrate(folder: BundleFolder, data: str | Path | None, manifest: str | Path | None) -> str:
    """Calibrate the promoted weights if a fold was left out of their training; return the result in words."""
    if data is None:
        return "none, because no data was given"
    from medseg.bundle.calibrate import write_calibration

    try:
        found = write_calibration(folder.path, data, manifest)
    except BundleError as error:
        return f"none: {error}"
    return f"temperature {found.temperature:g}, fitted on {found.cases} cases of {found.data}"
