"""DeepSupervisionLoss against MONAI's own and against the sum written out."""

import monai.losses
import pytest
import torch
import torch.nn.functional as F

from medseg.losses import DeepSupervisionLoss, WeightedCrossEntropyLoss, WeightedDiceCELoss


def levels(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(2, 3, *(8 // 2**i,) * 3, generator=generator) for i in range(3)]
    label = torch.randint(0, 3, (2, 1, 8, 8, 8), generator=generator)
    weight = torch.rand(2, 1, 8, 8, 8, generator=generator)
    return logits, label, weight


@pytest.mark.parametrize("weight_mode", ["exp", "same", "two"])
def test_equals_monai_without_voxel_weights(weight_mode):
    logits, label, _ = levels()
    theirs = monai.losses.DeepSupervisionLoss(WeightedDiceCELoss(), weight_mode=weight_mode)(logits, label.float())
    ours = DeepSupervisionLoss(WeightedDiceCELoss(), weight_mode=weight_mode)(logits, label)
    torch.testing.assert_close(ours, theirs)


def test_voxel_weights_reach_every_level():
    logits, label, weight = levels()
    loss = WeightedCrossEntropyLoss(ignore_label=2)
    # nearest-exact at a factor f takes voxel floor((i + 1/2) f)
    expected = sum(
        factor
        * loss(x, label[..., f // 2 :: f, f // 2 :: f, f // 2 :: f], weight[..., f // 2 :: f, f // 2 :: f, f // 2 :: f])
        for factor, f, x in zip((1.0, 0.5, 0.25), (1, 2, 4), logits, strict=True)
    )
    torch.testing.assert_close(DeepSupervisionLoss(loss)(logits, label, weight), expected)


def test_one_tensor_is_the_loss_itself():
    logits, label, weight = levels()
    loss = WeightedDiceCELoss()
    torch.testing.assert_close(DeepSupervisionLoss(loss)(logits[0], label, weight), loss(logits[0], label, weight))


def test_labels_are_sampled_not_mixed():
    """A label map of 0 and 2 must not produce a 1 on a coarser level: a class that no voxel has gets no gradient."""
    logits, _, _ = levels()
    label = 2 * (torch.rand(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(3)) > 0.5)
    leaf = logits[1].clone().requires_grad_()
    loss = DeepSupervisionLoss(WeightedCrossEntropyLoss())
    (gradient,) = torch.autograd.grad(loss([logits[0], leaf, logits[2]], label), leaf)
    sampled = label[:, 0, 1::2, 1::2, 1::2]
    expected = 0.5 * (F.softmax(leaf, 1) - F.one_hot(sampled, 3).movedim(-1, 1)) / sampled.numel()
    torch.testing.assert_close(gradient, expected.detach())


def test_nothing_labelled_keeps_a_gradient_at_every_level():
    logits, label, weight = levels()
    leaves = [x.requires_grad_() for x in logits]
    loss = DeepSupervisionLoss(WeightedDiceCELoss())(leaves, label, weight * 0)
    gradients = torch.autograd.grad(loss, leaves)
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients)
