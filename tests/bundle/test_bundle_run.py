"""Train, promote, evaluate and predict with a bundle on generated data, by MONAI's runner."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from monai.bundle import ConfigWorkflow, run

import medseg
from medseg.bundle import promote, verify
from medseg.datasets import generate_phantoms, read_manifest


@pytest.fixture
def data(tmp_path) -> dict[str, object]:
    """Write four small phantoms and return the overrides that select them."""
    generate_phantoms(tmp_path / "data", num_cases=4, seed=5, shape=(24, 24, 16))
    manifest = yaml.safe_load(read_manifest("phantom_cells").path.read_text(encoding="utf-8"))
    manifest["cases"] = [f"phantom_{n:03d}" for n in range(4)]
    manifest["folds"] = {0: ["phantom_003"], 1: ["phantom_002"], 2: ["phantom_000", "phantom_001"]}
    (tmp_path / "four.yaml").write_text(yaml.safe_dump(manifest))
    return {
        "dataset_dir": str(tmp_path / "data"),
        "output_dir": str(tmp_path / "run"),
        "manifest": str(tmp_path / "four.yaml"),
    }


def files(bundle: Path, *names: str) -> dict[str, object]:
    return {
        "config_file": [str(bundle / "configs" / f"{name}.json") for name in names],
        "meta_file": str(bundle / "configs" / "metadata.json"),
        "logging_file": False,
        "bundle_root": str(bundle),
    }


def test_train_promote_evaluate_predict(bundle, data, tmp_path):
    before = medseg.load_network(bundle).state_dict()
    run(**files(bundle, "train"), **data, max_epochs=2, val_interval=2, precision="fp32")
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert (record["epochs"], record["cases"]) == (2, 2)
    assert len(list((tmp_path / "run" / "checkpoints").glob("*.pt"))) == 2
    assert (bundle / "models" / "model.pt").is_file()  # training writes to output_dir only
    assert all(torch.equal(v, before[k]) for k, v in medseg.load_network(bundle).state_dict().items())

    promote(bundle, tmp_path / "run")
    assert all(check.passed for check in verify(bundle))
    after = medseg.load_network(bundle).state_dict()
    assert any(not torch.equal(v, before[k]) for k, v in after.items())

    run(**files(bundle, "train", "evaluate"), **data, precision="fp32")
    metrics = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    dice = dict(line.split(",") for line in metrics)
    assert float(dice["val_mean_dice"]) == pytest.approx(record["validation"]["val_mean_dice"], abs=1e-6)

    segmentation = medseg.load(bundle).predict(tmp_path / "data" / "images" / "phantom_003.nii.gz")
    assert set(segmentation.labels) == {"background", "round", "elongated"}


@pytest.mark.parametrize(("kind", "names"), [("train", ("train",)), ("inference", ("inference",))])
def test_monai_finds_every_property(bundle, data, scan, kind, names):
    given = data if kind == "train" else {"dataset_dir": str(scan.parent)}
    paths = files(bundle, *names)
    workflow = ConfigWorkflow(workflow_type=kind, **paths, **given)
    workflow.initialize()
    assert workflow.check_properties() == []


def test_a_resumed_run_continues_where_it_stopped(bundle, data, tmp_path):
    run(**files(bundle, "train"), **data, max_epochs=1, val_interval=5, precision="fp32")
    run(**files(bundle, "train"), **data, max_epochs=2, val_interval=5, precision="fp32", resume=True)
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert (record["epochs"], record["steps"]) == (2, 4)
