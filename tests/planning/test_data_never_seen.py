"""Plan data sets of every kind, and train, promote, verify, evaluate and predict without editing a file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from PIL import Image

import medseg
from medseg.bundle import promote, verify
from medseg.planning import PlannedBundle, plan_bundle
from medseg.training.history import read_history

pytestmark = pytest.mark.slow


def monai_run(bundle: Path, config: str, **overrides: object) -> None:
    """Run a config of a bundle as its README says, in the bundle's folder."""
    options = [part for name, value in overrides.items() for part in (f"--{name}", str(value))]
    done = subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", "--config_file", config, *options],
        cwd=bundle,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def check_bundle(
    data: Path, root: Path, scan: Path | list[Path], epochs: int, rate: float = 0.01, **options: object
) -> PlannedBundle:
    """Plan, train until the loss has fallen, promote, verify, evaluate and predict."""
    given = {"device": "cpu", "hours": 0.001, "memory": "3GB", "flops_per_second": 1e11, **options}
    made = plan_bundle(data, root / "bundle", **given)
    monai_run(
        made.folder, "configs/train.json", output_dir=root / "run", max_epochs=epochs, val_interval=epochs,
        learning_rate=rate,
    )  # fmt: skip
    losses = [row["loss"] for row in read_history(root / "run" / "history.csv")]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-2:]) < 0.97 * losses[0], losses
    promote(made.folder, root / "run")
    assert [check.message for check in verify(made.folder) if not check.passed] == []
    monai_run(made.folder, "['configs/train.json','configs/evaluate.json']", output_dir=root / "evaluation")
    assert "val_mean_dice" in (root / "evaluation" / "metrics.csv").read_text()
    segmentation = medseg.load(made.folder).predict(scan)
    values = {0, *made.planned.plan.labels.values()}
    assert set(np.unique(segmentation.array).tolist()) <= values
    return made


def write_manifest(path: Path, **content: object) -> Path:
    path.write_text(yaml.safe_dump({"schema_version": 1, **content}, sort_keys=False))
    return path


@pytest.mark.data
def test_em_slices(shared_data, tmp_path):
    data = shared_data / "em_membrane"
    made = check_bundle(data, tmp_path, data / "images" / "20.png", 3, manifest="em_membrane", memory="1500MB")
    plan = made.planned.plan
    assert (plan.spatial_dims, plan.spacing, plan.mirror_axes) == (2, None, [0, 1])
    assert made.planned.settings.boundary_weights is not None  # cells with narrow membranes between them


@pytest.mark.data
def test_em_stack(shared_data, tmp_path):
    for number in range(3):
        for kind in ("images", "labels"):
            slices = [np.asarray(Image.open(shared_data / "em_membrane" / kind / f"{n:02d}.png")).T for n in
                      range(8 * number, 8 * number + 8)]  # fmt: skip
            (tmp_path / "data" / kind).mkdir(parents=True, exist_ok=True)
            stack = np.stack(slices, axis=-1)[128:384, 128:384]
            nib.save(
                nib.Nifti1Image(stack, np.diag([4.0, 4.0, 50.0, 1])), tmp_path / "data" / kind / f"s{number}.nii.gz"
            )
    manifest = write_manifest(
        tmp_path / "manifest.yaml", name="em_stack", spatial_dims=3, channels=[{"name": "em", "modality": "EM"}],
        labels={"membrane": 0, "cell": 1}, file_values={0: 0, 255: 1},
        files={"image": "images/{case}.nii.gz", "label": "labels/{case}.nii.gz"}, cases=["s0", "s1", "s2"],
    )  # fmt: skip
    made = check_bundle(
        tmp_path / "data", tmp_path, tmp_path / "data" / "images" / "s0.nii.gz", 8, manifest=manifest, memory="1500MB"
    )
    assert made.planned.plan.spacing == [4.0, 4.0, 50.0]
    assert made.planned.plan.network["arguments"]["kernel_sizes"][0] == [3, 3, 1]


@pytest.mark.data
def test_ct_with_41_structures(shared_data, tmp_path):
    label = nib.load(shared_data / "ct_abdomen" / "example_seg.nii.gz")
    values = [int(value) for value in np.unique(np.asarray(label.dataobj)) if value]
    manifest = write_manifest(
        tmp_path / "manifest.yaml", name="ct", spatial_dims=3, channels=[{"name": "ct", "modality": "CT"}],
        labels={"background": 0, **{f"structure {value}": value for value in values}},
        files={"image": "{case}_ct_sm.nii.gz", "label": "{case}_seg.nii.gz"}, cases=["example"],
    )  # fmt: skip
    data = shared_data / "ct_abdomen"
    made = check_bundle(data, tmp_path, data / "example_ct_sm.nii.gz", 8, manifest=manifest, memory="1500MB")
    assert len(values) == 41
    assert made.planned.plan.out_channels == 42
    assert made.planned.plan.normalization[0]["scheme"] == "ct"


@pytest.mark.data
def test_spinal_cords_of_three_subjects(shared_data, tmp_path):
    data = shared_data / "spinal_cord"
    names = {"t1w": "t1w_seg-manual", "t2": "t2_seg-manual", "t2s_uncropped": "t2s_uncropped_gmseg_manual"}
    manifest = write_manifest(
        tmp_path / "manifest.yaml", name="cord", spatial_dims=3, channels=[{"name": "mr", "modality": "MR"}],
        labels={"background": 0, "cord": 1},
        cases=[{"id": name, "image": f"{name}.nii.gz", "label": f"{label}.nii.gz"} for name, label in names.items()],
    )  # fmt: skip
    check_bundle(data, tmp_path, data / "t2s_uncropped.nii.gz", 8, manifest=manifest, memory="1500MB")


def test_overlapping_regions_of_four_channels(tmp_path):
    rng = np.random.default_rng(0)
    data, cases, shape = tmp_path / "data", [f"case{n}" for n in range(5)], (24, 24, 20)
    axes, channels = np.indices(shape), ["t1", "t1ce", "t2", "flair"]
    for case in cases:
        distance = np.sqrt(((axes - rng.uniform(9, 12, 3).reshape(3, 1, 1, 1)) ** 2).sum(axis=0))
        label = np.select([distance < 3, distance < 5, distance < 7], [4, 1, 2], 0).astype(np.uint8)
        images = rng.normal(0, 1, (4, *shape)) + np.array([1, 3, 2, 4]).reshape(4, 1, 1, 1) * (label > 0)
        images[1] += 3 * (label == 4)
        for name, image in zip([*channels, "seg"], [*images.astype(np.float32), label], strict=True):
            data.mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(image, np.eye(4)), data / f"{case}_{name}.nii.gz")
    manifest = write_manifest(
        tmp_path / "manifest.yaml", name="brats", spatial_dims=3,
        channels=[{"name": name, "modality": "MR"} for name in channels],
        labels={"background": 0, "necrosis": 1, "oedema": 2, "enhancing": 4},
        regions={"whole": [1, 2, 4], "core": [1, 4], "enhancing tumour": [4]}, regions_class_order=[2, 1, 4],
        files={"image": [f"{{case}}_{name}.nii.gz" for name in channels], "label": "{case}_seg.nii.gz"}, cases=cases,
    )  # fmt: skip
    scan = [data / f"case0_{name}.nii.gz" for name in channels]
    made = check_bundle(data, tmp_path, scan, 10, manifest=manifest)
    plan = made.planned.plan
    assert (plan.activation, plan.in_channels, plan.out_channels) == ("sigmoid", 4, 3)


def test_rgb_pictures_with_12_classes_and_unetplusplus(tmp_path):
    rng = np.random.default_rng(1)
    data = tmp_path / "data"
    colors = rng.integers(0, 255, (12, 3))
    for n in range(5):
        label = np.kron(rng.permutation(12).reshape(3, 4), np.ones((24, 24))).astype(np.uint8)
        picture = np.clip(colors[label] + rng.normal(0, 15, (*label.shape, 3)), 0, 255).astype(np.uint8)
        for folder, array in (("images", picture), ("labels", label)):
            (data / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(data / folder / f"street{n}.png")
    made = check_bundle(data, tmp_path, data / "images" / "street0.png", 12, network="unetplusplus")
    plan = made.planned.plan
    assert (plan.in_channels, plan.out_channels, plan.spatial_dims) == (3, 12, 2)
    assert plan.normalization[0]["scheme"] == "window"
    config = json.loads((made.folder / "configs" / "train.json").read_text())
    assert config["trained_network"]["_target_"] == "medseg.training.DeepSupervision"
    assert medseg.load_network(made.folder).prune(1).depth == 1
