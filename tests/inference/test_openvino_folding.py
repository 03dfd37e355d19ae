import pytest
import torch

from medseg.inference.backends.openvino_backend import OpenVINOBackend
from medseg.networks.stages import JoiningStage
from medseg.networks.unet import UNet3D


def test_a_folded_network_gives_its_logits_and_is_left_alone(tmp_path):
    pytest.importorskip("openvino")
    torch.manual_seed(0)
    network = UNet3D(1, 2, channels=(8, 16, 32), norm="instance").eval()
    tiles = torch.randn(2, 1, 16, 24, 16)
    backend = OpenVINOBackend(network, tiles.shape, blend_features=False, cache_dir=tmp_path)
    kinds = {op.get_rt_info()["layerType"].astype(str) for op in backend.compiled.get_runtime_model().get_ops()}
    assert "Convolution" in kinds
    assert "Deconvolution" not in kinds
    with torch.no_grad():
        torch.testing.assert_close(backend(tiles), network(tiles), rtol=1e-3, atol=1e-4)
    assert all(stage.composed is None for stage in network.modules() if isinstance(stage, JoiningStage))
