import pytest
import torch
from torch.nn import functional as F

from medseg.errors import NetworkError, ShapeError
from medseg.networks import UNETR
from medseg.networks.unetr import SelfAttention, resize_position_embedding

TINY = {"channels": (4, 8), "taps": (1, 2), "embedding_channels": 8, "num_heads": 2, "mlp_channels": 12}


def test_attention_is_that_of_torch():
    """Compare with torch.nn.MultiheadAttention of the same weights."""
    ours = SelfAttention(12, 3, bias=True, dropout=0.0).eval()
    theirs = torch.nn.MultiheadAttention(12, 3, batch_first=True).eval()
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.out.weight,
            "out_proj.bias": ours.out.bias,
        }
    )
    tokens = torch.randn(2, 7, 12)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens, tokens, tokens)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("grid", "wanted"), [((3, 4), (5, 2)), ((2, 3, 4), (4, 3, 2))])
def test_position_embedding_is_interpolated_linearly(grid, wanted):
    """An embedding that is linear in the patch's position stays that function between the outermost centres."""
    axes = torch.meshgrid(*[(torch.arange(n) + 0.5) / n for n in grid], indexing="ij")
    table = torch.stack(axes, -1).reshape(1, -1, len(grid))
    resized = resize_position_embedding(table, grid, wanted).reshape(*wanted, len(grid))
    expected = [((torch.arange(n) + 0.5) / n) for n in wanted]
    for axis, (centres, n) in enumerate(zip(expected, grid, strict=True)):
        clamped = centres.clamp(0.5 / n, 1 - 0.5 / n)
        along = resized[..., axis].movedim(axis, 0).flatten(1)[:, 0]
        torch.testing.assert_close(along, clamped)
    assert torch.equal(resize_position_embedding(table, grid, grid), table)


def test_any_size_divisible_by_the_patch_is_valid():
    network = UNETR(1, 2, image_size=8, **TINY).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 1, 12, 4, 16)).shape == (1, 2, 12, 4, 16)
    with pytest.raises(ShapeError, match="axis 0: 10 → 8 or 12"):
        network(torch.randn(1, 1, 10, 8, 8))


def test_network_of_the_new_size_equals_the_old_one_run_at_it():
    """Resizing the position embedding while loading and while running gives the same logits."""
    small, large = UNETR(1, 2, image_size=8, **TINY).eval(), UNETR(1, 2, image_size=(12, 16, 8), **TINY).eval()
    state, notes = large.fit_state(small.state_dict())
    large.load_state_dict(state)
    x = torch.randn(1, 1, 12, 16, 8)
    with torch.no_grad():
        torch.testing.assert_close(large(x), small(x), rtol=1e-5, atol=1e-6)
    assert notes == ["position embedding resized from (2, 2, 2) to (3, 4, 2) patches"]


@pytest.mark.parametrize("encoder_norm", ["applied", "unused", "none"])
def test_encoder_norm_is_applied_kept_or_absent(encoder_norm):
    network = UNETR(1, 2, image_size=8, encoder_norm=encoder_norm, **TINY).eval()
    keys = {"encoder.encoder_norm.weight", "encoder.encoder_norm.bias"}
    assert (keys <= set(network.state_dict())) == (encoder_norm != "none")
    if encoder_norm == "none":
        return
    x = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        before = network(x)
        network.encoder.encoder_norm.weight.mul_(2)
        assert torch.equal(network(x), before) == (encoder_norm == "unused")
    assert network.encoder.encoder_norm.weight.requires_grad == (encoder_norm == "applied")


def test_taps_are_the_outputs_of_the_named_blocks():
    network = UNETR(1, 2, image_size=8, **{**TINY, "taps": (1, 3), "encoder_norm": "none"}).eval()
    x = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        patches = F.conv3d(x, network.encoder.patch_embedding.weight, network.encoder.patch_embedding.bias, stride=4)
        tokens = patches.flatten(2).transpose(1, 2) + network.encoder.position_embedding
        outputs = []
        for block in network.encoder.blocks:
            tokens = block(tokens)
            outputs.append(tokens.transpose(1, 2).reshape(1, 8, 2, 2, 2))
        first, last = network.encoder(x)
    assert len(outputs) == 3
    assert torch.equal(first, outputs[0])
    assert torch.equal(last, outputs[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 10}, r"image_size=\(10, 10, 10\).* 4 voxels"),
        ({"taps": (1, 2, 3)}, r"taps=\(1, 2, 3\).* = 2"),
        ({"taps": (2, 1)}, r"taps=\(2, 1\)"),
        ({"num_heads": 3}, "embedding_channels=8.*num_heads=3"),
        ({"encoder_norm": "yes"}, "encoder_norm='yes'.*applied, unused, none"),
        ({"spatial_dims": 1}, "spatial_dims=1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(NetworkError, match=message):
        UNETR(1, 2, **{**TINY, "image_size": 8, **arguments})
