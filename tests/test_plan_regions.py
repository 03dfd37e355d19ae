"""Overlapping structures of a plan, and how predictions draw them, against brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from inference.plans import small_plan
from monai.data import MetaTensor

from medseg.errors import PlanError
from medseg.losses import WeightedDiceCELoss
from medseg.plan import Plan
from medseg.transforms import RestoreToNative

LABELS = {"background": 0, "necrosis": 1, "edema": 2, "enhancing": 4}
REGIONS = {"whole": [1, 2, 4], "core": [1, 4], "enhancing": [4]}


def region_plan(**changes: Any) -> Plan:
    values = {"labels": LABELS, "label_regions": REGIONS, "regions_class_order": [2, 1, 4], "activation": "sigmoid"}
    return small_plan(**{**values, **changes})


def test_numbers_that_follow_from_regions() -> None:
    plan = region_plan()
    assert (plan.out_channels, plan.label_values, plan.drawn_classes) == (3, [0, 2, 1, 4], [0, 2, 1, 3])
    assert plan.structures == {"whole": (1, 2, 4), "core": (1, 4), "enhancing": (4,)}
    assert plan.classes_of_structures == {"whole": [1, 2, 3], "core": [1, 3], "enhancing": [3]}
    assert plan.output_names == ["background", "whole", "core", "enhancing"]
    assert Plan(**plan.to_dict()).digest == plan.digest != small_plan().digest
    assert small_plan().structures == {"front": (1,), "back": (2,)}
    assert small_plan().drawn_classes == [0, 1, 2]
    assert "label_regions" not in small_plan().to_dict()


def test_later_regions_are_drawn_over_earlier_ones_as_in_nnunet() -> None:
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 6, 7, 8)).astype(np.float32))
    plan = region_plan()
    expected = np.zeros((6, 7, 8), int)
    for channel, value in zip(1 / (1 + np.exp(-logits.numpy())), plan.regions_class_order or (), strict=True):
        expected[channel > 0.5] = value
    meta = {"original_affine": torch.eye(4), "spatial_shape": [6, 7, 8]}
    drawn = RestoreToNative(plan.label_values, "sigmoid")(MetaTensor(logits, torch.eye(4), meta))
    assert np.array_equal(np.asarray(drawn)[0], expected)


def test_targets_are_the_unions_of_labels() -> None:
    plan = region_plan()
    label = torch.from_numpy(np.random.default_rng(1).integers(0, 4, (1, 1, 5, 6, 7)))
    regions = list(plan.classes_of_structures.values())
    target = torch.cat([torch.from_numpy(np.isin(label.numpy(), members)) for members in regions], dim=1)
    loss = WeightedDiceCELoss(regions=regions)
    assert float(loss(torch.where(target, 30.0, -30.0), label)) < 1e-4
    logits = torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, target.float())
    torch.testing.assert_close(loss.cross_entropy(logits, label), cross_entropy)


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"activation": "softmax"}, ["sigmoid"]),
        ({"label_regions": None}, ["regions_class_order", "label_regions"]),
        ({"label_regions": {}}, ["at least one"]),
        ({"label_regions": {**REGIONS, "core": [1, 3]}}, ["'core'", "[1, 3]", "[1, 2, 4]"]),
        ({"label_regions": {**REGIONS, "core": []}}, ["'core'"]),
        ({"label_regions": {**REGIONS, "core": 1}}, ["label_regions"]),
        ({"regions_class_order": None}, ["regions_class_order", "3"]),
        ({"regions_class_order": [2, 1]}, ["regions_class_order", "3"]),
        ({"regions_class_order": [2, 2, 4]}, ["regions_class_order"]),
        ({"regions_class_order": [2, 4, 1]}, ["1 is no value of 'enhancing'"]),
    ],
)
def test_rules(changes: dict[str, Any], facts: list[str]) -> None:
    with pytest.raises(PlanError) as caught:
        region_plan(**changes)
    assert all(fact in str(caught.value) for fact in facts), str(caught.value)
    assert "\n" not in str(caught.value)
