"""Making a run's weights the bundle's own."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from medseg import weights
from medseg.bundle.folder import RECORD, WEIGHTS, BundleFolder
from medseg.bundle.golden import describe, make_golden_sample, save_golden_sample
from medseg.errors import BundleError, WeightsError
from medseg.volumes import files


@dataclass(frozen=True)
class Promotion:
    """What was promoted: the weights' place, size and checksum, and what the golden sample holds."""

    weights: Path
    sha256: str
    megabytes: float
    golden_sample: str


def promote(bundle: str | Path, run: str | Path) -> Promotion:
    """Copy a run's final weights and record into a bundle's `models/`; the record holds their sha256.

    The network is run in fp32 on a generated input, and the result is kept beside the weights: the golden sample that
    `medseg bundle verify` compares with, and that low precision must agree with before it is used.

    Args:
        bundle: the bundle's folder.
        run: the `output_dir` of a finished training (`model.pt`, `training.json`).

    Raises:
        BundleError: the run is unfinished or was trained with another plan.
        WeightsError: the weights do not fit the bundle's network, or are not those the record was written for.
    """
    folder, run = BundleFolder(Path(bundle)), Path(run)
    source, record_file = run / "model.pt", run / "training.json"
    for file in (source, record_file):
        if not file.is_file():
            raise BundleError(f"{run}: {file.name} is missing, so this is not the output_dir of a finished training")
    try:
        record = json.loads(record_file.read_text(encoding="utf-8"))
        plan_digest, weights_sha256 = record["plan_digest"], record["weights_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{record_file}: is not the record of a finished training ({error!r}); train again") from None
    if plan_digest != folder.plan.digest:
        raise BundleError(
            f"{run}: was trained with another plan than {folder.plan.source}; train again, or restore the plan"
        )
    digest = weights.sha256(source)
    if digest != weights_sha256:
        raise WeightsError(f"{source}: is not the file its record {record_file.name} was written for; train again")
    network = folder.plan.create_network()
    weights.load_into(network, source)  # refuses what does not fit, before anything is replaced
    sample = make_golden_sample(network.eval(), folder.plan, digest)
    with files.replacing(folder.path / WEIGHTS) as temporary:
        shutil.copyfile(source, temporary)
    with files.replacing(folder.path / RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    save_golden_sample(folder, sample)
    return Promotion(folder.path / WEIGHTS, digest, source.stat().st_size / 1e6, describe(sample, folder.plan))
