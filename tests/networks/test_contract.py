"""Properties of every network, checked on every preset in 2D and 3D."""

import io
import json
import pickle

import pytest
import torch
from networks.tiny_networks import PUBLISHED_DIMS, TINY, image, tiny

from medseg.errors import ShapeError
from medseg.networks import list_presets

every_preset = pytest.mark.parametrize("name", list(TINY))
both_dims = pytest.mark.parametrize("dims", [2, 3])


def test_every_preset_is_covered():
    assert sorted(TINY) == list_presets()


@every_preset
@both_dims
def test_logits_are_the_head_of_the_features_and_have_the_announced_shape(name, dims):
    network = tiny(name, dims).eval()
    x = image(network)
    with torch.no_grad():
        logits, features = network(x), network.features(x)
        assert isinstance(logits, torch.Tensor)
        assert logits.shape == (2, 3, *network.output_shape(x.shape[2:]))
        assert logits.std() > 0
        assert torch.equal(network.head(features), logits)
        assert torch.equal(network.intermediate_features(x)[0], features)
    assert features.shape[1] == network.intermediate_channels[0]


@every_preset
def test_intermediate_heads_fit_the_intermediate_features(name):
    network = tiny(name, **({"heads": "all"} if name.startswith("unetplusplus") else {})).eval()
    x = image(network)
    features, heads = network.intermediate_features(x), network.intermediate_heads()
    assert len(features) == len(heads) == len(network.intermediate_channels)
    logits = [head(f) for head, f in zip(heads, features, strict=True)]
    assert torch.equal(logits[0], network(x))
    assert all(other.shape[:2] == (2, 3) for other in logits)
    assert tuple(f.shape[1] for f in features) == network.intermediate_channels


@every_preset
@both_dims
def test_every_parameter_receives_a_gradient(name, dims):
    network = tiny(name, dims).train()
    network(image(network)).square().mean().backward()
    without = {n for n, p in network.named_parameters() if p.requires_grad and p.grad is None}
    assert without == set(network.unused_parameters())
    declared = {"unetplusplus_preactivation": 4}  # one shallower head: a norm and a convolution, two tensors each
    assert len(without) == declared.get(name, 0)


@every_preset
def test_saved_and_loaded_networks_agree(name):
    network, other = tiny(name).eval(), tiny(name, initialization="he_normal").eval()
    x = image(network)
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    with torch.no_grad():
        other.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(network(x), other(x))
        assert torch.equal(network(x), pickle.loads(pickle.dumps(network))(x))


@every_preset
def test_evaluation_is_deterministic_and_does_not_change_the_input(name):
    network = tiny(name, dropout=0.5).eval()
    x = image(network)
    before = x.clone()
    with torch.no_grad():
        assert torch.equal(network(x), network(x))
    assert torch.equal(x, before)


@every_preset
def test_samples_of_a_batch_do_not_mix(name):
    if name == "unet3d_cicek2016":
        pytest.skip("normalises with the statistics of the batch, by design")
    network = tiny(name).eval()
    x = image(network)
    with torch.no_grad():
        torch.testing.assert_close(network(x)[1:], network(x[1:]), rtol=1e-4, atol=1e-5)


@every_preset
def test_bf16_autocast_is_close_to_fp32(name):
    network = tiny(name).eval()
    x = image(network)
    with torch.no_grad():
        exact = network(x)
        with torch.autocast("cpu", torch.bfloat16):
            features = network.features(x)
            rough = network.head(features)
    assert rough.dtype == torch.bfloat16
    assert features.dtype == torch.bfloat16
    assert (rough.float() - exact).norm() < 0.05 * exact.norm()


@every_preset
def test_bf16_training_step_reaches_every_parameter(name):
    network = tiny(name).train()
    # Not the smallest size: for maps two voxels deep, oneDNN's bf16 kernel for the gradient of the weights reads
    # uninitialised memory in the padding, which can hold a NaN.
    with torch.autocast("cpu", torch.bfloat16):
        loss = network(image(network, larger=2)).float().square().mean()
    loss.backward()
    broken = [n for n, p in network.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    assert broken == []
    assert sum(p.grad is None for p in network.parameters() if p.requires_grad) == len(network.unused_parameters())


@every_preset
@both_dims
def test_channels_last_gives_the_same_logits_and_stays_channels_last(name, dims):
    network = tiny(name, dims).eval()
    x = image(network)
    layout = torch.channels_last if dims == 2 else torch.channels_last_3d
    with torch.no_grad():
        expected = network(x)
        network = network.to(memory_format=layout)
        features = network.features(x.contiguous(memory_format=layout))
        torch.testing.assert_close(network.head(features), expected, rtol=1e-4, atol=1e-4)
    assert features.is_contiguous(memory_format=layout)


@every_preset
def test_activation_checkpointing_changes_nothing(name):
    plain, recomputing = tiny(name).train(), tiny(name, activation_checkpointing=True).train()
    x = image(plain)
    for network in (plain, recomputing):
        torch.manual_seed(3)  # the same dropout
        network(x).square().mean().backward()
    for (key, p), q in zip(plain.named_parameters(), recomputing.parameters(), strict=True):
        if p.grad is not None:
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-5, atol=1e-7, msg=key)
    for (key, p), q in zip(plain.named_buffers(), recomputing.buffers(), strict=True):
        assert torch.equal(p, q), key


@every_preset
def test_errors_about_inputs_name_valid_sizes(name):
    network = tiny(name)
    x = image(network)
    with pytest.raises(ShapeError, match=r"5 axes|4 axes"):
        network(x[0])
    with pytest.raises(ShapeError, match=r"found .* 1 channels.* expected 2 channels"):
        network(x[:, :1])
    with pytest.raises(ShapeError, match=r"axis 0: 1 → \d+; axis 1: \d+ is valid"):
        network(x[:, :, :1])


@every_preset
def test_arguments_survive_json(name):
    arguments = json.loads(json.dumps(TINY[name]))
    network = tiny(name, **arguments)
    assert network.state_dict().keys() == tiny(name).state_dict().keys()


@every_preset
def test_published_spatial_dims_are_the_default(name):
    from medseg.networks import create

    assert create(name, 1, 2, **TINY[name]).spatial_dims == PUBLISHED_DIMS[name]
