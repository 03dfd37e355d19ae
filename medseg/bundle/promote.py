"""Promote the weights of a training run into a bundle."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg import weights
from medseg.bundle.configs import ENSEMBLE, apply_plan
from medseg.bundle.fingerprint import write_fingerprint
from medseg.bundle.folder import FINGERPRINT, RECORD, WEIGHTS, BundleFolder
from medseg.bundle.golden import describe, make_golden_sample, save_golden_sample
from medseg.errors import BundleError, WeightsError
from medseg.volumes import files


@dataclass(frozen=True)
class Promotion:
    """Promoted weights: their path, SHA-256 and size, and a description of the golden sample."""

    weights: Path
    sha256: str
    megabytes: float
    golden_sample: str


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
        data: folder of the training data, from which the bundle's fingerprint is computed. Without it, an earlier
            fingerprint is removed.
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
    if data is None:
        (folder.path / FINGERPRINT).unlink(missing_ok=True)
    else:
        write_fingerprint(folder.path, data, manifest, fold=record.get("settings", {}).get("fold", "all"))
    with files.replacing(folder.path / WEIGHTS) as temporary:
        shutil.copyfile(source, temporary)
    with files.replacing(folder.path / RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    save_golden_sample(folder, sample)
    if (folder.path / ENSEMBLE).is_file():
        (folder.path / ENSEMBLE).unlink()
        for member in (folder.path / "models").glob("model_*.pt"):
            member.unlink()
        apply_plan(folder.path)
    return Promotion(folder.path / WEIGHTS, digest, source.stat().st_size / 1e6, describe(sample, folder.plan))


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
    try:
        record = json.loads(record_file.read_text(encoding="utf-8"))
        plan_digest, weights_sha256 = record["plan_digest"], record["weights_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{record_file}: not the record of a finished training ({error!r}); train again") from None
    if plan_digest != folder.plan.digest:
        raise BundleError(
            f"{run}: trained with another plan than {folder.plan.source}; train again, or restore the plan"
        )
    if weights.sha256(source) != weights_sha256:
        raise WeightsError(f"{source}: its record {record_file.name} was written for other weights; train again")
    return source, record
