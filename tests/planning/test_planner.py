"""`medseg plan` writes a bundle that trains, is promoted, verified, and predicts; bad data is refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from monai.bundle import ConfigWorkflow
from planning.small_data_sets import spheres, write_case, write_manifest

import medseg
from medseg.bundle import promote, verify
from medseg.cli import main
from medseg.datasets import generate_phantoms, read_manifest
from medseg.errors import ManifestError, MemoryLimitError, OptionError, PlanError
from medseg.planning import plan_bundle
from medseg.training.history import read_history

SPEED = 1e11  # operations per second; given, so that plans do not depend on the machine


def plan(data: Path, out: Path, **options) -> Path:
    given = {"device": "cpu", "hours": 0.001, "memory": "4GB", "flops_per_second": SPEED, **options}
    return plan_bundle(data, out, **given).folder


def train(bundle: Path, out: Path, **overrides) -> list[dict[str, float]]:
    """Train a bundle as MONAI's command does, and return its history."""
    workflow = ConfigWorkflow(
        workflow_type="train",
        config_file=str(bundle / "configs" / "train.json"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        logging_file=False,
        bundle_root=str(bundle),
        output_dir=str(out),
        **overrides,
    )
    workflow.initialize()
    workflow.run()
    return read_history(out / "history.csv")


def test_from_a_folder_to_a_segmentation(tmp_path):
    manifest = spheres(tmp_path / "data")
    bundle = plan(tmp_path / "data", tmp_path / "bundle", manifest=manifest)
    rows = train(bundle, tmp_path / "run", max_epochs=12, val_interval=12, learning_rate=0.02)
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    assert rows[-1]["val_mean_dice"] > 0.3
    promote(bundle, tmp_path / "run", tmp_path / "data")
    assert [check.name for check in verify(bundle) if not check.passed] == []
    seg = medseg.load(bundle).predict(tmp_path / "data" / "images" / "case_0.nii.gz")
    assert seg.array.shape == (20, 24, 16)
    assert 0 < (seg.array == 1).mean() < 0.5


def test_only_the_weights_are_missing_before_the_training(tmp_path):
    manifest = spheres(tmp_path / "data")
    bundle = plan(tmp_path / "data", tmp_path / "bundle", manifest=manifest)
    failed = {check.name for check in verify(bundle) if not check.passed}
    assert failed == {"weights", "network", "golden sample"} - ({"golden sample"} - failed)
    readme = (bundle / "docs" / "README.md").read_text()
    config = json.loads((bundle / "configs" / "train.json").read_text())
    assert "median voxel size" in readme
    assert config["dataset_dir"] == "$@bundle_root + '/../data'"
    assert str(tmp_path) not in readme + json.dumps(config)


@pytest.mark.slow
def test_instances_and_mapped_files(tmp_path):
    generate_phantoms(tmp_path / "data", num_cases=4, seed=5, shape=(24, 24, 16))
    content = yaml.safe_load(read_manifest("phantom_cells").path.read_text(encoding="utf-8"))
    content |= {"cases": [f"phantom_{n:03d}" for n in range(4)], "folds": {0: ["phantom_003"], 1: ["phantom_002"]}}
    content["folds"][2] = ["phantom_000", "phantom_001"]
    (tmp_path / "manifest.yaml").write_text(yaml.safe_dump(content))
    made = plan_bundle(
        tmp_path / "data", tmp_path / "bundle", manifest=tmp_path / "manifest.yaml", device="cpu", hours=0.001,
        flops_per_second=SPEED,
    )  # fmt: skip
    config = json.loads((made.folder / "configs" / "train.json").read_text())
    assert made.planned.settings.boundary_weights is not None
    assert config["train"]["deterministic_transforms"]["weight"]["instance_key"] == "instances"
    rows = train(
        made.folder,
        tmp_path / "run",
        max_epochs=1,
        val_interval=1,
        **{"train#dataset#_target_": "medseg.training.MappedCases", "train#dataset#directory": str(tmp_path / "maps")},
    )
    assert np.isfinite(rows[0]["loss"])
    assert len(list((tmp_path / "maps").glob("*.pt"))) == 2


def test_a_training_case_alone_is_validated_on_itself_and_two_are_two_folds(tmp_path):
    one, two = spheres(tmp_path / "one", 1), spheres(tmp_path / "two", 2)
    bundle = plan(tmp_path / "one", tmp_path / "a", manifest=one)
    assert json.loads((bundle / "configs" / "train.json").read_text())["fold"] == "all"
    assert "case_0" in (bundle / "configs" / "manifest.yaml").read_text()
    bundle = plan(tmp_path / "two", tmp_path / "b", manifest=two)
    assert json.loads((bundle / "configs" / "train.json").read_text())["fold"] == 0
    assert read_manifest(bundle / "configs" / "manifest.yaml").folds == {0: ("case_0",), 1: ("case_1",)}


@pytest.mark.slow
def test_slices_of_volumes_train(tmp_path):
    manifest = spheres(tmp_path / "data", 3)
    bundle = plan(tmp_path / "data", tmp_path / "bundle", manifest=manifest, configuration="2d")
    rows = train(bundle, tmp_path / "run", max_epochs=1, val_interval=1)
    assert np.isfinite(rows[0]["loss"])
    assert "val_mean_dice" in rows[0]


def test_bad_data_is_named(tmp_path):
    manifest = spheres(tmp_path / "data", 2)
    with pytest.raises(MemoryLimitError, match=r"--memory"):
        plan(tmp_path / "data", tmp_path / "a", manifest=manifest, memory="600MB")
    with pytest.raises(OptionError, match=r"memory"):
        plan(tmp_path / "data", tmp_path / "a", manifest=manifest, memory="lots")
    with pytest.raises(OptionError, match=r"--hours"):
        plan(tmp_path / "data", tmp_path / "a", manifest=manifest, hours=-1)
    assert not (tmp_path / "a").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(OptionError, match="full"):
        plan(tmp_path / "data", tmp_path / "full", manifest=manifest)
    with pytest.raises(ManifestError, match=r"nowhere|case_0"):
        plan(tmp_path / "nowhere", tmp_path / "a", manifest=manifest)
    shape = (8, 8, 8)
    write_case(tmp_path / "empty", "case_0", np.ones(shape, np.float32), np.zeros(shape, np.uint8))
    with pytest.raises(ManifestError, match=r"spheres.*label"):
        plan(
            tmp_path / "empty",
            tmp_path / "a",
            manifest=write_manifest(tmp_path / "empty", ["case_0"], {"background": 0, "s": 1}),
        )
    write_case(tmp_path / "mixed", "case_0", np.ones(shape, np.float32), np.ones(shape, np.uint8))
    write_case(tmp_path / "mixed", "case_1", np.ones((8, 8), np.float32), np.ones((8, 8), np.uint8))
    mixed = write_manifest(tmp_path / "mixed", ["case_0", "case_1"], {"background": 0, "s": 1})
    with pytest.raises(ManifestError, match=r"case_1.*\(8, 8\)"):
        plan(tmp_path / "mixed", tmp_path / "a", manifest=mixed)
    labels = {"background": 0, **{f"label {n}": n for n in range(1, 301)}}
    many = write_manifest(tmp_path / "mixed", ["case_0"], labels)
    with pytest.raises(PlanError, match=r"301.*255"):
        plan(tmp_path / "mixed", tmp_path / "a", manifest=many)
    assert not (tmp_path / "a").exists()


def test_folders_that_cannot_be_planned_are_named(tmp_path):
    """Images without labels, labels without images, one label map missing, and label maps of background alone."""
    for name, spoil, facts in (
        ("unlabelled", lambda root: shutil.rmtree(root / "labels"), ["unlabelled"]),
        ("without images", lambda root: shutil.rmtree(root / "images"), ["without images"]),
        ("incomplete", lambda root: (root / "labels" / "case_1.nii.gz").unlink(), ["case_1.nii.gz", "no label map"]),
        ("background", lambda root: fill(root / "labels", 0), ["nothing but 0"]),
    ):
        root = tmp_path / name
        spheres(root, 3).unlink()
        spoil(root)
        with pytest.raises(ManifestError) as refused:
            plan(root, tmp_path / "bundle")
        assert "\n" not in str(refused.value)
        for fact in facts:
            assert fact in str(refused.value)
        assert not (tmp_path / "bundle").exists()


def fill(folder: Path, value: int) -> None:
    """Replace every voxel of the files in a folder."""
    for path in folder.iterdir():
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.full(image.shape, value, np.uint8), image.affine), path)


def test_the_command_prints_the_plan_and_what_it_takes(tmp_path, capsys):

    manifest = spheres(tmp_path / "data")
    given = ["plan", str(tmp_path / "data"), "--out", str(tmp_path / "bundle"), "--manifest", str(manifest)]
    with pytest.raises(SystemExit) as stop:
        main([*given, "--device", "cpu", "--hours", "0.01", "--json"])
    assert not stop.value.code
    facts = json.loads(capsys.readouterr().out)
    assert {"spacing", "patch and tile", "normalisation"} <= {decision["name"] for decision in facts["decisions"]}
    assert set(facts["estimates"]) == {"preparing the training cases", "training", "predicting one scan"}
