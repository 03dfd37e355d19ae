"""The rules give the plans that nnU-Net's planner gives, except where docs/planning.md says why not."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from planning.fingerprints import CT_LEVELS, DECATHLON, decathlon, fingerprint

from medseg.errors import MemoryLimitError, OptionError, PlanError
from medseg.planning import LabelFacts, PlannedTraining, Wishes, plan_training
from medseg.planning.data_rules import target_spacing
from medseg.planning.planned_training import Costs

RECORDED = json.loads((Path(__file__).parent / "nnunet_plans.json").read_text(encoding="utf-8"))["plans"]


def activations(plan, batch: int) -> int:
    """Count half-precision maps of a U-Net: what nnU-Net's own estimate is proportional to."""
    arguments = plan.network["arguments"]
    sizes = np.array(plan.patch, dtype=float)
    total = 0.0
    for stage, channels in enumerate(arguments.get("channels", [8])):
        if stage and "strides" in arguments:
            sizes = sizes / np.array(arguments["strides"][stage - 1])
        total += sizes.prod() * channels
    return int(batch * total * 2 * 8) + 50_000_000


COSTS = Costs(
    activations, lambda plan, batch: activations(plan, batch) / 1e10, lambda plan, weights: 10**8, activations
)


def planned(data, costs: Costs = COSTS, memory: int = 8 * 10**9, **wishes) -> PlannedTraining:
    given = Wishes(memory, **{"device": "cuda", "hours": 24.0, **wishes})
    return plan_training(data, given, costs, "a_segmentation", max(1, data.num_cases * 4 // 5))


@pytest.mark.parametrize("task", DECATHLON)
def test_spacing_and_normalisation_of_the_decathlon_equal_nnunets(task: str) -> None:
    theirs = RECORDED[f"Decathlon {task}"]
    plan = planned(decathlon(task)).plan
    assert plan.spacing == pytest.approx(theirs["spacing"], abs=2e-4)
    schemes = {"CTNormalization": "ct", "ZScoreNormalization": "z_score"}
    assert [entry["scheme"] for entry in plan.normalization] == [schemes[name] for name in theirs["normalization"]]


def test_hippocampus() -> None:
    plan = planned(decathlon("04 hippocampus")).plan
    assert (plan.spacing, plan.patch) == ([1.0, 1.0, 1.0], [40, 56, 40])
    assert len(plan.network["arguments"]["channels"]) == 4
    assert plan.normalization == [{"scheme": "z_score"}]
    assert plan.mirror_axes == []
    assert plan.crop_ratios == [1.0, 1.0, 1.0]


def test_spinal_cord_keeps_its_slices_apart() -> None:
    data = fingerprint("cord", [(320, 320, 11)], [(0.5, 0.5, 7.5)], structures=1)
    found = planned(data)
    plan = found.plan
    assert (plan.spacing, plan.patch) == ([0.5, 0.5, 7.5], [320, 320, 12])
    assert plan.network["arguments"]["strides"][0] == [2, 2, 1]
    assert plan.network["arguments"]["kernel_sizes"][0] == [3, 3, 1]
    # a rotation out of the plane would mix slices that are 15 times as far apart as pixels
    assert found.settings.rotation_range == (0.0, 0.0, 0.35)


def test_thin_slices_decide_the_spacing_only_of_coarse_axes() -> None:
    """Percentiles by hand: 18 cases of 5 mm and 4 of 1.5 mm have a 10th percentile of 1.5 mm."""
    shapes = [(512, 512, 50)] * 18 + [(512, 512, 160)] * 4
    coarse = fingerprint("coarse", shapes, [(0.8, 0.8, 5.0)] * 18 + [(0.8, 0.8, 1.5)] * 4)
    assert target_spacing(coarse) == pytest.approx([0.8, 0.8, 1.5])
    isotropic = fingerprint("isotropic", shapes, [(0.8, 0.8, 2.0)] * 18 + [(0.8, 0.8, 1.5)] * 4)
    assert target_spacing(isotropic) == pytest.approx([0.8, 0.8, 2.0])
    too_thin = fingerprint("thin", shapes, [(0.8, 0.8, 5.0)] * 18 + [(0.8, 0.8, 0.5)] * 4)
    assert target_spacing(too_thin) == pytest.approx([0.8, 0.8, 0.8])


def test_normalisation_follows_the_modality() -> None:
    ct = planned(fingerprint("ct", [(64, 64, 64)] * 4, [(1, 1, 1)] * 4, modality="CT")).plan
    assert ct.normalization == [
        {"scheme": "ct", "lower": CT_LEVELS.lower, "upper": CT_LEVELS.upper, "mean": 60.0, "std": 40.0}
    ]
    stripped = fingerprint("stripped", [(80, 80, 80)] * 4, [(1, 1, 1)] * 4, nonzero_shapes=[(60, 60, 60)] * 4)
    assert planned(stripped).plan.normalization == [{"scheme": "z_score", "foreground": "nonzero"}]
    rgb = fingerprint("rgb", [(64, 64)] * 4, [(1, 1)] * 4, 3, "RGB", has_physical_spacing=False)
    plan = planned(rgb).plan
    assert plan.normalization == [{"scheme": "window", "lower": 0.0, "upper": 255.0, "clip": False}] * 3
    assert (plan.spacing, plan.orientation, plan.spatial_dims) == (None, "RA", 2)


def test_touching_instances_get_boundary_weights() -> None:
    data = fingerprint("cells", [(64, 64, 32)] * 8, [(1, 1, 1)] * 8, modality="microscopy")
    assert planned(data).settings.boundary_weights is None
    touching = replace(data, has_instance_maps=True, instances_touch=True)
    weights = planned(touching).settings.boundary_weights
    assert weights is not None
    assert weights.has_instance_maps
    crowd = replace(data, labels={"background": data.labels["background"], "cell": LabelFacts(1, 8, 0.5, 60, 0.8)})
    weights = planned(crowd).settings.boundary_weights
    assert weights is not None
    assert not weights.has_instance_maps
    assert planned(crowd).plan.mirror_axes == [0, 1, 2]


def test_a_cpu_takes_the_widest_network_that_has_time_for_enough_steps() -> None:
    def width(seconds_per_step: float, hours: float) -> int:
        costs = replace(
            COSTS, step_seconds=lambda plan, batch: seconds_per_step * plan.network["arguments"]["channels"][0]
        )
        return planned(decathlon("04 hippocampus"), costs, device="cpu", hours=hours).plan.network["arguments"][
            "channels"
        ][0]

    assert width(0.01, 2.0) == 24  # 0.24 s a step, 25,500 steps
    assert width(0.04, 2.0) == 12  # 0.48 s, 12,750 steps; with 16 channels 9,562
    assert width(1.0, 2.0) == 8
    found = planned(decathlon("04 hippocampus"), replace(COSTS, step_seconds=lambda *_: 100.0), device="cpu")
    assert any("--hours" in warning for warning in found.warnings)


def test_epochs_fill_the_time() -> None:
    costs = replace(COSTS, step_seconds=lambda plan, batch: 0.5)
    settings = planned(decathlon("04 hippocampus"), costs, device="cpu", hours=2.0).settings
    steps = settings.max_epochs * math.ceil(208 / settings.batch_size)
    assert steps * 0.5 == pytest.approx(0.85 * 7200, rel=0.02)


def test_less_memory_gives_a_smaller_patch_and_then_a_refusal() -> None:
    data = decathlon("03 liver")
    sizes = [math.prod(planned(data, memory=memory * 10**8).plan.patch) for memory in (80, 40, 10, 4)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4
    for memory in (80, 10):
        found = planned(data, memory=memory * 10**8)
        assert activations(found.plan, found.settings.batch_size) <= memory * 10**8
        reasons = {decision.name: decision.reason for decision in found.decisions}
        assert f"largest patch with a batch of 2 in {memory / 10:g} GB" in reasons["patch and tile"]
    with pytest.raises(MemoryLimitError, match=r"03 liver.* MB.*--memory"):
        planned(data, memory=45_000_000)


def test_data_beyond_memory_are_mapped() -> None:
    large = replace(COSTS, cached_bytes=lambda plan, weights: 10**12)
    assert planned(decathlon("03 liver"), large).settings.is_mapped
    assert not planned(decathlon("03 liver")).settings.is_mapped


@pytest.mark.parametrize("network", ["unet", "unet3d", "unetplusplus", "unetr", "residual_encoder"])
@pytest.mark.parametrize("dims", [2, 3])
def test_every_network_can_be_built_and_takes_its_tile(network: str, dims: int) -> None:
    data = fingerprint("data", [(48,) * dims] * 4, [(1.0,) * dims] * 4, 2)
    found = planned(data, network=network, device="cpu", hours=0.01)
    import torch

    with torch.device("meta"):
        net = found.plan.create_network()
        assert net(torch.empty(1, 2, *found.plan.tile)).shape == (1, 3, *found.plan.tile)
    assert found.settings.has_deep_supervision == (network == "unetplusplus")


def test_tiny_images_get_two_stages() -> None:
    plan = planned(fingerprint("tiny", [(5, 5, 5)] * 4, [(1, 1, 1)] * 4)).plan
    assert plan.patch == [6, 6, 6]
    assert len(plan.network["arguments"]["channels"]) == 2


def test_slices_of_volumes() -> None:
    data = fingerprint("cord", [(320, 320, 11)] * 5, [(0.5, 0.5, 7.5)] * 5)
    plan = planned(data, configuration="2d").plan
    assert (plan.slice_axis, plan.orientation, plan.spatial_dims, plan.spacing) == ("S", "RA", 2, [0.5, 0.5])
    assert plan.patch == [320, 320]
    with pytest.raises(OptionError, match="3d"):
        planned(fingerprint("flat", [(64, 64)] * 4, [(1, 1)] * 4), configuration="3d")


def test_labels_that_cannot_be_planned() -> None:
    many = fingerprint("many", [(64, 64, 64)] * 4, [(1, 1, 1)] * 4, structures=300)
    with pytest.raises(PlanError, match=r"many.*301.*255"):
        planned(many)
    data = fingerprint("rare", [(64, 64, 64)] * 4, [(1, 1, 1)] * 4)
    absent = replace(data, labels={**data.labels, "structure 2": LabelFacts(2, 0, 0.0)})
    found = planned(absent)
    assert found.plan.crop_ratios == [0.5, 1.0, 0.0]
    assert "structure 2" in found.warnings[0]


@pytest.mark.parametrize(
    ("option", "value"), [("hours", 0), ("hours", float("nan")), ("network", "vnet"), ("configuration", "4d")]
)
def test_options_out_of_range(option: str, value: object) -> None:
    with pytest.raises(OptionError, match=option):
        Wishes(10**9, **{option: value})


def test_every_value_has_a_reason() -> None:
    for data in (decathlon("03 liver"), fingerprint("rgb", [(64, 64)] * 4, [(1, 1)] * 4, 3, "RGB")):
        for decision in planned(data).decisions:
            assert decision.value
            assert decision.reason[0].isupper()
            assert decision.reason.endswith(".")


def test_long_trainings_get_the_stronger_deformation() -> None:
    costs = replace(COSTS, step_seconds=lambda *_: 0.5)
    for hours, probability, scale in ((0.3, 0.3, (0.9, 1.1)), (2.0, 0.7, (0.8, 1.25))):
        settings = planned(decathlon("04 hippocampus"), costs, device="cpu", hours=hours).settings
        assert (settings.max_epochs <= 30) == (probability == 0.3)
        assert (settings.deformation_prob, settings.scale_range) == (probability, scale)
