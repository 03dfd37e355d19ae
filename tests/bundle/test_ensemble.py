"""A bundle with several networks: predicted by medseg and by MONAI's runner alike, verified, and promoted over."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

import medseg
from medseg import weights
from medseg.bundle import BundleFolder, load_network, promote, verify, write_ensemble
from medseg.errors import BundleError, WeightsError
from medseg.networks import Ensemble


@pytest.fixture
def runs(bundle, tmp_path) -> list[Path]:
    """Write three finished trainings of the bundle with different random weights."""
    plan, folders = BundleFolder(bundle).plan, []
    for seed in range(3):
        folder = tmp_path / "runs" / f"fold_{seed}"
        folder.mkdir(parents=True)
        torch.manual_seed(seed)
        torch.save(plan.create_network().state_dict(), folder / "model.pt")
        digest = weights.sha256(folder / "model.pt")
        record = {"plan_digest": plan.digest, "weights_sha256": digest, "settings": {"fold": seed}}
        (folder / "training.json").write_text(json.dumps(record))
        folders.append(folder)
    return folders


def test_the_ensemble_predicts_the_mean_of_its_networks_in_both_runners(bundle, runs, scan, run_inference):
    ensemble = write_ensemble(bundle, runs)
    assert ensemble == runs[0].parent / "tiny_segmentation_ensemble"
    expected = medseg.load(bundle, [run / "model.pt" for run in runs], save_probabilities=True).predict(scan)
    found = medseg.load(ensemble, save_probabilities=True, precision="fp32").predict(scan)
    np.testing.assert_array_equal(found.array, expected.array)
    for name, probability in expected.probabilities.items():
        np.testing.assert_array_equal(found.probabilities[name], probability)
    assert not np.array_equal(found.array, medseg.load(bundle, weights=runs[0] / "model.pt").predict(scan).array)
    by_monai = nib.load(run_inference(ensemble, scan.parent) / "case_a_seg.nii.gz")
    np.testing.assert_array_equal(by_monai.get_fdata(), expected.array)
    assert found.provenance["weights_sha256"] == [weights.sha256(run / "model.pt") for run in runs]


def test_the_ensemble_passes_verification_and_names_a_changed_member(bundle, runs):
    ensemble = write_ensemble(bundle, runs)
    assert [check.message for check in verify(ensemble) if not check.passed] == []
    torch.save({}, ensemble / "models" / "model_2.pt")
    failed = {check.name: check.message for check in verify(ensemble) if not check.passed}
    assert "model_2.pt" in failed["weights"]
    with pytest.raises(WeightsError, match=r"model_2\.pt"):
        medseg.load(ensemble)


def test_the_mean_is_computed_in_fp32_in_the_order_of_the_members():
    torch.manual_seed(0)
    members = [torch.nn.Conv2d(1, 2, 1) for _ in range(3)]
    x = torch.rand(1, 1, 4, 4)
    with torch.no_grad():
        found = Ensemble(members)(x)
        torch.testing.assert_close(found, torch.stack([member(x) for member in members]).mean(0))


def test_promoting_into_an_ensemble_leaves_a_single_network(bundle, runs, scan):
    ensemble = write_ensemble(bundle, runs)
    promote(ensemble, runs[1])
    assert sorted(path.name for path in (ensemble / "models").glob("*.pt")) == ["model.pt"]
    assert [check.message for check in verify(ensemble) if not check.passed] == []
    expected = medseg.load(bundle, weights=runs[1] / "model.pt").predict(scan)
    np.testing.assert_array_equal(medseg.load(ensemble, precision="fp32").predict(scan).array, expected.array)


def test_the_network_of_an_ensemble_is_one_module(bundle, runs):
    network = load_network(write_ensemble(bundle, runs))
    assert isinstance(network, Ensemble)
    assert len(network.members) == 3


def test_an_earlier_ensemble_is_replaced_and_nothing_else(bundle, runs):
    ensemble = write_ensemble(bundle, runs)
    write_ensemble(bundle, runs[:2])
    assert sorted(path.name for path in (ensemble / "models").glob("*.pt")) == ["model.pt", "model_2.pt"]
    assert not list(ensemble.parent.glob("*.new"))
    before = (bundle / "models" / "model.pt").read_bytes()
    with pytest.raises(BundleError, match=str(bundle)):
        write_ensemble(bundle, runs, bundle)
    assert (bundle / "models" / "model.pt").read_bytes() == before
    with pytest.raises(BundleError, match="at least two"):
        write_ensemble(bundle, runs[:1])


@pytest.mark.parametrize("members", [[], [{"file": "../../model.pt"}, {"file": "model_2.pt"}], {"a": 1}, [1, 2]])
def test_a_list_of_other_members_is_refused(bundle, runs, members):
    ensemble = write_ensemble(bundle, runs)
    (ensemble / "models" / "ensemble.json").write_text(json.dumps({"members": members}))
    with pytest.raises(BundleError, match=r"ensemble\.json"):
        medseg.load(ensemble)
