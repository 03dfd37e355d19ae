"""Write a bundle that holds several networks, such as those of the folds of a cross-validation."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from medseg import weights
from medseg.bundle.configs import ENSEMBLE, apply_plan, format_json, member_file
from medseg.bundle.fingerprint import write_fingerprint
from medseg.bundle.folder import RECORD, BundleFolder
from medseg.bundle.golden import GOLDEN, ensemble_sha256, make_golden_sample, sample_as_bytes
from medseg.bundle.promote import finished_run
from medseg.errors import BundleError
from medseg.networks import Ensemble
from medseg.volumes.files import replacing, swap_in


def write_ensemble(
    bundle: str | Path,
    runs: Sequence[str | Path],
    out: str | Path | None = None,
    data: str | Path | None = None,
    manifest: str | Path | None = None,
) -> Path:
    """Write a copy of a bundle with the weights of several finished trainings.

    The members' logits are averaged by `medseg predict` and by MONAI's runner. Each network is a file of its own in
    `models/`: `model.pt`, `model_2.pt`, …; `models/ensemble.json` lists them with their SHA-256.

    Args:
        bundle: the bundle that was trained.
        runs: the `output_dir` of each training, at least two.
        out: folder to write; None takes `<bundle>_ensemble` beside the first run. An earlier ensemble is replaced.
        data: folder of the training data, from which the fingerprint is computed; None writes none.
        manifest: name or file of its manifest; None takes that of the bundle's train.json.

    Returns:
        The written folder.

    Raises:
        BundleError: a run is not finished or was trained with another plan, or `out` is another bundle.
        WeightsError: weights do not fit the bundle's network.
    """
    folder = BundleFolder(Path(bundle))
    if len(runs) < 2:
        raise BundleError(f"{folder.path}: an ensemble needs at least two trainings; found {len(runs)}")
    target = Path(runs[0]).parent / f"{folder.name}_ensemble" if out is None else Path(out)
    if target.exists() and not (target / ENSEMBLE).is_file():
        raise BundleError(f"{target}: exists and is no ensemble bundle; remove it, or choose another folder")
    finished = [finished_run(folder, run) for run in runs]
    networks = []
    for source, _ in finished:
        network = folder.plan.create_network()
        weights.load_into(network, source)
        networks.append(network.eval())
    with replacing(target.with_name(f"{target.name}.new")) as temporary:
        shutil.copytree(folder.path, temporary, ignore=shutil.ignore_patterns("models", "validation.html"))
        (temporary / "models").mkdir()
        members = []
        for number, (source, record) in enumerate(finished, start=1):
            shutil.copyfile(source, temporary / member_file(number))
            members.append({"file": Path(member_file(number)).name, **record})
        (temporary / RECORD).write_text(format_json(finished[0][1]) + "\n", encoding="utf-8")
        (temporary / ENSEMBLE).write_text(format_json({"members": members}) + "\n", encoding="utf-8")
        apply_plan(temporary)
        if data is not None:
            write_fingerprint(temporary, data, manifest)
        digest = ensemble_sha256([record["weights_sha256"] for _, record in finished])
        sample = make_golden_sample(Ensemble(networks), folder.plan, digest)
        (temporary / GOLDEN).write_bytes(sample_as_bytes(sample))
    swap_in(target.with_name(f"{target.name}.new"), target)
    return target
