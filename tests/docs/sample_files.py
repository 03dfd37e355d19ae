"""Generate small files with the names that the pages use."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from bundle.tiny_bundles import change_plan, copy_bundle
from docs.markdown_blocks import REPOSITORY
from scipy.ndimage import zoom

from medseg.bundle import promote
from medseg.datasets import generate_phantoms
from medseg.inference.regions import read_template
from medseg.plan import read_plan
from medseg.volumes import Grid, Volume, write_volume
from medseg.weights import sha256

CASES = ("hippocampus_001", "hippocampus_003")  # both are in the shipped manifest


def make_sample_files(folder: Path) -> None:
    """Write the files that a user would have: data, bundles, scans, references and other predictions."""
    generate_phantoms(folder / "data" / "phantom_cells", num_cases=26, shape=(16, 16, 8))
    hippocampus = folder / "bundles" / "hippocampus_unet3d_segmentation"
    shutil.copytree(REPOSITORY / "bundles" / hippocampus.name, hippocampus)
    change_plan(hippocampus, patch=[16, 24, 16], tile=[16, 24, 16])
    copy_bundle("phantom_cells_segmentation", folder / "bundles" / "phantom_cells_segmentation")
    _shrink_phantom_bundle(folder / "bundles" / "phantom_cells_segmentation", folder / "runs" / "phantom_cells")
    random = np.random.default_rng(0)
    grid = Grid((20, 24, 18), np.diag([1.0, 1.0, 1.0, 1.0]))
    reference = np.zeros(grid.shape, np.uint8)
    reference[4:12, 5:20, 5:14], reference[12:17, 5:20, 5:14] = 1, 2
    for number, case in enumerate(CASES):
        image = reference * 40.0 + random.normal(100, 10, grid.shape)
        write_volume(folder / "scans" / f"{case}.nii.gz", image.astype(np.float32), Volume(image, grid))
        shifted = np.roll(reference, number + 1, axis=1)
        for name, label_map in (("references", reference), ("labels", reference), ("other_predictions", shifted)):
            write_volume(folder / name / f"{case}.nii.gz", label_map, Volume(label_map, grid))
    shutil.copy(folder / "scans" / f"{CASES[0]}.nii.gz", folder / "scan.nii.gz")
    _make_head(folder)
    _make_nnunet_dataset(folder, folder / "Dataset004_Hippocampus")


def _make_head(folder: Path) -> None:
    """Write a head: the template of the bundle for whole heads at 2 mm, in which that template is certainly found."""
    bundle = folder / "bundles" / "brain_t1_hippocampi_segmentation"
    shutil.copytree(REPOSITORY / "bundles" / bundle.name, bundle)
    template = read_template(next((bundle / "atlas").glob("*.nii.gz")))
    head = zoom(template.array, 2, order=1, mode="nearest", grid_mode=True)
    affine = template.affine @ np.diag([0.5, 0.5, 0.5, 1.0])
    affine[:3, 3] -= affine[:3, :3] @ [0.5, 0.5, 0.5]
    for name in ("sub-01", "sub-02"):
        write_volume(folder / "heads" / f"{name}.nii.gz", head, Volume(head, Grid(head.shape, affine)))


def _make_nnunet_dataset(samples: Path, raw: Path) -> None:
    """Write the same cases in nnU-Net's format."""
    for name in ("imagesTr", "labelsTr"):
        (raw / name).mkdir(parents=True)
    for case in CASES:
        shutil.copy(samples / "scans" / f"{case}.nii.gz", raw / "imagesTr" / f"{case}_0000.nii.gz")
        shutil.copy(samples / "labels" / f"{case}.nii.gz", raw / "labelsTr" / f"{case}.nii.gz")
    labels = {"background": 0, "anterior": 1, "posterior": 2}
    content = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": len(CASES), "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(content), encoding="utf-8")


def _shrink_phantom_bundle(bundle: Path, run: Path) -> None:
    """Make network and tiles small enough for a page; promote random weights as if a training had finished."""
    plan_file = bundle / "configs" / "plan.json"
    change_plan(bundle, {"channels": [4, 8], "strides": [2]}, patch=[16, 16, 8], tile=[16, 16, 8])
    torch.manual_seed(0)
    network = read_plan(plan_file).create_network()
    run.mkdir(parents=True)
    torch.save(network.state_dict(), run / "model.pt")
    record = {"plan_digest": read_plan(plan_file).digest, "weights_sha256": sha256(run / "model.pt")}
    (run / "training.json").write_text(json.dumps(record), encoding="utf-8")
    promote(bundle, run)
