"""Run the whole pipeline on generated data, for `make demo` and `medseg demo`."""

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
_OUTPUTS = (BUNDLE, "run", "predictions", "evaluation", "pictures")
_MARKER = ".medseg-demo"
_NUM_PICTURES = 3


def run(out_dir: str | Path, epochs: int | None = None) -> float:
    """Generate phantoms, train, promote the weights, predict unseen scans, evaluate and draw pictures.

    Args:
        out_dir: folder for all results. A second run in the same folder replaces the results and keeps the generated
            data.
        epochs: epochs of training; None uses the number of the bundle.

    Returns:
        The mean Dice of the unseen phantoms.

    Raises:
        BundleError: `out_dir` contains files that the demo did not write, or the training failed.
    """
    out_dir, console, start = Path(out_dir).resolve(), Console(), time.monotonic()
    _reserve(out_dir)

    def print_step(title: str) -> None:
        console.print(f"[bold]{title}[/bold]  [dim]({time.monotonic() - start:.0f} s)[/dim]")

    manifest = read_manifest("phantom_cells")
    print_step("1/6  Generate phantom cells")
    prepare("phantom_cells", out_dir / "data")
    bundle = _copy_bundle(out_dir / BUNDLE)
    print_step("2/6  Train with python -m monai.bundle run")
    _train(bundle, out_dir / "data", out_dir / "run", epochs)
    print_step("3/6  Promote the weights into the bundle")
    promote(bundle.path, out_dir / "run")
    print_step("4/6  Predict unseen scans with a sliding window")
    unseen = case_files(manifest, out_dir / "data", part="test")
    predict_files(load(bundle.path), [case["image"] for case in unseen], out_dir / "predictions", overwrite=True)
    print_step("5/6  Evaluate")
    references = {case["case"]: case["label"] for case in unseen}
    result = evaluate(out_dir / "predictions", references, out_dir=out_dir / "evaluation", labels=manifest)
    result.print(console)
    print_step("6/6  Draw pictures and write the report")
    pictures = [picture for case in unseen[:_NUM_PICTURES] for picture in _draw(case, manifest, out_dir)]
    report = write_report(
        result,
        out_dir / "evaluation" / "report.html",
        images={case["case"]: case["image"] for case in unseen},
        labels=manifest,
        title="Phantom cells: unseen scans",
    )
    print_step("Done")
    for name, path in (
        ("bundle", bundle.path),
        ("predictions", out_dir / "predictions"),
        ("metrics", out_dir / "evaluation"),
        ("report", report.path),
        *(("picture", picture) for picture in pictures),
    ):
        console.print(f"  {name:12}{path}", soft_wrap=True, highlight=False)
    console.print(f"[bold]mean Dice of {len(unseen)} unseen phantoms: {result.mean():.3f}[/bold]")
    return result.mean()


def _reserve(out_dir: Path) -> None:
    """Mark the folder as written by the demo; refuse a folder with results that the demo did not write."""
    existing = [name for name in _OUTPUTS if (out_dir / name).exists()]
    if existing and not (out_dir / _MARKER).is_file():
        raise BundleError(
            f"{out_dir}: contains {existing[0]}, which the demo did not write; give an empty folder with --out"
        )
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / _MARKER).touch()


def _copy_bundle(target: Path) -> BundleFolder:
    """Copy the shipped bundle without its weights, because the demo trains its own."""
    checkout = Path(__file__).parents[1] / "bundles" / BUNDLE
    shutil.rmtree(target, ignore_errors=True)
    if checkout.is_dir():
        shutil.copytree(checkout, target, ignore=shutil.ignore_patterns("models"))
    else:
        with as_file(files("medseg.bundle") / BUNDLE) as shipped:
            shutil.copytree(shipped, target, ignore=shutil.ignore_patterns("models", "*.py"))
    (target / "models").mkdir(exist_ok=True)
    return BundleFolder(target)


def _train(bundle: BundleFolder, data: Path, run_dir: Path, epochs: int | None) -> None:
    shutil.rmtree(run_dir, ignore_errors=True)
    command = [
        sys.executable, "-W", "ignore", "-m", "monai.bundle", "run",
        "--config_file", "configs/train.json", "--meta_file", "configs/metadata.json",
        "--logging_file", "configs/logging.conf", "--dataset_dir", str(data), "--output_dir", str(run_dir),
    ]  # fmt: skip
    if epochs is not None:
        command += ["--max_epochs", str(epochs)]
    done = subprocess.run(command, cwd=bundle.path, check=False)
    if done.returncode != 0:
        raise BundleError(f"{bundle.path}: training failed with exit code {done.returncode}; see its message above")


def _draw(case: dict, manifest: Manifest, out_dir: Path) -> list[Path]:
    """Draw the same three planes of a scan with its prediction and with its reference."""
    scan = read_volume(case["image"])
    centre = tuple(n // 2 for n in scan.array.shape)
    pictures = []
    for kind, file in (
        ("prediction", out_dir / "predictions" / Path(case["image"]).name),
        ("reference", case["label"]),
    ):
        picture = out_dir / "pictures" / f"{case['case']}_{kind}.png"
        title = f"{case['case']}: {kind}"
        label_map = read_label_map(file).array
        three_planes(scan.array, label_map, scan.grid.affine, manifest.labels, picture, title, center=centre)
        pictures.append(picture)
    return pictures
