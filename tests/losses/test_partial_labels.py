"""Losses of voxels that are known to belong to one of several classes, against sums of probabilities."""

import pytest
import torch

from medseg.losses import WeightedCrossEntropyLoss, WeightedDiceCELoss

PARTIAL = {254: [0, 2], 253: [0, 1, 3]}


@pytest.fixture
def example() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 5, 6, generator=random)
    label = torch.randint(0, 4, (2, 1, 5, 6), generator=random)
    label[0][label[0] == 0] = 254
    label[1][label[1] == 0] = 253
    return logits, label


def test_cross_entropy_sums_the_possible_probabilities(example) -> None:
    logits, label = example
    probabilities = logits.softmax(1)
    errors = torch.empty(2, 5, 6)
    for b in range(2):
        for i in range(5):
            for j in range(6):
                value = int(label[b, 0, i, j])
                classes = PARTIAL.get(value, [value])
                errors[b, i, j] = -probabilities[b, classes, i, j].sum().log()
    found = WeightedCrossEntropyLoss(partial_labels=PARTIAL)(logits, label)
    torch.testing.assert_close(found, errors.flatten(1).mean(1).mean())
    text_keys = {str(partial): classes for partial, classes in PARTIAL.items()}
    torch.testing.assert_close(WeightedCrossEntropyLoss(partial_labels=text_keys)(logits, label), found)


def test_dice_leaves_out_the_voxels_that_may_belong_to_a_class(example) -> None:
    logits, label = example
    probabilities, losses = logits.softmax(1), []
    for b in range(2):
        for k in range(1, 4):
            known = torch.ones(5, 6, dtype=torch.bool)
            for partial, classes in PARTIAL.items():
                if k in classes:
                    known &= label[b, 0] != partial
            p, g = probabilities[b, k][known], (label[b, 0][known] == k).float()
            losses.append(1 - (2 * (p * g).sum() + 1e-5) / (p.sum() + g.sum() + 1e-5))
    found = WeightedDiceCELoss(partial_labels=PARTIAL).dice(logits, label)
    torch.testing.assert_close(found, torch.stack(losses).mean())


def test_regions_that_contain_a_possible_class_have_no_weight(example) -> None:
    logits, label = example
    regions = [[1, 2, 3], [2], [3]]
    logits = logits[:, :3]
    target = torch.cat([torch.isin(label, torch.tensor(region)) for region in regions], 1).float()
    weight = torch.ones_like(target)
    for r, region in enumerate(regions):
        for partial, classes in PARTIAL.items():
            if set(region) & set(classes):
                weight[:, r][label[:, 0] == partial] = 0
    errors = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    expected = ((errors * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)).mean()
    loss = WeightedDiceCELoss(regions=regions, partial_labels=PARTIAL)
    torch.testing.assert_close(loss.cross_entropy(logits, label), expected)
    probabilities = logits.sigmoid() * weight
    overlap, sizes = (probabilities * target).flatten(2).sum(2), (probabilities + target * weight).flatten(2).sum(2)
    torch.testing.assert_close(loss.dice(logits, label), (1 - (2 * overlap + 1e-5) / (sizes + 1e-5)).mean())


def test_all_classes_possible_is_the_ignored_label(example) -> None:
    logits, label = example
    label = torch.where(label > 200, 255, label)
    ignoring = WeightedDiceCELoss(ignore_label=255, denominator="voxels")
    marginal = WeightedDiceCELoss(partial_labels={255: [0, 1, 2, 3]}, denominator="voxels")
    torch.testing.assert_close(marginal(logits, label), ignoring(logits, label))
