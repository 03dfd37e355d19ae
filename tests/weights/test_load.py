"""Loading weights: equal logits, adapted classes and channels, and the first mismatch by name."""

import pytest
import torch
from monai.networks.nets import UNETR as MonaiUNETR  # noqa: N811

from medseg import weights
from medseg.errors import WeightsError
from medseg.networks import create

SMALL = {"channels": (4, 8), "norm": "instance", "norm_affine": True, "padding": "same"}


def build(in_channels=1, out_channels=3, **overrides):
    return create("unet3d_cicek2016", in_channels, out_channels, **{**SMALL, **overrides}).eval()


def test_loading_our_own_file_gives_the_same_logits(tmp_path):
    network, other = build(), build()
    path = tmp_path / "model.safetensors"
    weights.write(path, network)
    report = weights.load_into(other, path)
    image = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        assert torch.equal(network(image), other(image))
    assert str(report) == f"{path}: layout medseg, {report.total} of {report.total} tensors match"


def test_the_first_mismatch_is_named_and_nothing_is_loaded():
    network, before = build(), {}
    before = {key: value.clone() for key, value in network.state_dict().items()}
    wrong = build(channels=(4, 16)).state_dict()
    with pytest.raises(WeightsError, match=r"encoder\.1\.convolutions\.0\.conv\.weight: shape found \(8, 4, 3, 3, 3\), "
                                           r"shape expected \(4, 4, 3, 3, 3\) \(\d+ more\)"):  # fmt: skip
        weights.load_into(network, wrong)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_missing_and_unexpected_keys_are_named():
    network = build()
    state = network.state_dict()
    bias = state.pop("head.bias")
    with pytest.raises(WeightsError, match=r"head\.bias: absent, expected shape \(3,\)"):
        weights.load_into(network, state)
    with pytest.raises(WeightsError, match=r"extra: shape found \(3,\), not in the network"):
        weights.load_into(network, {**state, "head.bias": bias, "extra": bias})
    with pytest.raises(WeightsError, match=r"backbone\.weight"):
        weights.load_into(network, {"backbone.weight": bias})


def test_prefixes_of_wrapper_modules_are_removed():
    network, other = build(), build()
    wrapped = {f"module._orig_mod.{key}": value for key, value in network.state_dict().items()}
    weights.load_into(other, wrapped)
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_another_number_of_classes_needs_adapt_and_keeps_the_rest():
    source, target = build(out_channels=3), build(out_channels=5)
    fresh = {key: value.clone() for key, value in target.state_dict().items() if key.startswith("head.")}
    with pytest.raises(WeightsError, match=r"head\.weight.*adapt=True"):
        weights.load_into(target, source.state_dict())
    report = weights.load_into(target, source.state_dict(), adapt=True)
    assert report.notes == ("head re-initialised (3 → 5 classes)",)
    assert report.matched == report.total - 2
    assert all(torch.equal(target.state_dict()[key], value) for key, value in fresh.items())
    image = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        assert torch.equal(source.features(image), target.features(image))


def test_one_channel_gets_the_sum_of_the_weights():
    source, target = build(in_channels=3), build(in_channels=1)
    report = weights.load_into(target, source.state_dict(), adapt=True)
    image = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(target(image), source(image.expand(-1, 3, -1, -1, -1)), rtol=1e-4, atol=1e-5)
    assert "summed (3 → 1 input channels)" in report.notes[0]


def test_more_channels_get_the_weights_repeated():
    source, target = build(in_channels=1), build(in_channels=2)
    report = weights.load_into(target, source.state_dict(), adapt=True)
    image = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(target(image.expand(-1, 2, -1, -1, -1)), source(image), rtol=1e-4, atol=1e-5)
    assert "repeated (1 → 2 input channels)" in report.notes[0]


def test_repeating_three_channels_for_five_keeps_the_mean_response():
    weight = torch.randn(2, 3, 3, 3)
    changed, how = weights.change_input_channels(weight, 6)
    assert how == "repeated"
    torch.testing.assert_close(changed.sum(1), weight.sum(1))


def test_heads_that_the_network_lacks_are_dropped_and_reported():
    arguments = {"channels": (4, 8, 16)}
    source = create("unetplusplus_zhou2018", 1, 2, heads="all", **arguments)
    target = create("unetplusplus_zhou2018", 1, 2, **arguments).eval()
    report = weights.load_into(target, source.state_dict())
    assert report.notes == ("heads 1 dropped (the network has one)",)
    image = torch.randn(1, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(source.eval()(image), target(image))


def test_position_embedding_of_another_size_is_resized():
    arguments = {"channels": (4, 8), "taps": (1, 2), "embedding_channels": 8, "num_heads": 2, "mlp_channels": 8}
    source = create("unetr_hatamizadeh2021", 1, 2, image_size=8, **arguments)
    target = create("unetr_hatamizadeh2021", 1, 2, image_size=(16, 8, 8), encoder_norm="none", **arguments)
    report = weights.load_into(target, source.state_dict())
    assert report.notes == (
        "position embedding resized from (2, 2, 2) to (4, 2, 2) patches",
        "encoder_norm dropped (the network has none)",
    )
    table = source.encoder.position_embedding.reshape(2, 2, 2, 8)
    resized = target.encoder.position_embedding.reshape(4, 2, 2, 8)
    # four centres at 0.25, 0.75, 1.25, 1.75 patches of the old grid, whose centres are at 0.5 and 1.5
    torch.testing.assert_close(resized[1], 0.75 * table[0] + 0.25 * table[1])
    torch.testing.assert_close(resized[3], table[1])


def test_published_weights_in_another_network_name_the_preset_that_takes_them():
    theirs = MonaiUNETR(1, 2, (32, 32, 32), feature_size=4, hidden_size=24, mlp_dim=32, num_heads=2).state_dict()
    network = create("unet_padded", 1, 2, channels=(4, 8))
    with pytest.raises(WeightsError, match=r"network these weights were trained with, preset unetr_monai, or pass"):
        weights.load_into(network, theirs)


def test_assigned_weights_have_the_networks_type():
    network, other = build(), build()
    half = {key: value.half() for key, value in network.state_dict().items()}
    weights.load_into(other, half, assign=True)
    expected = {key: value.float() for key, value in half.items()}
    assert all(value.dtype == torch.float32 for value in other.parameters())
    assert all(torch.equal(value, expected[key]) for key, value in other.state_dict().items())


def test_assigned_weights_have_the_strides_of_a_new_network(tmp_path):
    trained = create("unet_padded", 1, 2, channels=[4, 8]).to(memory_format=torch.channels_last)
    torch.save(trained.state_dict(), tmp_path / "model.pt")
    network = create("unet_padded", 1, 2, channels=[4, 8])
    expected = {key: value.stride() for key, value in network.state_dict().items()}
    weights.load_into(network, tmp_path / "model.pt", assign=True)
    assert {key: value.stride() for key, value in network.state_dict().items()} == expected
    assert {key: value.stride() for key, value in trained.state_dict().items()} != expected
