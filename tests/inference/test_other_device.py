from dataclasses import replace

import numpy as np
import pytest
import torch
from inference.other_device import DEVICE, OtherDevice, OtherTensor
from inference.plans import small_plan

from medseg.errors import NonFiniteError
from medseg.inference import Predictor
from medseg.inference.tiling.streaming import Window, predict_labels
from medseg.inference.uncertainty import ProbabilityMaps, Uncertainty
from medseg.transforms.restore.label_decision import LabelDecision

SHAPE, NATIVE = (20, 30, 17), (41, 25, 33)
AFFINE = np.diag([SHAPE[0] / NATIVE[0], SHAPE[1] / NATIVE[1], SHAPE[2] / NATIVE[2], 1.0])
SHEARED = AFFINE + np.array([[0, 0.1, 0, 0], [0, 0, 0, 0], [0, 0, 0.05, 0], [0, 0, 0, 0]])
KERNEL = torch.randn(5, 1, 3, 3, 3, generator=torch.Generator().manual_seed(1))
HEAD = torch.randn(7, 5, generator=torch.Generator().manual_seed(2))


def network(tiles):
    kernel = KERNEL.to(tiles.device)
    return torch.nn.functional.conv3d(tiles, kernel, padding=1)


def predict(device=None, affine=AFFINE, head=None, broken=False, observers=(), skipped=frozenset()):
    image = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    if broken:
        image[0, 3, 4, 5] = float("nan")
    decision = LabelDecision(range(5 if head is None else 7))
    return predict_labels(
        image, np.eye(4), affine, NATIVE, network, decision, Window((8, 12, 10), batch_size=3), head,
        observers=observers, skipped=skipped, device=device,
    )  # fmt: skip


@pytest.mark.parametrize("affine", [AFFINE, SHEARED, np.eye(4)], ids=["scaled", "sheared", "same"])
@pytest.mark.parametrize("head", [None, HEAD], ids=["logits", "head"])
def test_merging_on_another_device_gives_the_same_labels(affine, head):
    expected = predict(affine=affine, head=head)
    with OtherDevice() as other:
        found = predict(DEVICE, affine, head)
    assert type(found) is torch.Tensor
    assert torch.equal(found, expected)
    assert other.largest > 0


def test_only_one_value_is_waited_for():
    with OtherDevice() as other:
        predict(DEVICE)
    assert other.waits == 1  # whether all values were finite


def test_what_observers_keep_is_the_same():
    kept = []
    for device in (None, DEVICE):
        maps, doubt = ProbabilityMaps(NATIVE, 5, "softmax"), Uncertainty(NATIVE, 5, "softmax")
        with OtherDevice():
            predict(device, observers=[maps, doubt])
        kept.append((maps.maps, doubt.entropy, doubt.counts))
    for one, two in zip(*kept, strict=True):
        np.testing.assert_array_equal(one, two)


def test_skipped_tiles_are_background():
    skipped = frozenset({(0, 0, 0), (1, 1, 0)})
    expected = predict(skipped=skipped)
    with OtherDevice():
        assert torch.equal(predict(DEVICE, skipped=skipped), expected)


def test_values_that_are_not_finite_are_refused():
    with OtherDevice(), pytest.raises(NonFiniteError, match="NaN"):
        predict(DEVICE, broken=True)


def three_logits(tiles):
    return torch.cat([tiles, -tiles, tiles.roll(1, 2) * 0.9], 1)


@pytest.mark.parametrize("limit", [float("inf"), 4 * 16**3 * 4 * 3], ids=["roomy", "small"])
def test_a_device_that_is_too_small_for_merging_runs_the_network_alone(limit):
    scan = (np.random.default_rng(0).normal(size=(40, 36, 44)).astype(np.float32), np.diag([0.8, 1, 1.1, 1]))
    expected = Predictor(torch.nn.Identity(), small_plan(), "cpu", backend="torch")
    expected.backend.run = three_logits
    found = Predictor(torch.nn.Identity(), small_plan(), DEVICE)
    found.backend.run = three_logits
    found.window = replace(found.window, is_pipelined=False)  # the mode of the other device holds in this thread only
    assert (expected.window.batch_size, found.window.batch_size) == (1, 4)
    with OtherDevice(limit) as other:
        segmentation = found.predict(scan)
    np.testing.assert_array_equal(segmentation.array, expected.predict(scan).array)
    assert other.largest > 0
    notes = " ".join(segmentation.provenance["warnings"])
    assert ("merged on the CPU" in notes) == (limit < float("inf"))


def test_the_device_of_the_tests_notices_tensors_of_two_devices():
    with OtherDevice():
        there = torch.ones(3).to(DEVICE)
        assert isinstance(there, OtherTensor)
        assert (there + 1).device == DEVICE
        with pytest.raises(AssertionError, match="two devices"):
            there + torch.ones(3)
