"""`auto` is decided by a probe of the first step, which leaves no trace but the decision."""

import logging
import random

import numpy as np
import pytest
import torch
from bundle.tiny_bundles import BUNDLES
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from training.test_iteration_update import batch, small_network

from medseg.losses import WeightedCrossEntropyLoss
from medseg.plan import read_plan
from medseg.training import Checkpointing, EvaluationUpdate, PrecisionChoice, PrecisionProbe, TrainingUpdate
from medseg.training import precision as module

PLAN = read_plan(BUNDLES / "phantom_cells_segmentation" / "configs" / "plan.json")


def probe(**changes):
    return PrecisionProbe(
        **{
            "fp32_seconds": 2.0,
            "bf16_seconds": 1.0,
            "is_finite": True,
            "logit_error": 0.01,
            "gradient_cosine": 0.99,
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("changes", "expected", "says"),
    [
        ({}, "bf16", "1 s in bf16, 2 s in fp32; logits differ by 1.00%"),
        ({"bf16_seconds": 3.0}, "fp32", "3 s in bf16, 2 s in fp32"),
        ({"bf16_seconds": 1.99}, "fp32", "1.99 s in bf16"),  # nothing worth the rounding
        ({"is_finite": False}, "fp32", "NaN or infinity"),
        ({"logit_error": float("nan")}, "fp32", "more than rounding"),
        ({"logit_error": 0.3}, "fp32", "more than rounding"),
        ({"gradient_cosine": 0.2}, "fp32", "more than rounding"),
    ],
)
def test_the_faster_one_that_is_right(changes, expected, says):
    found = probe(**changes)
    assert found.precision == expected
    assert says in str(found)


@pytest.fixture
def hardware(monkeypatch):
    """A processor that multiplies bf16 in hardware, whatever runs the test (bf16 is emulated elsewhere)."""
    monkeypatch.setattr(module, "has_fast_bf16", lambda *device: True)


def noisy_network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.BatchNorm3d(4), torch.nn.Dropout(0.3), torch.nn.Conv3d(4, 2, 1)
    )


def trainer(network, precision, steps=2, **options):
    return SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[batch()] * steps,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=WeightedCrossEntropyLoss(),
        iteration_update=TrainingUpdate(precision),
        decollate=False,
        **options,
    )


def test_the_probe_leaves_weights_statistics_and_random_states_alone(hardware, caplog):
    choice, network = PrecisionChoice("auto"), noisy_network()
    with caplog.at_level(logging.INFO):
        trainer(network, choice).run()
    assert not choice.is_open
    said = [entry.getMessage() for entry in caplog.records if entry.getMessage().startswith("precision auto: ")]
    assert said == [f"precision auto: {choice.precision} ({choice.probe})"]
    after = torch.rand(3)

    plain = noisy_network()
    trainer(plain, choice.precision).run()
    for name, value in plain.state_dict().items():  # dropout's masks and running means included
        assert torch.equal(value, network.state_dict()[name]), name
    assert torch.equal(torch.rand(3), after)


def test_global_generators_are_put_back(hardware):
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    network = noisy_network()
    x = torch.randn(1, 1, 4, 4, 4)

    def step():
        random.random()
        np.random.rand()  # noqa: NPY002
        logits = network(x)
        return logits, logits.float().square().mean()

    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    PrecisionChoice("auto").decide(network, step)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]  # noqa: NPY002
    assert all(parameter.grad is None for parameter in network.parameters())


def test_wrong_arithmetic_is_found_out(hardware):
    network = torch.nn.Linear(4, 2)
    x = torch.randn(8, 4)

    def step():  # a processor whose bf16 gradients are NaN
        logits = network(x)
        if logits.dtype == torch.bfloat16:
            logits.register_hook(lambda gradient: gradient * float("nan"))
        return logits, logits.float().square().mean()

    choice = PrecisionChoice("auto")
    assert "NaN or infinity" in choice.decide(network, step)
    assert choice.precision == "fp32"


def test_without_the_hardware_nothing_is_probed(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    choice = PrecisionChoice("auto")
    assert (choice.precision, choice.is_open, choice.probe) == ("fp32", False, None)


@pytest.mark.parametrize("stored", ["fp32", "bf16"])
def test_a_resumed_training_takes_the_checkpoints_choice(hardware, tmp_path, stored):
    network = small_network()
    first = trainer(network, PrecisionChoice(stored))
    Checkpointing(tmp_path, {"network": network, "precision": PrecisionChoice(stored)}, PLAN).attach(first)
    first.run()
    for asked, expected in (("auto", stored), ("fp32", "fp32"), ("bf16", "bf16")):
        choice = PrecisionChoice(asked)
        again = trainer(network, choice)
        Checkpointing(tmp_path, {"network": network, "precision": choice}, PLAN, resume=True).attach(again)
        assert (choice.precision, choice.is_open) == (expected, False)


def test_a_choice_of_another_kind_of_device_is_not_taken_over():
    choice = PrecisionChoice("auto", "cpu")
    before = choice.precision, choice.is_open
    choice.load_state_dict({"precision": "fp16", "device": "cuda", "probe": None})
    assert (choice.precision, choice.is_open) == before


def test_the_probe_itself_is_kept():
    choice, other = PrecisionChoice("auto"), PrecisionChoice("auto")
    choice.probe = probe()
    other.load_state_dict(choice.state_dict())
    assert other.probe == choice.probe


def test_validation_follows_the_training():
    choice = PrecisionChoice("fp32")
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[{"image": batch()["image"]}],
        network=small_network(),
        iteration_update=EvaluationUpdate(choice),
        decollate=False,
    )
    dtypes = []
    for choice._static in ("fp32", "bf16"):
        evaluator.run()
        dtypes.append(evaluator.state.output["pred"].dtype)
    assert dtypes == [torch.float32, torch.bfloat16]


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="auto, fp32, bf16 or fp16, found 'half'"):
        PrecisionChoice("half")
