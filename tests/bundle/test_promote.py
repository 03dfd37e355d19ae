import json

import pytest
import torch

import medseg
from medseg import weights
from medseg.bundle import BundleFolder, promote
from medseg.bundle.golden import read_golden_sample
from medseg.errors import BundleError, VolumeError, WeightsError


@pytest.fixture
def finished_run(bundle, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    torch.manual_seed(1)
    plan = BundleFolder(bundle).plan
    torch.save(plan.create_network().state_dict(), folder / "model.pt")
    record = {"plan_digest": plan.digest, "weights_sha256": weights.sha256(folder / "model.pt"), "minutes": 1}
    (folder / "training.json").write_text(json.dumps(record))
    return folder


def test_promoted_weights_are_loaded_and_carry_their_record(bundle, finished_run):
    promotion = promote(bundle, finished_run)
    expected = torch.load(finished_run / "model.pt", weights_only=True)
    assert all(torch.equal(v, expected[k]) for k, v in medseg.load_network(bundle).state_dict().items())
    assert json.loads((bundle / "models" / "model.json").read_text())["minutes"] == 1
    assert BundleFolder(bundle).recorded_sha256 == promotion.sha256
    sample = read_golden_sample(BundleFolder(bundle))
    assert sample.weights_sha256 == promotion.sha256
    assert promotion.golden_sample.startswith(f"{sample.voxels_per_label[0]} background")


def test_a_run_with_another_plan_is_refused_and_nothing_changes(bundle, finished_run):
    before = (bundle / "models" / "model.pt").read_bytes()
    record = json.loads((finished_run / "training.json").read_text())
    (finished_run / "training.json").write_text(json.dumps({**record, "plan_digest": "0"}))
    with pytest.raises(BundleError, match="another plan"):
        promote(bundle, finished_run)
    assert (bundle / "models" / "model.pt").read_bytes() == before


def test_exchanged_weights_are_refused(bundle, finished_run):
    torch.save({}, finished_run / "model.pt")
    with pytest.raises(WeightsError, match=r"model\.pt: .*training\.json"):
        promote(bundle, finished_run)


def test_an_unfinished_run_is_refused(bundle, finished_run):
    (finished_run / "model.pt").unlink()
    with pytest.raises(BundleError, match=r"model\.pt is missing"):
        promote(bundle, finished_run)


@pytest.mark.parametrize("text", ["{", "{}", "[]"])
def test_a_damaged_record_is_named(bundle, finished_run, text):
    (finished_run / "training.json").write_text(text)
    with pytest.raises(BundleError, match=r"training\.json: "):
        promote(bundle, finished_run)


def test_a_failed_promotion_changes_nothing(bundle, finished_run, monkeypatch):
    """Not even the fingerprint of the weights that are there."""
    (bundle / "models" / "fingerprint.json").write_text("{}")
    before = {path.name: path.read_bytes() for path in (bundle / "models").iterdir()}

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", fail)
    with pytest.raises(VolumeError, match=r"model\.pt: .*No space left"):
        promote(bundle, finished_run)
    assert {path.name: path.read_bytes() for path in (bundle / "models").iterdir()} == before
