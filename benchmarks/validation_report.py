"""The report of a bundle's validation: predict the cases of a fold that the weights never saw, and compare.

    python benchmarks/validation_report.py BUNDLE --weights RUN/model.pt --dataset_dir DATA
        [--note TEXT] [--with_images --out FILE]

RUN is the output_dir of a training. Its fold, the cases of that fold and what the weights were trained on come from the
run's `training.json` and from those of the runs it started from; weights that saw one of the cases are refused. The
page is the one `medseg evaluate` writes, with the weights' sha256 and their training added to its head, and holds
numbers only unless `--with_images` is given. It goes to BUNDLE/docs/validation.html or to FILE. The two commands it
runs are printed; finished predictions in `--work` are not made again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
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


def trainings(file: Path) -> list[dict[str, Any]]:
    """The records of the run that made a weights file and of those it started from, the first one first.

    Raises:
        WeightsError: a record is missing, or was written for another file.
    """
    record_file = file.with_name("training.json")
    if not record_file.is_file():
        raise WeightsError(f"{file}: has no training.json beside it, which says what the weights were trained on")
    record = json.loads(record_file.read_text(encoding="utf-8"))
    if record["weights_sha256"] != weights.sha256(file):
        raise WeightsError(f"{file}: is not the file {record_file} was written for")
    before = record["settings"].get("init_weights")
    return [*(trainings(Path(before)) if before else []), record]


def judged_fold(runs: list[dict[str, Any]], manifest: Manifest) -> int | str:
    """The fold of the last run, if no run before it was trained on one of its cases.

    Raises:
        WeightsError: one was.
    """
    fold = runs[-1]["settings"]["fold"]
    judged = set(fold_cases(manifest, fold, "validation"))
    for run in runs:
        if seen := sorted(judged & set(fold_cases(manifest, run["settings"]["fold"], "training"))):
            raise WeightsError(f"{seen[0]} and {len(seen) - 1} other cases of fold {fold} were trained on")
    return fold


def provenance(bundle: BundleFolder, manifest: Manifest, runs: list[dict[str, Any]], note: str) -> dict[str, str]:
    """What the page's head says beyond what `medseg evaluate` knows."""
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
    """Links to the scans and label maps of the judged cases, in `scans` and `references`."""
    for case in case_files(manifest, root, fold, "validation"):
        images = case["image"] if isinstance(case["image"], list) else [case["image"]]
        for role, files in (("scans", images), ("references", [case["label"]])):
            (folder / role).mkdir(parents=True, exist_ok=True)
            for file in map(Path, files):
                link = folder / role / file.name
                link.unlink(missing_ok=True)
                link.symlink_to(file.resolve())


def run(*arguments: str, folder: Path) -> None:
    """A medseg command in a folder, printed first."""
    print("$", shlex.join(["medseg", *arguments]), flush=True)
    program = "import sys; sys.argv[0] = 'medseg'; from medseg.cli import main; main()"
    subprocess.run([sys.executable, "-c", program, *arguments], cwd=folder, check=True)


def with_facts(page: str, facts: dict[str, str]) -> str:
    """The page with more facts in its head.

    Raises:
        ValueError: it has no list of facts, or several.
    """
    if page.count(FACTS) != 1:
        raise ValueError(f"the page must have one {FACTS}, found {page.count(FACTS)}")
    added = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return page.replace(FACTS, FACTS + added)


def make(bundle: Path, file: Path, root: Path, out: Path, work: Path, note: str, with_images: bool) -> None:
    """Predict, evaluate, and write the page."""
    folder = BundleFolder(bundle.resolve())
    name = folder.read_json("configs/train.json")["manifest"]["name_or_path"]
    manifest = read_manifest(name)
    runs = trainings(file.resolve())
    fold = judged_fold(runs, manifest)
    work.mkdir(parents=True, exist_ok=True)
    link_cases(manifest, root, fold, work)
    run("predict", str(folder.path), "scans", "--out", "predictions", "--weights", str(file.resolve()), folder=work)
    options = ["--labels", name, *INSTANCES.get(name, []), *(["--images", "scans"] if with_images else ["--no-images"])]
    run("evaluate", "predictions", "references", "--out", "evaluation", *options, folder=work)
    page = (work / "evaluation" / "report.html").read_text(encoding="utf-8")
    with replacing(out) as temporary:
        temporary.write_text(with_facts(page, provenance(folder, manifest, runs, note)), encoding="utf-8")
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--weights", type=Path, required=True, help="model.pt of a run, training.json beside it")
    parser.add_argument("--dataset_dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="the page; BUNDLE/docs/validation.html by default")
    parser.add_argument("--work", type=Path, help="where predictions and numbers stay; by default nowhere")
    parser.add_argument("--note", default="", help="a sentence for the page's head")
    parser.add_argument("--with_images", action="store_true", help="a page with the patients' images: not for others")
    given = parser.parse_args()
    if given.with_images and given.out is None:
        parser.error("a page with images needs --out: it does not belong into the bundle")
    with tempfile.TemporaryDirectory() as temporary:
        out = given.out or given.bundle / "docs" / "validation.html"
        work = given.work or Path(temporary)
        make(given.bundle, given.weights, given.dataset_dir.resolve(), out, work, given.note, given.with_images)


if __name__ == "__main__":
    main()
