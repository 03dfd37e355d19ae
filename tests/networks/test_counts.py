"""Published numbers of parameters and shapes, exactly; on the meta device, which needs no memory."""

from pathlib import Path

import pytest
import torch
from monai.networks.nets import UNETR as MonaiUNETR  # noqa: N811
from networks.parameter_counts import COUNTS, PRUNED

from medseg.networks import create

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "networks.md"


def on_meta(name, in_channels, out_channels, **overrides):
    with torch.device("meta"):
        return create(name, in_channels, out_channels, **overrides)


def count(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(("name", "in_channels", "out_channels", "overrides", "published", "_"), COUNTS)
def test_number_of_parameters(name, in_channels, out_channels, overrides, published, _):
    assert count(on_meta(name, in_channels, out_channels, **overrides)) == published


@pytest.mark.parametrize("name", PRUNED)
def test_number_of_parameters_of_pruned_networks(name):
    in_channels, out_channels, overrides, published = PRUNED[name]
    network = on_meta(name, in_channels, out_channels, **overrides)
    assert tuple(count(network.prune(depth)) for depth in range(1, 5)) == published


def test_unetr_has_the_parts_of_the_published_one():
    network = on_meta("unetr_relu", 4, 3)
    transformer = count(network.encoder)
    assert (transformer, count(network) - transformer) == (79_146_240, 69_809_059)
    assert count(network.encoder.blocks[0]) == 5_513_984
    assert count(network.encoder.encoder_norm) == 1_536


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "size", "monai"), [(1, 14, 96, 92_802_478), (4, 3, 128, 102_468_147)]
)
def test_unetr_has_monais_parameters_without_those_monai_never_uses(in_channels, out_channels, size, monai):
    with torch.device("meta"):
        theirs = MonaiUNETR(in_channels, out_channels, (size,) * 3)
    unused = sum(p.numel() for n, p in theirs.named_parameters() if "norm_cross_attn" in n)
    assert (count(theirs), unused) == (monai, 18_432)
    assert count(on_meta("unetr_monai", in_channels, out_channels, image_size=size)) == monai - unused


def test_unetr_has_the_papers_number_in_convolutions_and_linear_layers():
    network = on_meta("unetr_hatamizadeh2021", 1, 14)
    layers = (torch.nn.Conv3d, torch.nn.ConvTranspose3d, torch.nn.Linear)
    found = sum(p.numel() for m in network.modules() if isinstance(m, layers) for p in m.parameters())
    assert found == 92_579_758


@pytest.mark.parametrize(
    ("name", "channels", "size", "published"),
    [
        ("unet_ronneberger2015", (1, 2), (572, 572), (388, 388)),
        ("unet3d_cicek2016", (3, 3), (132, 132, 116), (44, 44, 28)),
        ("unet3d_prelu", (3, 3), (128, 128, 64), (128, 128, 64)),
        ("unetplusplus_preactivation", (3, 3), (224, 224), (224, 224)),
        ("unetr_relu", (4, 3), (128, 128, 128), (128, 128, 128)),
        ("unetr_hatamizadeh2021", (1, 14), (96, 64, 80), (96, 64, 80)),
        ("unet_padded", (1, 2), (37, 50), (37, 50)),
    ],
)
def test_published_shapes_at_full_width(name, channels, size, published):
    network = on_meta(name, *channels)
    with torch.no_grad():
        logits = network(torch.empty(1, channels[0], *size, device="meta"))
    assert logits.shape == (1, channels[1], *published)
    assert network.output_shape(size) == published


def test_document_states_these_counts():
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, in_channels, out_channels, _, published, _ in COUNTS:
        rows = [line for line in text.splitlines() if f"`{name}`" in line and f"{published:,}" in line]
        assert any(f"{in_channels} → {out_channels}" in row for row in rows), (name, published)
    for name, (_, _, _, pruned) in PRUNED.items():
        row = " | ".join(f"{n:,}" for n in pruned)
        assert any(f"`{name}`" in line and row in line for line in text.splitlines()), (name, row)
