import logging

import numpy as np
import pytest
import torch
from networks.tiny_networks import TINY, tiny

from medseg.errors import NetworkError, VolumeError
from medseg.networks.blocks import ConvBlock
from medseg.networks.serialization import example_input, export_onnx, export_torchscript

onnxruntime = pytest.importorskip("onnxruntime")
# Each exporter is tested on one network, and on the others with `pytest -m slow`, because an export takes seconds.
QUICK = "unet3d_prelu"


def slow_but(quick):
    return [pytest.param(name, marks=() if name == quick else pytest.mark.slow) for name in TINY]


def three_inputs(network):
    """Yield batches and sizes other than those exported with, and among them the smallest size."""
    for batch, first in ((1, 0), (3, 2), (2, 3)):
        shape = [axis.valid_sizes(6)[first + i % 3] for i, axis in enumerate(network.axes)]
        yield torch.randn(batch, network.in_channels, *shape)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", TINY)
def test_scripted_networks_give_the_same_logits(name, dims):
    network = tiny(name, dims).double().eval()  # in double precision, where rounding hides nothing
    scripted = torch.jit.script(network)
    for x in three_inputs(network):
        with torch.no_grad():
            torch.testing.assert_close(scripted(x.double()), network(x.double()), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", TINY)
def test_scripted_networks_can_be_trained(name):
    network = tiny(name, dropout=0.0).train()
    x = example_input(network)
    gradients = []
    for forward in (network, torch.jit.script(network)):
        network.zero_grad()
        forward(x).square().mean().backward()
        gradients.append({n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, rtol=1e-3, atol=1e-4, msg=key)


def test_blocks_in_different_orders_are_scripted_in_their_own():
    """TorchScript shares the type of modules with equal children, whatever their order."""
    blocks = torch.nn.Sequential(*(ConvBlock(2, 3, 3, order=order) for order in ("conv_norm_act", "norm_act_conv")))
    x = torch.randn(1, 3, 5, 5)
    with torch.no_grad():
        assert torch.equal(torch.jit.script(blocks.eval())(x), blocks(x))


@pytest.mark.parametrize("name", TINY)
def test_traced_networks_give_the_same_logits(name):
    """`python -m monai.bundle ckpt_export --use_trace True` and OpenVINO trace the network."""
    network = tiny(name).eval()
    with torch.no_grad():
        traced = torch.jit.trace(network, example_input(network), check_trace=False)
        for x in three_inputs(network):
            torch.testing.assert_close(traced(x), network(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_torchscript_gives_the_same_logits_at_three_sizes(name, tmp_path):
    network = tiny(name).eval()
    loaded = torch.jit.load(str(export_torchscript(network, tmp_path / "network.pt")))
    for x in three_inputs(network):
        with torch.no_grad():
            torch.testing.assert_close(loaded(x), network(x), rtol=1e-4, atol=1e-5)


def test_a_full_disk_is_reported_and_leaves_the_earlier_file(tmp_path):
    resource = pytest.importorskip("resource")
    network = tiny(QUICK).eval()
    (tmp_path / "network.pt").write_bytes(b"before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(VolumeError, match=r"network\.pt: .*File too large"):
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


def test_export_does_not_change_the_network(tmp_path):
    network = tiny(QUICK).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    export_torchscript(network, tmp_path / "network.pt")
    assert network.training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert all(p.requires_grad for p in network.parameters())


def test_wrong_endings_are_refused(tmp_path):
    with pytest.raises(NetworkError, match=r"network\.onnx: .*\.pt or \.ts"):
        export_torchscript(tiny(QUICK), tmp_path / "network.onnx")
    with pytest.raises(NetworkError, match=r"network\.pt: .*\.onnx"):
        export_onnx(tiny(QUICK), tmp_path / "network.pt")
