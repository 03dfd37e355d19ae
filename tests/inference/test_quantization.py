"""int8: the result of a simulation in torch, one range for maps that are joined, and the choice of the precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from medseg.errors import BackendError, OptionError
from medseg.inference.backends.choice import choose_backend
from medseg.networks import create
from medseg.networks.precision import has_fast_int8

openvino = pytest.importorskip("openvino")
from medseg.inference.backends.openvino_backend import OpenVINOBackend, measured_ranges  # noqa: E402

needs_vnni = pytest.mark.skipif(not has_fast_int8(), reason="this CPU has no instructions for int8")
CPU, SHAPE = torch.device("cpu"), (1, 1, 12, 16, 20)
MIDDLE = "__module.middle/aten::_convolution/Convolution"


class ThreeConvolutions(nn.Module):
    """Only the middle one is neither the image's nor the last."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle = nn.Conv3d(1, 16, 3, padding=1), nn.Conv3d(16, 16, 3, padding=1)
        self.head = nn.Conv3d(16, 3, 1)

    def inner(self, x: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(F.instance_norm(self.first(x)), 0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(F.instance_norm(self.middle(self.inner(x)))))


def three_convolutions() -> ThreeConvolutions:
    torch.manual_seed(0)
    return ThreeConvolutions().eval()


def images(count: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(SHAPE, generator=generator) for _ in range(count)]


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).square().mean().sqrt() / expected.std()).item()


def simulated(network: ThreeConvolutions, x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Run the network with the input and the weights of its middle convolution rounded, in fp32."""
    step = (high - low) / 255
    rounded = torch.fake_quantize_per_tensor_affine(network.inner(x), step, round(-low / step), 0, 255)
    weight = network.middle.weight
    scales = weight.abs().amax((1, 2, 3, 4)) / 127
    kernel = torch.fake_quantize_per_channel_affine(weight, scales, torch.zeros(16, dtype=torch.int32), 0, -127, 127)
    y = F.conv3d(rounded, kernel, network.middle.bias, padding=1)
    return network.head(F.relu(F.instance_norm(y)))


def test_ranges_are_the_mean_extremes_of_the_tiles() -> None:
    network, tiles = three_convolutions(), images(3)
    with torch.no_grad():
        maps = [network.inner(tile) for tile in tiles]
    low, high = (float(np.mean([getattr(m, end)().item() for m in maps])) for end in ("min", "max"))
    assert measured_ranges(network, tiles) == {MIDDLE: pytest.approx((low, high), rel=1e-4)}


@needs_vnni
@torch.no_grad()
def test_int8_equals_a_simulation_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medseg.inference.backends.openvino_backend.has_fast_bf16", lambda: False)
    network, (image, *_) = three_convolutions(), images()
    ranges = measured_ranges(network, images())
    found = OpenVINOBackend(network, SHAPE, "int8", ranges=ranges)(image)
    simulation = simulated(network, image, *ranges[MIDDLE])
    assert relative_difference(found, simulation) < 2e-3
    assert 2e-3 < relative_difference(network(image), simulation) < 0.05  # rounding is visible


@needs_vnni
@torch.no_grad()
def test_the_convolutions_of_a_folded_network_run_in_int8() -> None:
    network = create("unet3d_cicek2016", 1, 3, channels=[16, 32], strides=[2], norm="instance", padding="same").eval()
    image = images()[0]
    ranges = measured_ranges(network, images())
    assert len(ranges) == 6  # of eight, without the first and the head; the folded one counts twice
    backend = OpenVINOBackend(network, SHAPE, "int8", ranges=ranges)
    types = {}
    for op in backend.compiled.get_runtime_model().get_ops():
        info = op.get_rt_info()
        if str(info["layerType"].astype(str)) == "Convolution":
            types[op.get_friendly_name()] = str(info["runtimePrecision"].astype(str))
    assert sorted(types.values()).count("u8") + sorted(types.values()).count("i8") == len(ranges), types
    assert relative_difference(backend(image), network(image)) < 0.1


@needs_vnni
@torch.no_grad()
def test_ranges_serve_a_network_without_its_head() -> None:
    """Tiles are blended as features if these are fewer; the graph is then another one."""
    network = create("unet3d_cicek2016", 1, 9, channels=[4, 8], strides=[2], norm="instance", padding="same").eval()
    ranges = measured_ranges(network, images())
    split = OpenVINOBackend(network, SHAPE, "int8", ranges=ranges)
    assert split.head_weight is not None
    logits = torch.einsum("kf,bfxyz->bkxyz", split.head_weight, split(images()[0]))
    logits += split.head_bias.reshape(1, -1, 1, 1, 1)
    whole = OpenVINOBackend(network, SHAPE, "int8", False, ranges)(images()[0])
    assert relative_difference(logits, whole) < 0.01


def test_maps_that_are_joined_have_one_range() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.other = nn.Conv2d(1, 4, 1), nn.Conv2d(1, 4, 1)
            self.down, self.join = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(12, 4, 3)
            self.head = nn.Conv2d(4, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a, b = self.first(x).relu(), 5 * self.other(x).relu()
            coarse = self.down(F.max_pool2d(a, 1)).relu()
            return self.head(F.relu(self.join(torch.cat([a, b, coarse], 1))))

    ranges = measured_ranges(Joined(), [torch.randn(1, 1, 16, 16)])
    assert len(ranges) == 2
    assert len(set(ranges.values())) == 1


def test_ranges_of_another_network_are_refused() -> None:
    with pytest.raises(BackendError, match=r"another/layer.*medseg bundle quantize"):
        OpenVINOBackend(three_convolutions(), SHAPE, "int8", ranges={"another/layer": (0.0, 1.0)})
    with pytest.raises(OptionError, match="ranges"):
        OpenVINOBackend(three_convolutions(), SHAPE, "int8")


def choose(monkeypatch: pytest.MonkeyPatch, has_vnni: bool = True, has_bf16: bool = True, **options: Any) -> Any:
    monkeypatch.setattr("medseg.inference.backends.choice.has_fast_int8", lambda: has_vnni)
    monkeypatch.setattr("medseg.inference.backends.choice.has_fast_bf16", lambda device: has_bf16)
    options = {"golden_check": lambda backend: "", "name": "openvino", "ranges": [{MIDDLE: (-0.5, 4.0)}], **options}
    return choose_backend([three_convolutions()], CPU, SHAPE, **options)


def test_auto_takes_int8_where_the_hardware_and_the_golden_sample_allow_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(monkeypatch)[0].precision == "int8"
    assert choose(monkeypatch, has_vnni=False)[0].precision == "bf16"
    assert choose(monkeypatch, ranges=())[0].precision == "bf16"
    assert choose(monkeypatch, name="torch")[0].precision == "bf16"
    assert choose(monkeypatch, golden_check=None)[0].precision == "fp32"
    assert choose(monkeypatch, has_bf16=False, ranges=())[0].precision == "fp32"

    def refuses_int8(backend: Any) -> str:
        return "labels differ on 9 %" if backend.precision == "int8" else ""

    backend, reason = choose(monkeypatch, golden_check=refuses_int8)
    assert backend.precision == "bf16"
    assert "int8: labels differ on 9 %" in reason
    backend, reason = choose(monkeypatch, ranges=[{"another/layer": (0.0, 1.0)}])
    assert (backend.precision, "another/layer" in reason) == ("bf16", True)


def test_int8_on_request_is_given_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, reason = choose(monkeypatch, precision="int8", name="auto")
    assert (backend.name, backend.precision) == ("openvino", "int8")
    assert "which int8 needs" in reason
    for options, fact in (
        ({"has_vnni": False}, "VNNI"),
        ({"ranges": ()}, "medseg bundle quantize"),
        ({"name": "torch"}, "openvino"),
        ({"golden_check": lambda backend: "labels differ on 9 %"}, "9 %"),
    ):
        with pytest.raises(OptionError, match=fact):
            choose(monkeypatch, precision="int8", **options)
    with pytest.raises(OptionError, match="fp16"):
        choose(monkeypatch, precision="fp16")
