"""Report the validation of a bundle: predict the cases of a fold that the weights were not trained on, and evaluate.

    python benchmarks/validation_report.py BUNDLE --weights RUN/model.pt --dataset_dir DATA
        [--started_from RUN0/model.pt …] [--note TEXT] [--with_images --out FILE]

RUN is the output_dir of a training. If it started from the weights of other runs, name all of them with
`--started_from`. The fold and its cases come from the run's `training.json`. Weights that were trained on one of these
cases are refused, also if that happened in a run they started from. The page is that of `medseg evaluate`, with the
SHA-256 of the weights and their training added to its head. It holds numbers only, unless `--with_images` is given, and
goes to BUNDLE/docs/validation.html or to FILE. The two commands that run are printed; finished predictions in `--work`
are not repeated.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from medseg import weights
from medseg.bundle import BundleFolder
from medseg.datasets import Manifest, case_files, fold_cases, read_manifest
from medseg.errors import WeightsError
from medseg.volumes import replacing

FACTS = '<dl class="facts">'
INSTANCES = {"em_membrane": ["--instances", "em"]}


def trainings(file: Path, started_from: Sequence[Path] = ()) -> list[dict[str, Any]]:
    """Return the records of the run that wrote a weights file and of the runs it started from, the first run first.

    Args:
        file: weights of the last run.
        started_from: weights of all earlier runs, in any order.

    Raises:
        WeightsError: a record is missing or was written for another file, or an earlier run is not named.
    """
    earlier = {record["weights_sha256"]: record for record in map(_record, started_from)}
    runs = [_record(file)]
    while runs[0]["settings"].get("init_weights"):
        digest = runs[0].get("initial_weights_sha256")
        if digest not in earlier:
            raise WeightsError(
                f"{file}: a training started from the weights {runs[0]['settings']['init_weights']} with the SHA-256 "
                f"{digest}, and no such weights are given; name them with --started_from"
            )
        runs.insert(0, earlier.pop(digest))
    return runs


def _record(file: Path) -> dict[str, Any]:
    record_file = file.with_name("training.json")
    if not record_file.is_file():
        raise WeightsError(f"{file}: no training.json beside it, which records what the weights were trained on")
    record = json.loads(record_file.read_text(encoding="utf-8"))
    if record["weights_sha256"] != weights.sha256(file):
        raise WeightsError(f"{file}: is not the file {record_file} was written for")
    return record


def judged_fold(runs: list[dict[str, Any]], manifest: Manifest) -> int | str:
    """Return the fold of the last run.

    Raises:
        WeightsError: one of its cases was trained on, in the last run or in an earlier one.
    """
    fold = runs[-1]["settings"]["fold"]
    judged = set(fold_cases(manifest, fold, "validation"))
    for run in runs:
        if trained := sorted(judged & set(fold_cases(manifest, run["settings"]["fold"], "training"))):
            raise WeightsError(f"{trained[0]}: this and {len(trained) - 1} other cases of fold {fold} were trained on")
    return fold


def provenance(bundle: BundleFolder, manifest: Manifest, runs: list[dict[str, Any]], note: str) -> dict[str, str]:
    """Return the facts about weights and training for the page's head, which `medseg evaluate` cannot know."""
    fold = runs[-1]["settings"]["fold"]
    trained = set(fold_cases(manifest, fold, "training"))
    folds = ", ".join(str(number) for number, cases in sorted(manifest.folds.items()) if trained >= set(cases))
    rounds = " and ".join(str(run["epochs"]) for run in runs)
    steps = sum(run["steps"] for run in runs)
    adjusted = runs[-1].get("logit_adjustment", {})
    after = [f"; afterwards the logit of {name} + {adjusted[name]}" for name in bundle.plan.labels if name in adjusted]
    facts = {
        "bundle": f"{bundle.name}, plan {bundle.plan.digest}",
        "weights": f"SHA-256 {runs[-1]['weights_sha256']}",
        "trained on": (
            f"{runs[-1]['cases']} cases of {manifest.name}, fold {folds}; {rounds} epochs, {steps:,} steps"
            + "".join(after)
        ),
        "judged on": f"fold {fold} of {manifest.name}, which none of these trainings saw",
    }
    return {**facts, "note": note} if note else facts


def link_cases(manifest: Manifest, root: Path, fold: int | str, folder: Path) -> None:
    """Link the scans and label maps of the evaluated cases into `scans` and `references`."""
    for case in case_files(manifest, root, fold, "validation"):
        images = case["image"] if isinstance(case["image"], list) else [case["image"]]
        for role, files in (("scans", images), ("references", [case["label"]])):
            (folder / role).mkdir(parents=True, exist_ok=True)
            for file in map(Path, files):
                link = folder / role / file.name
                link.unlink(missing_ok=True)
                link.symlink_to(file.resolve())


def run(*arguments: str, folder: Path) -> None:
    """Print a medseg command and run it in a folder."""
    print("$", shlex.join(["medseg", *arguments]), flush=True)
    program = "import sys; sys.argv[0] = 'medseg'; from medseg.cli import main; main()"
    subprocess.run([sys.executable, "-c", program, *arguments], cwd=folder, check=True)


def with_facts(page: str, facts: dict[str, str]) -> str:
    """Return the page with more facts in its head.

    Raises:
        ValueError: the page has no list of facts, or several.
    """
    if page.count(FACTS) != 1:
        raise ValueError(f"the page must have one {FACTS}, found {page.count(FACTS)}")
    added = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return page.replace(FACTS, FACTS + added)


def write_page(
    bundle: Path,
    runs: list[dict[str, Any]],
    file: Path,
    root: Path,
    out: Path,
    work: Path,
    note: str,
    with_images: bool,
) -> None:
    """Predict, evaluate, and write the page."""
    folder = BundleFolder(bundle.resolve())
    name = folder.read_json("configs/train.json")["manifest"]
    manifest = read_manifest(name)
    fold = judged_fold(runs, manifest)
    work.mkdir(parents=True, exist_ok=True)
    link_cases(manifest, root, fold, work)
    options = ["--precision", "fp32", "--weights", str(file.resolve())]
    run("predict", str(folder.path), "scans", "--out", "predictions", *options, folder=work)
    options = ["--labels", name, *INSTANCES.get(name, []), *(["--images", "scans"] if with_images else ["--no-images"])]
    run("evaluate", "predictions", "references", "--out", "evaluation", *options, folder=work)
    page = (work / "evaluation" / "report.html").read_text(encoding="utf-8")
    with replacing(out) as temporary:
        temporary.write_text(with_facts(page, provenance(folder, manifest, runs, note)), encoding="utf-8")
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--weights", type=Path, required=True, help="model.pt of a run, with training.json beside it")
    parser.add_argument(
        "--started_from", type=Path, nargs="*", default=[], help="model.pt of all runs that the run started from"
    )
    parser.add_argument("--dataset_dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="the page; BUNDLE/docs/validation.html by default")
    parser.add_argument(
        "--work", type=Path, help="folder to keep predictions and numbers in; they are deleted by default"
    )
    parser.add_argument("--note", default="", help="a sentence for the page's head")
    parser.add_argument(
        "--with_images", action="store_true", help="show the patients' images: such a page must not be shared"
    )
    given = parser.parse_args()
    if given.with_images and given.out is None:
        parser.error("a page with images needs --out: it does not belong into the bundle")
    with tempfile.TemporaryDirectory() as temporary:
        out = given.out or given.bundle / "docs" / "validation.html"
        work = given.work or Path(temporary)
        runs = trainings(given.weights, given.started_from)
        root = given.dataset_dir.resolve()
        write_page(given.bundle, runs, given.weights, root, out, work, given.note, given.with_images)


if __name__ == "__main__":
    main()
