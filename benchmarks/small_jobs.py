"""Time commands on a single small case, which mostly start up, beside the imports of PyTorch and MONAI.

    python benchmarks/small_jobs.py [--repeats 7] [--bundle DIR] [--image FILE --label FILE]

Every command runs in a new process. The commands alternate in every repeat, after one round that reads the files from
the disk. The table states medians: seconds on the clock, and seconds of the processor in all threads. Without --image,
a generated crop of the size of a hippocampus crop is segmented; the time does not depend on what it shows.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from timing import machine

SHAPE = (36, 50, 35)
BUNDLE = Path(__file__).parent.parent / "bundles" / "hippocampus_unet3d_segmentation"


def write_crop(folder: Path) -> tuple[Path, Path]:
    """Write a crop of 1 mm with a bright body in two parts, and its label map; return the two files."""
    index = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"))
    inside = (index**2 * np.array([6, 2, 8])[:, None, None, None]).sum(0) < 1
    labels = (inside * (1 + (index[1] > 0))).astype(np.uint8)
    image = np.random.default_rng(0).normal(100, 20, SHAPE) + 60 * inside
    files = folder / "crop.nii.gz", folder / "crop_label.nii.gz"
    for file, array in zip(files, (image.astype(np.float32), labels), strict=True):
        nib.save(nib.Nifti1Image(array, np.eye(4)), file)
    return files


def write_shifted(label: Path, folder: Path) -> Path:
    """Write a label map shifted by one voxel, as a prediction that differs from it; return the file."""
    reference = nib.load(label)
    file = folder / "shifted" / label.name
    file.parent.mkdir()
    nib.save(nib.Nifti1Image(np.roll(np.asarray(reference.dataobj), 1, axis=0), reference.affine), file)
    return file


def commands(bundle: Path, image: Path, label: Path, folder: Path) -> dict[str, list[str]]:
    """Return the command lines by the name that the table gives them."""
    python = sys.executable
    medseg = [python, "-c", "from medseg.cli import main; main()"]
    predict = [*medseg, "predict", str(bundle), str(image), "--out", str(folder / "out"), "--overwrite"]
    evaluate = [*medseg, "evaluate", str(write_shifted(label, folder)), str(label), "--out", str(folder / "evaluation")]
    return {
        '`python -c "import torch"`': [python, "-c", "import torch"],
        '`python -c "import monai"`': [python, "-c", "import monai"],
        "`medseg --help`": [*medseg, "--help"],
        "`medseg predict`, one crop": predict,
        "`medseg predict --backend torch`, one crop": [*predict, "--backend", "torch"],
        "`medseg evaluate`, one pair": evaluate,
        "`medseg bundle verify`": [*medseg, "bundle", "verify", str(bundle)],
    }


def run(command: list[str]) -> tuple[float, float]:
    """Run a command and return its seconds on the clock and of the processor; stop if it fails."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: failed\n{done.stdout}{done.stderr}")
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure every command and print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    parser.add_argument("--image", type=Path)
    parser.add_argument("--label", type=Path)
    options = parser.parse_args()
    if (options.image is None) != (options.label is None):
        parser.error("give --image and --label together, or neither")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["MEDSEG_CACHE_DIR"] = str(folder / "cache")
        image, label = write_crop(folder) if options.image is None else (options.image, options.label)
        lines = commands(options.bundle, image, label, folder)
        measured: dict[str, list[tuple[float, float]]] = {key: [] for key in lines}
        for repeat in range(options.repeats + 1):
            for key, command in lines.items():
                found = run(command)
                print(f"round {repeat} of {options.repeats}: {key} {found[0]:.2f} s", file=sys.stderr, flush=True)
                if repeat:  # the first round reads files from the disk, and OpenVINO converts the network
                    measured[key].append(found)
    print(f"\nMachine: {machine()}\n")
    print("| command | s | processor, s | s / `import monai` |\n|---|---:|---:|---:|")
    medians = {
        key: [statistics.median(values) for values in zip(*found, strict=True)] for key, found in measured.items()
    }
    monai = medians['`python -c "import monai"`'][0]
    for key, (seconds, processor) in medians.items():
        print(f"| {key} | {seconds:.2f} | {processor:.2f} | {seconds / monai:.2f} |")


if __name__ == "__main__":
    main()
