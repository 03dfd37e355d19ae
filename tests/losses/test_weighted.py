"""Compare the losses with PyTorch, MONAI, the formulas written out, and closed forms."""

import math

import monai.losses
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor

from medseg.errors import ShapeError
from medseg.losses import DeepSupervisionLoss, WeightedCrossEntropyLoss, WeightedDiceCELoss

BOTH = [WeightedCrossEntropyLoss, WeightedDiceCELoss]


def example(batch=3, channels=4, shape=(5, 6, 7), seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(batch, channels, *shape, generator=generator, dtype=torch.float32)
    label = torch.randint(0, channels, (batch, 1, *shape), generator=generator)
    weight = 5 * torch.rand(batch, 1, *shape, generator=generator)
    return logits, label, weight


def brute_cross_entropy(logits, label, weight, class_weight=None, ignore_label=None):
    """Apply the documented formula to PyTorch's unreduced cross entropy."""
    means = []
    for x, target, w in zip(logits, label[:, 0], weight[:, 0], strict=True):
        keep = torch.ones_like(target, dtype=torch.bool) if ignore_label is None else target != ignore_label
        errors = F.cross_entropy(x[None], torch.where(keep, target, 0)[None], reduction="none")[0][keep]
        factors = w[keep] if class_weight is None else w[keep] * torch.tensor(class_weight)[target[keep]]
        means.append((errors * factors).sum() / factors.sum())
    return torch.stack(means).mean()


@pytest.mark.parametrize("shape", [(9, 11), (5, 6, 7)])
@pytest.mark.parametrize("class_weight", [None, [0.1, 1.0, 2.0, 0.0]])
@pytest.mark.parametrize("ignore_label", [None, 2])
def test_equals_unreduced_cross_entropy(shape, class_weight, ignore_label):
    logits, label, weight = example(shape=shape)
    loss = WeightedCrossEntropyLoss(class_weight, ignore_label)
    expected = brute_cross_entropy(logits, label, weight, class_weight, ignore_label)
    torch.testing.assert_close(loss(logits, label, weight), expected)


def test_is_pytorchs_mean_for_one_sample():
    logits, label, _ = example(batch=1)
    class_weight = [0.5, 1.0, 3.0, 2.0]
    expected = F.cross_entropy(logits, label[:, 0], torch.tensor(class_weight), ignore_index=1)
    torch.testing.assert_close(WeightedCrossEntropyLoss(class_weight, 1)(logits, label), expected)


def test_closed_form_of_uniform_logits():
    """Equal logits give −log(1/K) for any weights, and a Dice loss of 1 − 2 (n/K) / (N/K + n) per class."""
    label = torch.zeros(1, 1, 4, 4, 4, dtype=torch.uint8)
    label[..., :2] = 1
    logits = torch.zeros(1, 2, 4, 4, 4)
    weight = torch.rand(1, 1, 4, 4, 4) + 0.1
    assert float(WeightedCrossEntropyLoss()(logits, label, weight)) == pytest.approx(math.log(2))
    loss = WeightedDiceCELoss(ce_weight=0.0, smooth=1e-9)
    assert float(loss(logits, label, weight)) == pytest.approx(1 - 2 * 16 / (32 + 32), abs=1e-6)


def test_denominator_of_voxels_is_the_sum_over_all_voxels():
    logits, label, weight = example()
    errors = F.cross_entropy(logits, label[:, 0], reduction="none")
    expected = (errors * weight[:, 0]).mean()
    torch.testing.assert_close(WeightedCrossEntropyLoss(denominator="voxels")(logits, label, weight), expected)


@pytest.mark.parametrize("include_background", [True, False])
def test_dice_equals_monai(include_background):
    logits, label, _ = example()
    theirs = monai.losses.DiceLoss(
        include_background=include_background, to_onehot_y=True, softmax=True, smooth_nr=1e-5, smooth_dr=1e-5
    )
    ours = WeightedDiceCELoss(include_background=include_background)
    torch.testing.assert_close(ours.dice(logits, label), theirs(logits, label))
    cross_entropy = F.cross_entropy(logits, label[:, 0])
    factors = WeightedDiceCELoss(include_background=include_background, dice_weight=0.3, ce_weight=2.0)
    torch.testing.assert_close(factors(logits, label), 0.3 * theirs(logits, label) + 2.0 * cross_entropy)


@pytest.mark.parametrize("include_background", [True, False])
@pytest.mark.parametrize("absent_class", [False, True])
def test_batch_dice_equals_monai(include_background, absent_class):
    logits, label, _ = example()
    if absent_class:
        label[1] = label[1].clamp(max=2)  # one sample lacks class 3, so the two kinds of Dice differ clearly
    theirs = monai.losses.DiceLoss(
        include_background, to_onehot_y=True, softmax=True, smooth_nr=1e-5, smooth_dr=1e-5, batch=True
    )(logits, label)
    loss = WeightedDiceCELoss(include_background=include_background, batch_dice=True, ce_weight=2.0)
    torch.testing.assert_close(loss.dice(logits, label), theirs)
    torch.testing.assert_close(loss(logits, label), theirs + 2 * F.cross_entropy(logits, label[:, 0]))
    assert not torch.allclose(WeightedDiceCELoss(include_background=include_background).dice(logits, label), theirs)


def test_batch_dice_of_regions_equals_monai():
    logits, label, _ = example(channels=2)
    label = torch.randint(0, 3, label.shape, generator=torch.Generator().manual_seed(1))
    target = torch.cat([label > 0, label == 2], dim=1)
    theirs = monai.losses.DiceLoss(sigmoid=True, smooth_nr=1e-5, smooth_dr=1e-5, batch=True)(logits, target.float())
    loss = WeightedDiceCELoss(regions=[[1, 2], [2]], batch_dice=True)
    torch.testing.assert_close(loss.dice(logits, label), theirs)


def test_batch_dice_leaves_out_voxels_without_a_label():
    """Ignored voxels and samples without annotation equal voxels and samples that are cut off."""
    logits, label, weight = example(shape=(8, 6, 5))
    weight[:, :, 4:] = 0
    weight[2] = 0
    label[:2, :, 3] = 255
    loss = WeightedDiceCELoss(ignore_label=255, batch_dice=True)
    torch.testing.assert_close(loss.dice(logits, label, weight), loss.dice(logits[:2, :, :3], label[:2, :, :3]))
    logits.requires_grad_()
    nothing = loss.dice(logits, label, weight * 0)
    (gradient,) = torch.autograd.grad(nothing, logits)
    assert float(nothing.detach()) == pytest.approx(0.0, abs=1e-7)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_voxels_of_weight_zero_equal_voxels_that_are_cut_off():
    logits, label, weight = example(shape=(8, 6, 5))
    weight[:, :, 4:] = 0
    loss = WeightedDiceCELoss()
    torch.testing.assert_close(
        loss(logits, label, weight), loss(logits[:, :, :4], label[:, :, :4], weight[:, :, :4]), rtol=1e-5, atol=1e-6
    )


def test_regions_equal_binary_cross_entropy_and_sigmoid_dice():
    logits, label, weight = example(channels=3)
    label = torch.randint(0, 4, label.shape, generator=torch.Generator().manual_seed(1))
    regions = [[1, 2, 3], [2, 3], [3]]
    target = torch.cat([sum((label == v) for v in region) for region in regions], dim=1).float()
    errors = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    per_sample = (errors * weight).sum((1, 2, 3, 4)) / (3 * weight.sum((1, 2, 3, 4)))
    torch.testing.assert_close(WeightedCrossEntropyLoss(regions=regions)(logits, label, weight), per_sample.mean())
    dice = monai.losses.DiceLoss(sigmoid=True)(logits, target)
    torch.testing.assert_close(WeightedDiceCELoss(regions=regions).dice(logits, label), dice)


def test_region_class_weights_weigh_channels():
    logits, label, _ = example(batch=1, channels=2)
    label = (label > 0).long()
    errors = F.binary_cross_entropy_with_logits(
        logits, torch.cat([label == 1, label == 0], 1).float(), reduction="none"
    ).mean((0, 2, 3, 4))
    loss = WeightedCrossEntropyLoss(class_weight=[3.0, 1.0], regions=[[1], [0]])
    torch.testing.assert_close(loss(logits, label), (3 * errors[0] + errors[1]) / 4)


@pytest.mark.parametrize("loss_class", BOTH)
@pytest.mark.parametrize("regions", [None, [[1], [1, 2], [3], [2, 3]]])
def test_ignored_label_equals_weight_zero(loss_class, regions):
    logits, label, weight = example()
    masked = torch.where(label == 3, 0.0, weight)
    torch.testing.assert_close(
        loss_class(ignore_label=3, regions=regions)(logits, label, weight),
        loss_class(regions=regions)(logits, label, masked),
    )


@pytest.mark.parametrize("loss_class", BOTH)
@pytest.mark.parametrize("regions", [None, [[1], [2], [3], [2, 3]]])
def test_nothing_labelled_is_zero_with_a_zero_gradient(loss_class, regions):
    logits, label, _ = example()
    logits.requires_grad_()
    for arguments, extra in (({"ignore_label": 9}, (label * 0 + 9,)), ({}, (label, torch.zeros_like(label)))):
        loss = loss_class(regions=regions, **arguments)(logits, *extra)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert float(loss.detach()) == pytest.approx(0.0, abs=1e-7)
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("loss_class", BOTH)
def test_an_unlabelled_sample_counts_as_zero(loss_class):
    logits, label, weight = example(batch=2)
    weight[1] = 0
    alone = loss_class()(logits[:1], label[:1], weight[:1])
    torch.testing.assert_close(loss_class()(logits, label, weight), alone / 2)


@pytest.mark.parametrize("loss_class", BOTH)
@pytest.mark.parametrize("denominator", ["weights", "voxels"])
def test_two_processes_equal_one(loss_class, denominator):
    """Averaging the gradients of two half batches (what DDP does) gives the whole batch's gradient."""
    logits, label, weight = example(batch=4)
    weight[1] = 0
    weight[2, ..., :3] = 0
    logits.requires_grad_()
    loss = loss_class(class_weight=[1.0, 2.0, 3.0, 4.0], ignore_label=2, denominator=denominator)
    (whole,) = torch.autograd.grad(loss(logits, label, weight), logits)
    halves = sum(loss(logits[i : i + 2], label[i : i + 2], weight[i : i + 2]) / 2 for i in (0, 2))
    (averaged,) = torch.autograd.grad(halves, logits)
    torch.testing.assert_close(whole, averaged)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    batch=st.integers(1, 3),
    channels=st.integers(2, 5),
    scale=st.floats(0.1, 100),
    dims=st.integers(1, 3),
)
def test_the_scale_of_weights_does_not_matter_and_gradients_are_finite(seed, batch, channels, scale, dims):
    logits, label, weight = example(batch, channels, (4, 3, 5)[:dims], seed)
    weight[weight < 1] = 0
    logits.requires_grad_()
    for loss_class in BOTH:
        loss = loss_class()(logits, label, weight)
        torch.testing.assert_close(loss, loss_class()(logits, label, scale * weight), rtol=1e-5, atol=1e-6)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(gradient).all()
        unlabelled = (weight == 0).expand_as(gradient)
        assert torch.equal(gradient[unlabelled], torch.zeros_like(gradient[unlabelled]))


@pytest.mark.parametrize("loss_class", BOTH)
def test_gradient_against_finite_differences(loss_class):
    logits, label, weight = example(batch=2, channels=3, shape=(2, 3))
    double = loss_class(class_weight=[1.0, 2.0, 0.5])
    # float32 inside, so a coarse step: the gradient must agree to a few per mille
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(double(logits, label, weight), logits)
    step = 1e-2
    with torch.no_grad():
        for position in [(0, 0, 0, 0), (1, 2, 1, 2), (0, 1, 1, 1)]:
            shifted = [logits.clone(), logits.clone()]
            shifted[0][position] += step
            shifted[1][position] -= step
            numeric = (double(shifted[0], label, weight) - double(shifted[1], label, weight)) / (2 * step)
            assert float(numeric) == pytest.approx(float(gradient[position]), abs=2e-4)


@pytest.mark.parametrize("loss_class", BOTH)
def test_float32_under_bfloat16_autocast(loss_class):
    logits, label, weight = example()
    low = logits.bfloat16()
    loss = loss_class()
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = loss(low, label, weight)
    assert under_autocast.dtype == torch.float32
    torch.testing.assert_close(under_autocast, loss(low.float(), label, weight), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.float32])
def test_label_types_and_meta_tensors_agree(dtype):
    logits, label, weight = example()
    expected = WeightedDiceCELoss()(logits, label, weight)
    found = WeightedDiceCELoss()(MetaTensor(logits), MetaTensor(label.to(dtype)), MetaTensor(weight))
    assert type(found) is torch.Tensor
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_uint8_label_is_not_mistaken_for_a_negative_ignore_label():
    """In torch uint8 255 == −1 is true, but 255 is a wrong label here and not the ignored one."""
    logits, label, _ = example()
    label = label.to(torch.uint8)
    label[0, 0, 0, 0, 0] = 255
    with pytest.raises(ValueError, match=r"0\.\.3.*255"):
        WeightedCrossEntropyLoss(ignore_label=-1)(logits, label)
    WeightedCrossEntropyLoss(ignore_label=255)(logits, label)


def test_class_weights_stay_out_of_checkpoints():
    assert WeightedDiceCELoss(class_weight=[1.0, 2.0]).state_dict() == {}


def test_errors_name_the_values_found_and_expected():
    logits, label, weight = example()
    with pytest.raises(ShapeError, match=r"label.*\(3, 1, 5, 6, 7\).*\(3, 5, 6, 7\)"):
        WeightedCrossEntropyLoss()(logits, label[:, 0])
    with pytest.raises(ShapeError, match=r"weight.*\(3, 1, 5, 6, 7\).*\(3, 1, 5, 6, 6\)"):
        WeightedDiceCELoss()(logits, label, weight[..., 1:])
    with pytest.raises(ShapeError, match=r"class_weight.*2.*4"):
        WeightedCrossEntropyLoss([1, 2])(logits, label)
    with pytest.raises(ShapeError, match=r"2 regions.*4"):
        WeightedCrossEntropyLoss(regions=[[1], [2]])(logits, label)
    with pytest.raises(ValueError, match=r"0\.\.3.*\[7\]"):
        WeightedDiceCELoss()(logits, torch.where(label == 1, 7, label))
    with pytest.raises(ValueError, match=r"class_weight.*-1"):
        WeightedCrossEntropyLoss([-1.0, 1.0])
    with pytest.raises(ValueError, match=r"smooth.*0"):
        WeightedDiceCELoss(smooth=0.0)
    with pytest.raises(ValueError, match=r"denominator.*batch"):
        WeightedDiceCELoss(denominator="batch")


def levels(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(2, 3, *(8 // 2**i,) * 3, generator=generator) for i in range(3)]
    label = torch.randint(0, 3, (2, 1, 8, 8, 8), generator=generator)
    weight = torch.rand(2, 1, 8, 8, 8, generator=generator)
    return logits, label, weight


@pytest.mark.parametrize("weight_mode", ["exp", "same", "two"])
def test_deep_supervision_equals_monai_without_voxel_weights(weight_mode):
    logits, label, _ = levels()
    theirs = monai.losses.DeepSupervisionLoss(WeightedDiceCELoss(), weight_mode=weight_mode)(logits, label.float())
    ours = DeepSupervisionLoss(WeightedDiceCELoss(), weight_mode=weight_mode)(logits, label)
    torch.testing.assert_close(ours, theirs)


def test_deep_supervision_weights_every_level():
    logits, label, weight = levels()
    loss = WeightedCrossEntropyLoss(ignore_label=2)
    # nearest-exact at a factor f takes voxel floor((i + 1/2) f)
    expected = sum(
        factor
        * loss(x, label[..., f // 2 :: f, f // 2 :: f, f // 2 :: f], weight[..., f // 2 :: f, f // 2 :: f, f // 2 :: f])
        for factor, f, x in zip((1.0, 0.5, 0.25), (1, 2, 4), logits, strict=True)
    )
    torch.testing.assert_close(DeepSupervisionLoss(loss)(logits, label, weight), expected)


def test_deep_supervision_of_one_tensor_is_the_loss_itself():
    logits, label, weight = levels()
    loss = WeightedDiceCELoss()
    torch.testing.assert_close(DeepSupervisionLoss(loss)(logits[0], label, weight), loss(logits[0], label, weight))


def test_deep_supervision_samples_labels_without_mixing_them():
    """A label map of 0 and 2 must not produce a 1 on a coarser level, so class 1 gets the gradient of absence."""
    logits, _, _ = levels()
    label = 2 * (torch.rand(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(3)) > 0.5)
    leaf = logits[1].clone().requires_grad_()
    loss = DeepSupervisionLoss(WeightedCrossEntropyLoss())
    (gradient,) = torch.autograd.grad(loss([logits[0], leaf, logits[2]], label), leaf)
    sampled = label[:, 0, 1::2, 1::2, 1::2]
    expected = 0.5 * (F.softmax(leaf, 1) - F.one_hot(sampled, 3).movedim(-1, 1)) / sampled.numel()
    torch.testing.assert_close(gradient, expected.detach())


def test_deep_supervision_without_labels_has_a_zero_gradient_at_every_level():
    logits, label, weight = levels()
    leaves = [x.requires_grad_() for x in logits]
    loss = DeepSupervisionLoss(WeightedDiceCELoss())(leaves, label, weight * 0)
    gradients = torch.autograd.grad(loss, leaves)
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients)
