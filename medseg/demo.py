"""The whole pipeline on generated data: what `make demo` and `medseg demo` run."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from importlib.resources import as_file, files
from pathlib import Path

from rich.console import Console

from medseg.bundle import BundleFolder, load, promote
from medseg.datasets import Manifest, case_files, prepare, read_manifest
from medseg.errors import BundleError
from medseg.evaluation import evaluate
from medseg.figures import three_planes
from medseg.inference import predict_files
from medseg.reporting import write_report
from medseg.volumes import read_label_map, read_volume

BUNDLE = "phantom_cells_segmentation"
MADE = (BUNDLE, "run", "predictions", "evaluation", "pictures")
MARK = ".medseg-demo"
SHOWN = 3


def run(out: str | Path, epochs: int | None = None) -> float:
    """Generate phantoms, train, promote, predict unseen scans, evaluate, draw.

    Args:
        out: folder for everything; a second run there starts afresh but keeps the generated data.
        epochs: epochs of training; None takes the bundle's own number.

    Returns:
        The mean Dice of the unseen phantoms.

    Raises:
        BundleError: `out` holds files of somebody else where the demo would write, or training failed.
    """
    out, console, started = Path(out).resolve(), Console(), time.monotonic()
    _claim(out)

    def step(title: str) -> None:
        console.print(f"[bold]{title}[/bold]  [dim]({time.monotonic() - started:.0f} s)[/dim]")

    manifest = read_manifest("phantom_cells")
    step("1/6  Generate phantom cells")
    prepare("phantom_cells", out / "data")
    bundle = _copy_bundle(out / BUNDLE)
    step("2/6  Train with python -m monai.bundle run")
    _train(bundle, out / "data", out / "run", epochs)
    step("3/6  Promote the weights into the bundle")
    promote(bundle.path, out / "run")
    step("4/6  Predict unseen scans by sliding window")
    unseen = case_files(manifest, out / "data", part="test")
    predict_files(load(bundle.path), [case["image"] for case in unseen], out / "predictions", overwrite=True)
    step("5/6  Evaluate")
    references = {case["case"]: case["label"] for case in unseen}
    result = evaluate(out / "predictions", references, out_dir=out / "evaluation", labels=manifest)
    result.print(console)
    step("6/6  Draw and report")
    pictures = [picture for case in unseen[:SHOWN] for picture in _draw(case, manifest, out)]
    scans = {case["case"]: case["image"] for case in unseen}
    report = write_report(
        result, out / "evaluation" / "report.html", images=scans, labels=manifest, title="Phantom cells: unseen scans"
    )
    step("Done")
    for what, where in (
        ("bundle", bundle.path),
        ("predictions", out / "predictions"),
        ("metrics", out / "evaluation"),
        ("report", report.path),
        *(("picture", picture) for picture in pictures),
    ):
        console.print(f"  {what:12}{where}", soft_wrap=True, highlight=False)
    console.print(f"[bold]mean Dice of {len(unseen)} unseen phantoms: {result.mean():.3f}[/bold]")
    return result.mean()


def _claim(out: Path) -> None:
    """Mark the folder as the demo's, which replaces what it made before, and nobody else's files."""
    foreign = [name for name in MADE if (out / name).exists()]
    if foreign and not (out / MARK).is_file():
        raise BundleError(f"{out}: {foreign[0]} is there and no demo made it; give an empty folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()


def _copy_bundle(target: Path) -> BundleFolder:
    """A fresh copy of the shipped bundle without weights, so that the demo trains its own and changes nothing else."""
    checkout = Path(__file__).parents[1] / "bundles" / BUNDLE
    shutil.rmtree(target, ignore_errors=True)
    if checkout.is_dir():
        shutil.copytree(checkout, target, ignore=shutil.ignore_patterns("models"))
    else:
        with as_file(files("medseg.bundle") / BUNDLE) as shipped:
            shutil.copytree(shipped, target, ignore=shutil.ignore_patterns("models", "*.py"))
    (target / "models").mkdir(exist_ok=True)
    return BundleFolder(target)


def _train(bundle: BundleFolder, data: Path, run: Path, epochs: int | None) -> None:
    shutil.rmtree(run, ignore_errors=True)
    command = [
        sys.executable, "-W", "ignore", "-m", "monai.bundle", "run",
        "--config_file", "configs/train.json", "--meta_file", "configs/metadata.json",
        "--logging_file", "configs/logging.conf", "--dataset_dir", str(data), "--output_dir", str(run),
    ]  # fmt: skip
    if epochs is not None:
        command += ["--max_epochs", str(epochs)]
    done = subprocess.run(command, cwd=bundle.path, check=False)
    if done.returncode != 0:
        raise BundleError(f"{bundle.path}: training stopped with exit code {done.returncode}; its own message is above")


def _draw(case: dict, manifest: Manifest, out: Path) -> list[Path]:
    """The same three planes of a scan with its prediction and with its reference."""
    scan = read_volume(case["image"])
    middle = tuple(n // 2 for n in scan.array.shape)
    pictures = []
    for what, file in (("prediction", out / "predictions" / Path(case["image"]).name), ("reference", case["label"])):
        picture = out / "pictures" / f"{case['case']}_{what}.png"
        label_map = read_label_map(file).array
        title = f"{case['case']}: {what}"
        three_planes(scan.array, label_map, scan.grid.affine, manifest.labels, picture, title, center=middle)
        pictures.append(picture)
    return pictures
