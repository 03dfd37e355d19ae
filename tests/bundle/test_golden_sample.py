"""The golden sample: made with the weights, stable, and the gate of low precision."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from bundle.tiny_bundles import record_weights
from torch import nn

import medseg
from medseg.bundle import BundleFolder, verify
from medseg.bundle.golden import (
    GOLDEN,
    golden_lattice,
    make_golden_sample,
    read_golden_sample,
    save_golden_sample,
    write_golden_sample,
)
from medseg.errors import BundleError, OptionError
from medseg.inference.backends.torch_backend import TorchBackend

CPU = torch.device("cpu")
HIPPOCAMPUS = Path(__file__).parents[2] / "bundles" / "hippocampus_unet3d_segmentation"


class Brightness(nn.Module):
    """Three labels by the brightness of the voxel alone: what it predicts is known."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([0 * x, 4 * (x - 1), 4 * (-x - 1)], dim=1)


def verdict(bundle: Path) -> tuple[bool, str]:
    check = {check.name: check for check in verify(bundle)}["golden sample"]
    return check.passed, check.message


def damaged(bundle: Path, **arrays: np.ndarray) -> None:
    with np.load(bundle / GOLDEN) as stored:
        np.savez_compressed(bundle / GOLDEN, **{**stored, **arrays})


def test_the_input_is_moved_until_every_label_is_predicted(bundle):
    plan, network = BundleFolder(bundle).plan, Brightness()
    sample = make_golden_sample(network, plan, "")
    image = sample.image
    counts = [(image.abs() <= 1).sum().item(), (image > 1).sum().item(), (image < -1).sum().item()]
    assert sample.exact.voxels_a_label == counts
    assert min(counts) >= 800  # of 4096; interpolated noise has 602
    assert image.mean().item() == pytest.approx(0, abs=0.01)
    assert image.std().item() == pytest.approx(1, abs=0.01)


def test_it_depends_on_the_plan_and_the_weights_alone(bundle):
    folder = BundleFolder(bundle)
    network = medseg.load_network(bundle)
    torch.manual_seed(1)
    first = golden_lattice(network, folder.plan)
    torch.manual_seed(2)
    assert torch.equal(golden_lattice(network, folder.plan), first)
    assert all(p.grad is None for p in network.parameters())


def test_it_is_written_whole_and_read_back(bundle):
    line = write_golden_sample(bundle)
    assert "background" in line
    folder = BundleFolder(bundle)
    sample = read_golden_sample(folder)
    logits = medseg.load_network(bundle)(sample.image)[0].detach().numpy()
    np.testing.assert_array_equal(sample.exact.labels, logits.argmax(0))
    np.testing.assert_allclose(sample.exact.logits, logits.reshape(3, -1)[:, sample.exact.positions], atol=1e-5)
    assert verdict(bundle)[0]
    assert (bundle / GOLDEN).stat().st_size < 1e6


def test_verification_finds_weights_that_mean_something_else(bundle):
    write_golden_sample(bundle)
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    torch.save({name: value * 1.01 for name, value in state.items()}, bundle / "models" / "model.pt")
    record_weights(bundle)
    passed, message = verdict(bundle)
    assert (passed, "made with other weights" in message) == (False, True)
    with np.load(bundle / GOLDEN) as stored:
        facts = json.loads(str(stored["facts"]))
    facts["weights_sha256"] = BundleFolder(bundle).checked_weights()[1]
    damaged(bundle, facts=np.array(json.dumps(facts)))
    passed, message = verdict(bundle)
    assert (passed, "fp32 gives another result" in message) == (False, True)


def test_a_bundle_without_one_is_whole_but_refuses_low_precision(bundle):
    assert verdict(bundle) == (True, "none, so low precision is refused; promoting weights makes one")


@pytest.mark.parametrize(
    "arrays",
    [
        {"labels": np.zeros((2, 2, 2), np.uint16)},
        {"lattice": np.full((1, 8, 8, 8), np.nan, np.float16)},
        {"positions": np.array([10**9])},
        {"facts": np.array("{}")},
        {"facts": np.array([{"a": 1}], dtype=object)},  # a pickle, which is not read
    ],
)
def test_a_damaged_sample_is_named(bundle, arrays):
    write_golden_sample(bundle)
    damaged(bundle, **arrays)
    with pytest.raises(BundleError, match=r"golden\.npz: is not a golden sample of this bundle"):
        read_golden_sample(BundleFolder(bundle))
    assert not verdict(bundle)[0]


def test_files_that_are_no_archive_or_claim_too_much_are_refused(bundle):
    file = bundle / GOLDEN
    file.write_bytes(b"PK not really")
    with pytest.raises(BundleError, match="is not a golden sample"):
        read_golden_sample(BundleFolder(bundle))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labels.npy", bytes(70 * 1024**2))
    with pytest.raises(BundleError, match="claims 73,400,320 bytes"):
        read_golden_sample(BundleFolder(bundle))


def test_a_region_network_gets_a_sample_too():
    class Regions(nn.Module):
        def forward(self, x):
            return torch.cat([8 * x, 8 * (x - 1)], dim=1)  # the second lies within the first

    from inference.plans import small_plan

    plan = small_plan(activation="sigmoid")
    sample = make_golden_sample(Regions(), plan, "")
    image = sample.image.numpy()
    expected = [(image <= 0).sum(), ((image > 0) & (image <= 1)).sum(), (image > 1).sum()]
    assert sample.exact.voxels_a_label == expected
    assert sample.objection_to(TorchBackend(Regions(), CPU)) == ""


def test_it_is_the_gate_of_low_precision(bundle, monkeypatch):
    monkeypatch.setattr("medseg.inference.backends.choice.has_fast_bf16", lambda device: True)

    def precision(**options):
        model = medseg.load(bundle, backend="torch", precision="auto", device="cpu", **options)
        return model.backend.precision, model.backend_reason

    assert precision() == ("fp32", "torch on cpu (as asked), fp32 (the golden sample does not allow bf16: "
                           "the bundle has none; promoting weights makes one)")  # fmt: skip
    with pytest.raises(OptionError, match=r"bf16 is refused.*the bundle has none"):
        medseg.load(bundle, backend="torch", precision="bf16", device="cpu")
    plan, digest = BundleFolder(bundle).plan, BundleFolder(bundle).checked_weights()[1]
    wrong = make_golden_sample(Brightness(), plan, digest)
    stale = make_golden_sample(medseg.load_network(bundle), plan, "another")
    save_golden_sample(BundleFolder(bundle), wrong)
    assert "does not allow bf16" in precision()[1]  # what Brightness says is not what this network says
    save_golden_sample(BundleFolder(bundle), stale)
    assert "made with other weights" in precision()[1]
    write_golden_sample(bundle)
    own = bundle / "models" / "model.pt"
    assert "made with other weights" in precision(weights=[own, own])[1]  # an ensemble is another model
    (bundle / GOLDEN).write_bytes(b"")
    assert "is not a golden sample of this bundle" in precision()[1]


def test_the_shipped_sample_allows_bf16_and_forbids_what_is_wrong():
    sample = read_golden_sample(BundleFolder(HIPPOCAMPUS))
    assert min(sample.exact.voxels_a_label) >= 500
    assert (HIPPOCAMPUS / GOLDEN).stat().st_size < 1e6
    network = medseg.load_network(HIPPOCAMPUS)
    assert sample.objection_to(TorchBackend(network, CPU, "bf16")) == ""
    with torch.no_grad():
        network.head.bias[1] += 0.2
    assert "Dice of label 1 falls" in sample.objection_to(TorchBackend(network, CPU))
