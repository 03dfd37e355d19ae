"""Compare the labels of imported models with those of nnU-Net's own predictor, voxel by voxel.

    python benchmarks/nnunet_equality.py MODEL_FOLDER SCAN [SCAN...] [--mirroring] [--fold N ...] [--backend torch]

A scan is a file, or the files of its channels separated by commas. Both programs run in fp32 on the CPU with tiles that
overlap by half. The table has the share of voxels with equal labels among those that either program calls foreground,
and the number of voxels that differ. Needs nnU-Net 2.8.1, which `make bench` installs.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from nnunet_oracle import nnunet_labels

import medseg
from medseg.bundle import import_bundle


def compare(
    model: Path, scans: Sequence[str], mirroring: bool = False, folds: Sequence[str] = (), backend: str = "torch"
) -> Iterator[tuple[str, int, int]]:
    """Yield the name of each scan, the number of voxels that either program calls foreground, and how many differ.

    Args:
        model: folder of a model of nnU-Net.
        scans: one file each, or one per channel separated by commas.
        mirroring: with test-time mirroring.
        folds: none takes all.
        backend: of medseg.
    """
    with tempfile.TemporaryDirectory() as folder:
        bundle = import_bundle(model, Path(folder) / "imported_segmentation", folds=list(folds))
        predictor = medseg.load(
            bundle.path, device="cpu", backend=backend, precision="fp32", tta="flip" if mirroring else "none"
        )
        for scan in scans:
            files = scan.split(",")
            ours = predictor.predict(files if len(files) > 1 else files[0]).array
            theirs = nnunet_labels(model, files, mirroring, folds or None)
            considered = (ours != 0) | (theirs != 0)
            yield Path(files[0]).name, int(considered.sum()), int((ours != theirs).sum())


def main() -> None:
    """Print one row per scan and one for all scans together."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of a model of nnU-Net")
    parser.add_argument("scans", nargs="+", help="one file, or one per channel separated by commas")
    parser.add_argument("--mirroring", action="store_true", help="with test-time mirroring")
    parser.add_argument("--fold", nargs="*", default=[], help="folds; default: all")
    parser.add_argument("--backend", default="torch", choices=("torch", "openvino"))
    arguments = parser.parse_args()
    total = differing = 0
    print("| scan | voxels in question | different | equal |\n|---|---:|---:|---:|")
    rows = compare(arguments.model, arguments.scans, arguments.mirroring, arguments.fold, arguments.backend)
    for name, count, different in rows:
        total, differing = total + count, differing + different
        print(f"| {name} | {count} | {different} | {1 - different / max(count, 1):.4%} |", flush=True)
    print(f"| all {len(arguments.scans)} | {total} | {differing} | {1 - differing / max(total, 1):.4%} |")


if __name__ == "__main__":
    main()
