"""One training or validation step of `SupervisedUpdate`, beside MONAI's own step."""

import pytest
import torch
from monai.engines import SupervisedEvaluator, SupervisedTrainer

from medseg.losses import WeightedCrossEntropyLoss
from medseg.networks import create
from medseg.training import SupervisedUpdate


def small_network() -> torch.nn.Module:
    torch.manual_seed(0)
    return create("unet3d_cicek2016", in_channels=1, out_channels=2, channels=[4, 8], norm="instance", padding="same")


def batch(weight: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    data = {
        "image": torch.randn(2, 1, 8, 8, 8, generator=generator),
        "label": torch.randint(0, 2, (2, 1, 8, 8, 8), generator=generator),
    }
    return data if weight is None else {**data, "weight": weight}


def train_once(data: dict[str, torch.Tensor], scaler=None, **options: object) -> tuple[torch.nn.Module, float]:
    """Take one step by `SupervisedUpdate` with the options, or by MONAI's own step without any."""
    network = small_network()
    update = SupervisedUpdate(network, **options) if options else None
    if scaler is not None:
        update.scaler = scaler
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[data],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=WeightedCrossEntropyLoss(),
        iteration_update=update.train if update else None,
        decollate=False,
    )
    trainer.run()
    return network, float(trainer.state.output["loss"].detach())


def test_equals_monais_own_step_in_fp32():
    ours, our_loss = train_once(batch(), precision="fp32", channels_last=False)
    monais, monai_loss = train_once(batch())
    assert our_loss == monai_loss
    for ours_p, monais_p in zip(ours.parameters(), monais.parameters(), strict=True):
        assert torch.equal(ours_p, monais_p)


def test_channels_last_changes_only_rounding():
    plain, _ = train_once(batch(), precision="fp32", channels_last=False)
    last, _ = train_once(batch(), precision="fp32", channels_last=True)
    for a, b in zip(plain.parameters(), last.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_voxel_weights_reach_the_loss():
    weight = torch.zeros(2, 1, 8, 8, 8)
    weight[..., :4] = 1
    data = batch(weight)
    _, loss = train_once(data, precision="fp32", channels_last=False)
    with torch.no_grad():
        logits = small_network()(data["image"])
    expected = WeightedCrossEntropyLoss()(logits, data["label"], weight)
    unweighted = WeightedCrossEntropyLoss()(logits, data["label"])
    assert loss == pytest.approx(float(expected), abs=1e-6)
    assert abs(loss - float(unweighted)) > 1e-3


def test_bf16_on_the_cpu_is_close_to_fp32_and_not_equal():
    _, exact = train_once(batch(), precision="fp32")
    _, rounded = train_once(batch(), precision="bf16")
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.03)


def test_gradient_scaling_keeps_the_step_and_skips_overflows():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaled, _ = train_once(batch(), precision="fp32", channels_last=False, scaler=scaler, max_grad_norm=0.5)
    plain, _ = train_once(batch(), precision="fp32", channels_last=False, max_grad_norm=0.5)
    for a, b in zip(scaled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    overflowing = batch()
    overflowing["image"][0, 0, 0, 0, 0] = float("inf")
    skipped, _ = train_once(overflowing, precision="fp32", channels_last=False, scaler=scaler)
    for a, b in zip(skipped.parameters(), small_network().parameters(), strict=True):
        assert torch.equal(a, b)
    assert scaler.get_scale() == 2.0**9


def test_evaluation_keeps_geometry_and_equals_the_network():
    from monai.data import MetaTensor

    network = small_network()
    image = MetaTensor(batch()["image"][:1], affine=torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0])))
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[{"image": image}],
        network=network,
        iteration_update=SupervisedUpdate(network, "fp32").evaluate,
        decollate=False,
    )
    evaluator.run()
    prediction = evaluator.state.output["pred"]
    with torch.no_grad():
        expected = network.eval()(image.as_tensor())
    assert torch.equal(prediction.as_tensor(), expected)
    assert torch.equal(prediction.affine, image.affine)


def test_a_compiled_network_keeps_its_names_and_its_arithmetic():
    plain, _ = train_once(batch(), precision="fp32", channels_last=False)
    network = small_network()
    update = SupervisedUpdate(network, "fp32", channels_last=False)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[batch()],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=WeightedCrossEntropyLoss(),
        iteration_update=update.train,
        decollate=False,
        compile=True,
        compile_kwargs={"backend": "aot_eager"},  # everything except the C++ compiler
    )
    trainer.run()
    for trained in (network, update.averaged.module):
        assert trained.state_dict().keys() == plain.state_dict().keys()
        for name, value in trained.state_dict().items():
            torch.testing.assert_close(value, plain.state_dict()[name], atol=1e-6, rtol=1e-5)
