"""Bundles run and load from any working directory, by MONAI's own functions."""

from __future__ import annotations

from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, create_workflow

import medseg

BUNDLES = Path(__file__).parents[2] / "bundles"


@pytest.fixture(params=["elsewhere", "another bundle"])
def working_directory(request, tmp_path, monkeypatch) -> None:
    """A folder without configs, or one whose plan is another network's."""
    (tmp_path / "elsewhere").mkdir()
    here = tmp_path / "elsewhere" if request.param == "elsewhere" else BUNDLES / "hippocampus_unetr_segmentation"
    monkeypatch.chdir(here)


@pytest.mark.parametrize("kind", ["train", "inference"])
@pytest.mark.usefixtures("working_directory")
def test_monai_loads_the_network_with_its_weights(bundle, kind):
    network = monai.bundle.load(
        bundle.name, bundle_dir=bundle.parent, source="github", workflow_type=kind, device="cpu"
    )
    expected = medseg.load_network(bundle)
    assert type(network) is type(expected)
    found, wanted = network.state_dict(), expected.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.usefixtures("working_directory")
def test_monai_runs_the_inference(bundle, scan, tmp_path):
    workflow = create_workflow(
        config_file=str(bundle / "configs" / "inference.json"), workflow_type="inference", logging_file=False,
        dataset_dir=str(scan.parent), output_dir=str(tmp_path / "out"),
    )  # fmt: skip
    workflow.run()
    assert Path(workflow.bundle_root) == bundle
    found = nib.load(tmp_path / "out" / "case_a_seg.nii.gz").get_fdata()
    np.testing.assert_array_equal(found, medseg.load(bundle).predict(scan).array)


def test_an_override_is_kept(bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    workflow = create_workflow(
        config_file=str(bundle / "configs" / "inference.json"), workflow_type="inference", logging_file=False,
        bundle_root="elsewhere",
    )  # fmt: skip
    assert workflow.bundle_root == "elsewhere"


def test_without_a_workflow_or_a_plan_it_is_the_working_directory(bundle, tmp_path):
    parser = ConfigParser(ConfigParser.load_config_file(bundle / "configs" / "inference.json"))
    assert parser.get_parsed_content("bundle_root") == "."
    loose = tmp_path / "inference.json"
    loose.write_text((bundle / "configs" / "inference.json").read_text())
    workflow = create_workflow(config_file=str(loose), workflow_type="inference", logging_file=False)
    assert workflow.bundle_root == "."
