import logging

import numpy as np
import pytest
import torch
from networks.tiny_networks import TINY, tiny

from medseg.errors import NetworkError, VolumeError
from medseg.networks.serialization import example_input, export_onnx, export_torchscript

onnxruntime = pytest.importorskip("onnxruntime")
# one of each exporter runs always, the others on request: an export takes seconds
QUICK = "unet3d_prelu"


def slow_but(quick):
    return [pytest.param(name, marks=() if name == quick else pytest.mark.slow) for name in TINY]


def three_inputs(network):
    """Other batches and sizes than those exported with, the smallest size among them."""
    for batch, first in ((1, 0), (3, 2), (2, 3)):
        shape = [axis.valid_sizes(6)[first + i % 3] for i, axis in enumerate(network.axes)]
        yield torch.randn(batch, network.in_channels, *shape)


@pytest.mark.parametrize("name", TINY)
def test_torchscript_gives_the_same_logits_at_three_sizes(name, tmp_path):
    network = tiny(name).eval()
    loaded = torch.jit.load(str(export_torchscript(network, tmp_path / "network.pt")))
    for x in three_inputs(network):
        with torch.no_grad():
            torch.testing.assert_close(loaded(x), network(x), rtol=1e-4, atol=1e-5)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    resource = pytest.importorskip("resource")
    network = tiny(QUICK).eval()
    (tmp_path / "network.pt").write_bytes(b"before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(VolumeError, match=r"network\.pt: could not be written: File too large"):
            export_torchscript(network, tmp_path / "network.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"network.pt": b"before"}


@pytest.mark.parametrize("name", slow_but(QUICK))
def test_onnx_gives_the_same_logits_at_three_sizes(name, tmp_path, caplog):
    caplog.set_level(logging.ERROR)
    network = tiny(name).eval()
    path = export_onnx(network, tmp_path / "network.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["network.onnx"]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for x in three_inputs(network):
        (found,) = session.run(["logits"], {"image": x.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(found, network(x).numpy(), rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("name", slow_but(QUICK))
def test_compiles_as_one_graph(name):
    network = tiny(name).eval()
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    x = example_input(network)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), network(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", [QUICK, "unetr_hatamizadeh2021"])
def test_compiles_to_machine_code(name):
    network = tiny(name).eval()
    torch._dynamo.reset()
    x = example_input(network)
    with torch.no_grad():
        found = torch.compile(network, fullgraph=True)(x)
        torch.testing.assert_close(found, network(x), rtol=1e-3, atol=1e-4)


def test_export_leaves_the_network_alone(tmp_path):
    network = tiny(QUICK).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    export_torchscript(network, tmp_path / "network.pt")
    assert network.training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert all(p.requires_grad for p in network.parameters())


def test_wrong_endings_are_refused(tmp_path):
    with pytest.raises(NetworkError, match=r"must be \.pt or \.ts"):
        export_torchscript(tiny(QUICK), tmp_path / "network.onnx")
    with pytest.raises(NetworkError, match=r"must be \.onnx"):
        export_onnx(tiny(QUICK), tmp_path / "network.pt")
