"""Run tiny trainings of the phantom bundle as users start them, in separate processes."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from bundle.tiny_bundles import change_plan, copy_bundle

from medseg.datasets import generate_phantoms, read_manifest


def tiny_bundle(root: Path) -> Path:
    """Copy the phantom bundle with a small network, and make six phantoms: four to train on, one to validate."""
    folder = copy_bundle("phantom_cells_segmentation", root / "phantom_cells_segmentation")
    change_plan(folder, {"channels": [4, 8, 8], "strides": [2, 2]}, patch=[16, 16, 16], tile=[16, 16, 16])
    generate_phantoms(root / "data", num_cases=6, seed=5, shape=(24, 24, 16))
    manifest = yaml.safe_load(read_manifest("phantom_cells").path.read_text(encoding="utf-8"))
    manifest["cases"] = [f"phantom_{n:03d}" for n in range(6)]
    manifest["folds"] = {0: ["phantom_005"], 1: ["phantom_004"], 2: [f"phantom_{n:03d}" for n in range(4)]}
    (root / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    return folder


def command(
    bundle: Path, output_dir: Path, *configs: str, launcher: Sequence[str] = (sys.executable,), **overrides: object
) -> list[str]:
    """Return the command for `train` and the configs laid over it."""
    files = [str(bundle / "configs" / f"{name}.json") for name in ("train", *configs)]
    given = {
        "config_file": str(files) if configs else files[0],
        "meta_file": bundle / "configs" / "metadata.json",
        "logging_file": bundle / "configs" / "logging.conf",
        "bundle_root": bundle,
        "dataset_dir": bundle.parent / "data",
        "manifest": bundle.parent / "manifest.yaml",
        "output_dir": output_dir,
        "precision": "fp32",
        "val_interval": 2,
        **overrides,
    }
    options = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    return [*launcher, "-m", "monai.bundle", "run", *options]


def environment(**more: str) -> dict[str, str]:
    """Return the environment with one thread, because sums differ between one and two."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **more}


def run(arguments: Sequence[str]) -> str:
    """Run a command that must succeed, and return its output."""
    done = subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr
