"""Tests of the backends: they return the same values, and none of them opens a connection."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import pytest
import torch
from inference.plans import small_plan
from inference.thin_network import thin_network
from torch import nn

from medseg.errors import BackendError, OptionError
from medseg.inference import Predictor
from medseg.inference.backends.choice import choose_backend, tile_flops
from medseg.inference.backends.openvino_backend import model_digest
from medseg.inference.backends.torch_backend import EnsembleBackend, TorchBackend, choose_device
from medseg.inference.memory import forward_bytes
from medseg.networks.stages import JoiningStage
from medseg.networks.unet import UNet3D
from medseg.volumes.files import cache_folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDSEG_CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("something opened a socket")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


IMAGE = (np.random.default_rng(0).normal(size=(20, 24, 30)).astype(np.float32), np.eye(4))


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_prediction_opens_no_socket(backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    seg = Predictor(thin_network(4, 3), small_plan(), "cpu", backend=backend).predict(IMAGE)  # type: ignore[arg-type]
    assert seg.array.shape == IMAGE[0].shape


def test_openvino_returns_the_values_of_torch_for_full_and_short_batches(own_cache: Path) -> None:
    pytest.importorskip("openvino")
    from medseg.inference.backends.openvino_backend import OpenVINOBackend

    for features, classes in ((4, 3), (4, 9)):  # logits, and features with the head apart
        network = thin_network(features, classes)
        ours, theirs = OpenVINOBackend(network, (2, 1, 16, 16, 16)), TorchBackend(network, torch.device("cpu"))
        assert (ours.head_weight is None) == (theirs.head_weight is None)
        for batch in (2, 1):
            tiles = torch.randn(batch, 1, 16, 16, 16, generator=torch.manual_seed(batch))
            first = ours(tiles)
            kept = first.clone()
            torch.testing.assert_close(first, theirs(tiles), atol=1e-4, rtol=1e-4)
            ours(torch.zeros_like(tiles))
            assert torch.equal(first, kept)  # a later pass does not write into an earlier result
        assert forward_bytes(ours, (2, 1, 16, 16, 16)) > 0
    assert len(list((own_cache / "openvino").iterdir())) == 2
    again = OpenVINOBackend(network, (2, 1, 16, 16, 16))  # from the cache
    torch.testing.assert_close(again(tiles), theirs(tiles), atol=1e-4, rtol=1e-4)
    assert len(list((own_cache / "openvino").iterdir())) == 2
    for folder in (own_cache / "openvino").iterdir():
        assert len(list(folder.rglob("*.blob"))) == 1  # compiled once and found again


@pytest.mark.parametrize(("shape", "affine"), [((1, 1, 40, 48, 44), True), ((2, 1, 300, 280), False)])
def test_openvino_normalises_images_with_much_air_as_precisely_as_torch(
    own_cache: Path, shape: tuple[int, ...], affine: bool
) -> None:
    """OpenVINO's own kernel is wrong by 1e-3 here, because it adds up many equal voxels in one fp32 number."""
    pytest.importorskip("openvino")
    from medseg.inference.backends.openvino_backend import OpenVINOBackend

    convolution, norm = (nn.Conv3d, nn.InstanceNorm3d) if len(shape) == 5 else (nn.Conv2d, nn.InstanceNorm2d)
    torch.manual_seed(0)
    network = nn.Sequential(convolution(1, 8, 1), norm(8, affine=affine), nn.LeakyReLU(0.01))
    for parameter in network[1].parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    image = torch.randn(shape)
    image[:, :, : shape[2] * 3 // 4] = -3.0
    found = OpenVINOBackend(network, shape)(image)
    with torch.no_grad():
        exact = network.double()(image.double())
    assert (found - exact).abs().max() < 1e-4 * exact.std()


@pytest.mark.parametrize("damage", ["model.xml", "model.bin", "*.blob", "unwritable"])
def test_a_damaged_or_unwritable_cache_does_not_change_the_result(own_cache: Path, damage: str) -> None:
    pytest.importorskip("openvino")
    from medseg.inference.backends.openvino_backend import OpenVINOBackend

    network, tiles = thin_network(4, 3), torch.randn(1, 1, 16, 16, 16, generator=torch.manual_seed(3))
    expected = TorchBackend(network, torch.device("cpu"))(tiles)
    if damage == "unwritable":
        (own_cache / "openvino").write_bytes(b"a file is in the way")
    else:
        OpenVINOBackend(network, tiles.shape)
        for file in own_cache.rglob(damage):
            file.write_bytes(b"")
    torch.testing.assert_close(OpenVINOBackend(network, tiles.shape)(tiles), expected, atol=1e-4, rtol=1e-4)


def test_the_digest_depends_on_weights_structure_shape_and_details() -> None:
    network = thin_network(4, 3)
    shape = (1, 1, 16, 16, 16)
    digests = {model_digest(network, shape), model_digest(network, (2, *shape[1:])), model_digest(network, shape, "b")}
    assert model_digest(thin_network(4, 3), shape) in digests
    digests.add(model_digest(torch.nn.Sequential(network.body, torch.nn.ReLU(), network.head), shape))
    with torch.no_grad():
        network.head.bias[0] += 1e-6
    assert len({*digests, model_digest(network, shape)}) == 5


def test_the_cache_is_the_chosen_folder_or_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path
    monkeypatch.delenv("MEDSEG_CACHE_DIR")
    assert cache_folder() == Path(platformdirs.user_cache_dir("medseg", appauthor=False))
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *args, **kwargs: Path("~/.cache/medseg"))
    assert cache_folder() is None  # a user without a home


class Hungry(torch.nn.Module):
    """Raise an error for batches above a size, and record the sizes of all batches."""

    def __init__(self, room: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
        super().__init__()
        self.room, self.error, self.given = room, error, list[int]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.given.append(len(x))
        if len(x) > self.room:
            raise self.error("out of memory")
        return 2 * x


def test_a_batch_that_does_not_fit_is_halved_for_all_later_batches() -> None:
    network, tiles = Hungry(2), torch.arange(7.0).reshape(7, 1, 1, 1, 1)
    backend = TorchBackend(network, torch.device("cpu"))
    assert torch.equal(backend(tiles), 2 * tiles)
    assert network.given == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    network.given.clear()
    assert torch.equal(backend(tiles), 2 * tiles)
    assert network.given == [1] * 7
    with pytest.raises(torch.OutOfMemoryError):
        TorchBackend(Hungry(0), torch.device("cpu"))(tiles)


def test_tiles_that_are_not_finite_in_bf16_are_computed_in_fp32(caplog: pytest.LogCaptureFixture) -> None:
    class Spoiled(torch.nn.Module):
        def is_hot(self, x: torch.Tensor) -> bool:
            return not isinstance(x, torch._subclasses.FakeTensor) and bool(x.mean() > 0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.nan if torch.is_autocast_enabled("cpu") and self.is_hot(x) else 2 * x

    tiles = torch.stack([torch.full((1, 4, 4, 4), -0.5), torch.full((1, 4, 4, 4), 1.5)])
    backend = TorchBackend(Spoiled(), torch.device("cpu"), "bf16")
    assert torch.equal(torch.cat([backend(tile[None]) for tile in tiles]), 2 * tiles)
    assert caplog.text.count("these tiles are computed in fp32") == 1
    assert forward_bytes(backend, (1, 1, 4, 4, 4)) > 0


def test_other_errors_are_not_treated_as_out_of_memory() -> None:
    network = Hungry(2, RuntimeError)
    with pytest.raises(RuntimeError, match="out of memory"):
        TorchBackend(network, torch.device("cpu"))(torch.zeros(4, 1, 2, 2, 2))
    assert network.given == [4]  # not repeated with smaller batches


def test_operations_are_counted_without_computing_them() -> None:
    network = thin_network(4, 3)
    voxels = 16**3
    multiplications = voxels * (27 * 4 + 27 * 4 * 4 + 4 * 3)
    assert tile_flops(network, (5, 1, 16, 16, 16)) == 2 * multiplications
    with pytest.raises(RuntimeError):  # the network would refuse two channels
        tile_flops(network, (1, 2, 16, 16, 16))


def test_auto_chooses_openvino_for_large_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    cpu, tiles = torch.device("cpu"), (1, 1, 16, 16, 16)

    def choose(**options: Any) -> tuple[str, str, str]:
        backend, reason = choose_backend([thin_network(4, 3)], cpu, tiles, **options)
        return backend.name, backend.precision, reason

    name, precision, reason = choose()
    assert (name, precision) == ("torch", "fp32")
    assert "GFLOP" in reason
    monkeypatch.setattr("medseg.inference.backends.choice.OPENVINO_PAYS_FROM", 1e6)
    name, precision, reason = choose()
    assert (name, precision) == ("openvino", "fp32")
    assert "0.00452 GFLOP" in reason
    monkeypatch.setattr("medseg.inference.backends.choice.find_spec", lambda name: None)
    assert "openvino is not installed" in choose()[2]


def test_auto_chooses_torch_if_openvino_cannot_convert_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")

    class Unusual(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.spherical_bessel_j0(torch.nn.functional.conv3d(x, torch.ones(3, 1, 1, 1, 1)))

    monkeypatch.setattr("medseg.inference.backends.choice.OPENVINO_PAYS_FROM", 0)
    backend, reason = choose_backend([Unusual()], torch.device("cpu"), (1, 1, 8, 8, 8))
    assert backend.name == "torch"
    assert "openvino cannot convert the network" in reason


def test_bf16_is_refused_if_the_golden_check_disagrees() -> None:
    network, cpu, tiles = thin_network(4, 3), torch.device("cpu"), (1, 1, 16, 16, 16)
    checked = []

    def check(backend: Any) -> str:
        checked.append((backend.name, backend.precision))
        return "labels agree on 98 %"

    with pytest.raises(OptionError, match=r"bf16.*labels agree on 98 %"):
        choose_backend([network], cpu, tiles, "torch", "bf16", check)
    assert checked == [("torch", "bf16")]
    backend, _ = choose_backend([network], cpu, tiles, "torch", "bf16", lambda backend: "")
    assert backend.precision == "bf16"


def test_openvino_predicts_the_labels_of_torch() -> None:
    pytest.importorskip("openvino")
    network, plan = thin_network(6, 3), small_plan()
    seg = Predictor(network, plan, "cpu", backend="openvino", precision="fp32", batch_size=4).predict(IMAGE)
    expected = Predictor(network, plan, "cpu", batch_size=4).predict(IMAGE)
    assert (seg.array == expected.array).mean() > 0.9995
    assert seg.provenance["backend"] == "openvino"
    assert seg.provenance["backend_reason"] == "openvino on cpu (as asked), fp32 (as asked)"
    assert "openvino" in seg.provenance["versions"]


def test_an_ensemble_needs_members_that_return_logits() -> None:
    member = TorchBackend(thin_network(4, 9), torch.device("cpu"))
    with pytest.raises(ValueError, match="logits"):
        EnsembleBackend([member])
    with pytest.raises(ValueError, match="network"):
        EnsembleBackend([])


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"backend": "tensorrt"}, "backend.*tensorrt"),
        ({"precision": "fp8"}, "precision.*fp8"),
        ({"tta": "turn"}, "tta.*turn"),
        ({"interpolation": "nearest"}, "interpolation.*nearest"),
        ({"batch_size": 0}, "batch_size.*0"),
        ({"overlap": 1.0}, r"overlap.*1\.0"),
        ({"overlap": -0.1}, "overlap.*-0.1"),
        ({"overlap": float("nan")}, "overlap.*nan"),
        ({"max_ram": "lots"}, "lots"),
        ({"device": "quantum"}, "quantum"),
        ({"device": "cpu:x"}, "cpu:x"),
        ({"device": "cuda:99"}, "cuda:99"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, Any], rule: str) -> None:
    with pytest.raises(OptionError, match=rule):
        Predictor(thin_network(4, 3), small_plan(), **{"device": "cpu", **options})


def test_backends_refuse_invalid_options() -> None:
    with pytest.raises(OptionError, match="quantum"):
        choose_device("quantum")
    with pytest.raises(OptionError, match="fp8"):
        TorchBackend(thin_network(4, 3), torch.device("cpu"), "fp8")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="cuda"):
        choose_backend([thin_network(4, 3)], torch.device("cuda"), (1, 1, 16, 16, 16), "openvino")


def test_a_missing_openvino_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendError, match=r"pip install 'medseg\[openvino\]'"):
        Predictor(thin_network(4, 3), small_plan(), "cpu", backend="openvino")


def test_openvino_folds_a_copy_of_the_network() -> None:
    pytest.importorskip("openvino")
    from medseg.inference.backends.openvino_backend import OpenVINOBackend

    torch.manual_seed(0)
    network = UNet3D(1, 2, channels=(8, 16, 32), norm="instance").eval()
    tiles = torch.randn(2, 1, 16, 24, 16)
    backend = OpenVINOBackend(network, tiles.shape, blend_features=False)
    kinds = {op.get_rt_info()["layerType"].astype(str) for op in backend.compiled.get_runtime_model().get_ops()}
    assert "Convolution" in kinds
    assert "Deconvolution" not in kinds
    with torch.no_grad():
        torch.testing.assert_close(backend(tiles), network(tiles), rtol=1e-3, atol=1e-4)
    assert all(stage.composed is None for stage in network.modules() if isinstance(stage, JoiningStage))
