"""MONAI's own functions find a bundle's files: in its folder, by `--bundle_root`, and `load` from any folder."""

from __future__ import annotations

from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from bundle.tiny_bundles import BUNDLES
from monai.bundle import ConfigParser, ConfigWorkflow, create_workflow

import medseg
from medseg.errors import PlanError

CONFIGS = sorted(BUNDLES.glob("*/configs/*.json"))


@pytest.mark.parametrize("name", ["train", "inference"])
def test_every_bundle_root_is_the_working_directory(name):
    roots = {ConfigParser.load_config_file(file)["bundle_root"] for file in CONFIGS if file.stem == name}
    assert roots == {"."}


@pytest.fixture(params=["elsewhere", "another bundle"])
def working_directory(request, tmp_path, monkeypatch) -> None:
    """Work in a folder without configs, or in one whose plan is another network's."""
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


def inference(bundle: Path, **overrides: object) -> ConfigWorkflow:
    return create_workflow(
        config_file=str(bundle / "configs" / "inference.json"),
        workflow_type="inference",
        logging_file=False,
        **overrides,
    )


@pytest.mark.parametrize("here", ["in the bundle", "elsewhere"])
def test_monai_runs_the_inference(bundle, scan, tmp_path, monkeypatch, here):
    monkeypatch.chdir(bundle if here == "in the bundle" else tmp_path)
    root = {} if here == "in the bundle" else {"bundle_root": str(bundle)}
    inference(bundle, dataset_dir=str(scan.parent), output_dir=str(tmp_path / "out"), **root).run()
    found = nib.load(tmp_path / "out" / "case_a_seg.nii.gz").get_fdata()
    np.testing.assert_array_equal(found, medseg.load(bundle, precision="fp32").predict(scan).array)


def test_a_run_in_another_folder_names_the_option(bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception) as error:  # noqa: PT011
        inference(bundle).run()
    causes = [error.value]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    assert isinstance(causes[-1], PlanError)
    assert "--bundle_root" in str(causes[-1])
    assert "plan.json" in str(causes[-1])
