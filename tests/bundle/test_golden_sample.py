"""The golden sample: it detects changed weights, and it decides whether a lower precision may be used."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from bundle.tiny_bundles import BUNDLES, record_weights
from torch import nn

import medseg
from medseg.bundle import BundleFolder, verify
from medseg.bundle.golden import (
    GOLDEN,
    SAME_PRECISION,
    GoldenSample,
    Tolerance,
    decide_labels,
    golden_input,
    make_golden_sample,
    read_golden_sample,
    sample_as_bytes,
)
from medseg.errors import BundleError, OptionError
from medseg.inference.backends.torch_backend import TorchBackend
from medseg.transforms.restore.label_decision import LabelDecision
from medseg.transforms.restore.restore_labels import restore_labels

CPU = torch.device("cpu")
SHIPPED = sorted(BUNDLES.glob("*/models/golden.npz"))


class Brightness(nn.Module):
    """Three labels that depend on the brightness of the voxel alone, so that the prediction is known."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([0 * x, 4 * (x - 1), 4 * (-x - 1)], dim=1)


def write_golden_sample(bundle: Path) -> GoldenSample:
    folder = BundleFolder(bundle)
    sample = make_golden_sample(medseg.load_network(bundle), folder.plan, folder.checked_weights()[1])
    (bundle / GOLDEN).write_bytes(sample_as_bytes(sample))
    return sample


def verdict(bundle: Path) -> tuple[bool, str]:
    check = {check.name: check for check in verify(bundle)}["golden sample"]
    return check.passed, check.message


def replace_arrays(bundle: Path, **arrays: np.ndarray) -> None:
    with np.load(bundle / GOLDEN) as stored:
        np.savez_compressed(bundle / GOLDEN, **{**stored, **arrays})


def replace_facts(bundle: Path, **facts: object) -> None:
    with np.load(bundle / GOLDEN) as stored:
        replace_arrays(bundle, facts=np.array(json.dumps(json.loads(str(stored["facts"])) | facts)))


@pytest.mark.parametrize(("channels", "tile"), [(1, (40, 56, 40)), (3, (64, 48)), (2, (5, 16, 8))])
def test_the_input_is_standardised_and_the_same_every_time(channels, tile):
    image = golden_input(channels, tile)
    assert image.shape == (1, channels, *tile)
    assert image.mean().item() == pytest.approx(0, abs=1e-4)
    assert image.std().item() == pytest.approx(1, abs=1e-4)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global generator, which must not matter
    assert torch.equal(golden_input(channels, tile), image)


def test_the_input_is_that_of_earlier_versions():
    """NumPy promises the stream of RandomState; stored samples depend on it."""
    values = golden_input(1, (8, 8)).flatten()
    expected = [1.1649, 0.0216, 1.4468]
    torch.testing.assert_close(values[[0, 27, 63]], torch.tensor(expected), atol=1e-3, rtol=0)


def test_it_holds_the_networks_logits_and_is_read_back(bundle):
    folder, written = BundleFolder(bundle), write_golden_sample(bundle)
    sample = read_golden_sample(folder)
    network, image = medseg.load_network(bundle), golden_input(1, (16, 16, 16))
    logits = network(image)[0].detach().numpy()
    np.testing.assert_allclose(sample.logits, logits.reshape(3, -1), atol=1e-5)  # 4096 voxels: all are kept
    np.testing.assert_array_equal(sample.logits, written.logits)
    assert sample.provenance == written.provenance
    assert sample.voxels_per_label == np.bincount(logits.argmax(0).ravel(), minlength=3).tolist()
    assert all(p.grad is None for p in network.parameters())
    assert verdict(bundle)[0]
    assert (bundle / GOLDEN).stat().st_size < 100_000


def test_verification_detects_changed_weights(bundle):
    write_golden_sample(bundle)
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    torch.save({name: value * 1.01 for name, value in state.items()}, bundle / "models" / "model.pt")
    record_weights(bundle)
    passed, message = verdict(bundle)
    assert (passed, "other weights" in message) == (False, True)
    replace_facts(bundle, weights_sha256=BundleFolder(bundle).checked_weights()[1])
    passed, message = verdict(bundle)
    assert (passed, "logits differ" in message) == (False, True)


def test_verification_detects_a_single_changed_weight(bundle):
    write_golden_sample(bundle)
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    state["encoder.0.convolutions.0.conv.weight"].view(-1)[0] += 0.1
    torch.save(state, bundle / "models" / "model.pt")
    record_weights(bundle)
    replace_facts(bundle, weights_sha256=BundleFolder(bundle).checked_weights()[1])
    assert not verdict(bundle)[0]


def test_a_bundle_without_one_passes_but_refuses_low_precision(bundle):
    passed, message = verdict(bundle)
    assert passed
    assert "low precision is refused" in message


@pytest.mark.parametrize(
    "arrays",
    [
        {"logits": np.zeros((3, 2), np.float32)},
        {"logits": np.full((3, 4096), np.nan, np.float32)},
        {"logits": np.zeros((3, 4096))},
        {"facts": np.array("{}")},
        {"facts": np.array([{"a": 1}], dtype=object)},  # a pickle, which is not read
    ],
)
def test_a_damaged_sample_is_refused(bundle, arrays):
    write_golden_sample(bundle)
    replace_arrays(bundle, **arrays)
    with pytest.raises(BundleError, match=r"golden\.npz"):
        read_golden_sample(BundleFolder(bundle))
    assert not verdict(bundle)[0]


@pytest.mark.parametrize("facts", [{"tile": [8, 8, 8]}, {"activation": "sigmoid"}, {"schema_version": 1}])
def test_a_sample_of_another_plan_or_version_is_refused(bundle, facts):
    write_golden_sample(bundle)
    replace_facts(bundle, **facts)
    with pytest.raises(BundleError, match=r"golden\.npz"):
        read_golden_sample(BundleFolder(bundle))


def test_files_that_are_no_archive_or_claim_too_much_are_refused(bundle):
    file = bundle / GOLDEN
    file.write_bytes(b"PK not really")
    with pytest.raises(BundleError, match=r"golden\.npz"):
        read_golden_sample(BundleFolder(bundle))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labels.npy", bytes(70 * 1024**2))
    with pytest.raises(BundleError, match="73,400,320 bytes"):
        read_golden_sample(BundleFolder(bundle))


def sample_of(logits: np.ndarray, activation: str = "softmax") -> GoldenSample:
    return GoldenSample(logits.astype(np.float32), (10, 20, 30), 1, activation, "", {})


def two_winners() -> np.ndarray:
    """Three channels at 4000 voxels; channels 0 and 1 win half of them each, by 2 (standard deviation 0.943)."""
    winner = np.repeat([0, 1], 2000)
    return np.where(np.arange(3)[:, None] == winner, 1.0, -1.0)


def test_the_root_mean_square_of_the_logits_is_limited():
    sample, deviation = sample_of(two_winners()), np.sqrt(8 / 9)
    assert sample.objection(two_winners()) == ""
    assert sample.objection(two_winners() + 0.009 * deviation) == ""
    assert "0.0110 standard deviations" in sample.objection(two_winners() + 0.011 * deviation)
    assert "0.0020 standard deviations" in sample.objection(two_winners() + 0.002 * deviation, SAME_PRECISION)
    assert "not finite" in sample.objection(two_winners() * np.nan)


def test_the_share_of_changed_labels_is_limited():
    loose = Tolerance(logits=10)
    for voxels, allowed in ((20, True), (21, False)):  # of 4000: 0.5 %
        swapped = two_winners()
        swapped[[0, 1], :voxels] = swapped[[1, 0], :voxels]
        assert (sample_of(two_winners()).objection(swapped, loose) == "") == allowed
    assert "0.53%" in sample_of(two_winners()).objection(swapped, loose)


def test_constant_logits_never_pass():
    assert sample_of(np.zeros((3, 10))).objection(np.zeros((3, 10))) != ""


def test_labels_are_those_of_prediction():
    logits = np.random.default_rng(1).normal(size=(4, 9, 8, 7)).astype(np.float32)
    for activation, labels in (("softmax", 4), ("sigmoid", 5)):
        decision = LabelDecision(range(labels), activation)
        expected = restore_labels(torch.from_numpy(logits), np.eye(4), np.eye(4), (9, 8, 7), decision)
        np.testing.assert_array_equal(decide_labels(logits, activation), expected.numpy())
        counts = sample_of(logits.reshape(4, -1), activation).voxels_per_label
        assert counts == expected.flatten().long().bincount(minlength=labels).tolist()


def test_a_backend_is_compared_voxel_by_voxel(bundle):
    plan = BundleFolder(bundle).plan
    sample = make_golden_sample(Brightness(), plan, "")
    image = golden_input(1, (16, 16, 16))
    counts = [(image.abs() <= 1).sum().item(), (image > 1).sum().item(), (image < -1).sum().item()]
    assert sample.voxels_per_label == counts
    assert sample.objection_to(TorchBackend(Brightness(), CPU)) == ""
    assert "shape" in sample.objection_to(TorchBackend(nn.Identity(), CPU))


def test_low_precision_needs_the_golden_sample(bundle, monkeypatch):
    monkeypatch.setattr("medseg.inference.backends.choice.has_fast_bf16", lambda device: True)

    def precision(**options):
        model = medseg.load(bundle, backend="torch", precision="auto", device="cpu", **options)
        return model.backend.precision, model.backend_reason

    assert precision()[0] == "fp32"
    assert "the bundle has none" in precision()[1]
    with pytest.raises(OptionError, match=r"bf16.*the bundle has none"):
        medseg.load(bundle, backend="torch", precision="bf16", device="cpu")
    plan, digest = BundleFolder(bundle).plan, BundleFolder(bundle).checked_weights()[1]
    (bundle / GOLDEN).write_bytes(sample_as_bytes(make_golden_sample(Brightness(), plan, digest)))
    assert precision()[0] == "fp32"  # the logits of another network
    assert "logits differ" in precision()[1]
    (bundle / GOLDEN).write_bytes(sample_as_bytes(make_golden_sample(medseg.load_network(bundle), plan, "another")))
    assert "other weights" in precision()[1]
    write_golden_sample(bundle)
    own = bundle / "models" / "model.pt"
    assert "other weights" in precision(weights=[own, own])[1]  # an ensemble is another model
    (bundle / GOLDEN).write_bytes(b"")
    assert "golden.npz" in precision()[1]


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.parents[1].name)
def test_shipped_samples_allow_bf16_and_refuse_a_wrong_bias(file):
    bundle = file.parents[1]
    sample = read_golden_sample(BundleFolder(bundle))
    assert sample.weights_sha256 == BundleFolder(bundle).recorded_sha256
    assert min(sample.voxels_per_label) > 20  # every label occurs, so that labels can be compared
    assert file.stat().st_size < 100_000
    network = medseg.load_network(bundle)
    assert sample.objection_to(TorchBackend(network, CPU), SAME_PRECISION) == ""
    assert sample.objection_to(TorchBackend(network, CPU, "bf16")) == ""
    with torch.no_grad():
        network.head.bias[1] += 0.2
    assert "differ" in sample.objection_to(TorchBackend(network, CPU))
