import pytest
import torch

import medseg
from medseg import weights
from medseg.bundle import BundleFolder, export
from medseg.errors import NetworkError, OptionError


@pytest.fixture
def tile():
    return torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))


def test_torchscript_gives_the_same_logits(bundle, tmp_path, tile):
    path = export(bundle, "torchscript", tmp_path / "net.ts")
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(path)(tile), medseg.load_network(bundle)(tile), atol=1e-5, rtol=0)


def test_onnx_gives_the_same_logits(bundle, tmp_path, tile):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(export(bundle, "onnx", tmp_path / "net.onnx"))
    (found,) = session.run(None, {"image": tile.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), medseg.load_network(bundle)(tile), atol=1e-4, rtol=0)


def test_safetensors_hold_the_weights_and_the_plans_digest(bundle, tmp_path):
    from safetensors import safe_open

    path = export(bundle, "safetensors", tmp_path / "net.safetensors")
    expected = medseg.load_network(bundle).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in weights.read(path).items())
    with safe_open(path, "pt") as file:
        assert file.metadata()["plan_digest"] == BundleFolder(bundle).plan.digest


def test_another_format_is_refused(bundle, tmp_path):
    with pytest.raises(OptionError, match=r"'openvino'.*torchscript, onnx, safetensors"):
        export(bundle, "openvino", tmp_path / "net.safetensors")
    assert not list(tmp_path.glob("net*"))


def test_another_ending_is_refused(bundle, tmp_path):
    with pytest.raises(NetworkError, match=r"net\.bin: .*\.onnx"):
        export(bundle, "onnx", tmp_path / "net.bin")
