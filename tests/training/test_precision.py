"""The precision of a training: a rule for `auto`, kept in checkpoints."""

import pytest
import torch
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from training.test_iteration import batch, small_network

from medseg.losses import WeightedCrossEntropyLoss
from medseg.training import CheckpointHandler, SupervisedUpdate, resolve_precision


@pytest.mark.parametrize(
    ("device", "has_bf16", "expected"),
    [("cpu", True, "bf16"), ("cpu", False, "fp32"), ("cuda", True, "bf16"), ("cuda", False, "fp16")],
)
def test_auto_follows_the_hardware(monkeypatch, device, has_bf16, expected):
    monkeypatch.setattr("medseg.training.iteration.has_fast_bf16", lambda device: has_bf16)
    assert resolve_precision("auto", device) == expected


def test_a_group_of_processes_has_one_precision(monkeypatch):
    monkeypatch.setattr("medseg.training.iteration.has_fast_bf16", lambda device: True)
    monkeypatch.setattr("medseg.training.iteration.all_agree", lambda flag: False)  # another one's CPU lacks bf16
    assert resolve_precision("auto", "cpu") == "fp32"


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_an_explicit_choice_is_kept(precision):
    update = SupervisedUpdate(small_network(), precision)
    assert update.precision == precision
    assert update.scaler.is_enabled() == (precision == "fp16")


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"auto, fp32, bf16.*int8"):
        resolve_precision("int8", "cpu")
    with pytest.raises(ValueError, match="half"):
        SupervisedUpdate(small_network(), "half")


def trainer(update: SupervisedUpdate, handler: CheckpointHandler) -> SupervisedTrainer:
    return SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[batch()],
        network=update.network,
        optimizer=torch.optim.SGD(update.network.parameters(), lr=0.1),
        loss_function=WeightedCrossEntropyLoss(),
        iteration_update=update.train,
        train_handlers=[handler],
        decollate=False,
    )


@pytest.mark.parametrize("stored", ["fp32", "bf16", "fp16"])
def test_a_resumed_training_takes_the_precision_of_its_checkpoint(tmp_path, plan, stored):
    first = SupervisedUpdate(small_network(), stored)
    trainer(first, CheckpointHandler(tmp_path, {"network": first.network, "update": first}, plan)).run()
    for asked, expected in (("auto", stored), ("fp32", "fp32"), ("bf16", "bf16"), ("fp16", "fp16")):
        update = SupervisedUpdate(small_network(), asked)
        trainer(update, CheckpointHandler(tmp_path, {"network": update.network, "update": update}, plan, resume=True))
        assert update.precision == expected
        assert update.scaler.is_enabled() == (expected == "fp16")
        for ours, theirs in zip(update.averaged.parameters(), first.averaged.parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_the_precision_of_another_kind_of_device_is_not_taken_over(monkeypatch):
    monkeypatch.setattr("medseg.training.iteration.has_fast_bf16", lambda device: False)
    update = SupervisedUpdate(small_network(), "auto", "cpu")
    update.load_state_dict({**update.state_dict(), "precision": "fp16", "device": "cuda"})
    assert update.precision == "fp32"


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_validation_follows_the_training(precision, dtype):
    update = SupervisedUpdate(small_network(), precision)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[{"image": batch()["image"]}],
        network=update.averaged.module,
        iteration_update=update.evaluate,
        decollate=False,
    )
    evaluator.run()
    assert evaluator.state.output["pred"].dtype == dtype
