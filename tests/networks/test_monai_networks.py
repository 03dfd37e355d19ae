"""Networks of MONAI are built by name with MONAI's own keys."""

from __future__ import annotations

import pytest
import torch
from monai.networks import nets

from medseg import weights
from medseg.errors import NetworkError
from medseg.networks import create
from medseg.networks.monai_networks import MONAI_CLASSES, list_monai_networks

ARGUMENTS = {
    "AttentionUnet": {"spatial_dims": 3, "channels": [4, 8], "strides": [2]},
    "BasicUNet": {"features": [4, 4, 8, 8, 8, 4]},
    "DynUNet": {
        "spatial_dims": 3, "kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2],
        "filters": [4, 8, 8],
    },
    "SegResNet": {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
    "SegResNetDS": {"init_filters": 8, "blocks_down": [1, 1]},
    "SwinUNETR": {"feature_size": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "norm_name": "batch"},
    "UNETR": {"img_size": 32, "feature_size": 4, "hidden_size": 12, "mlp_dim": 12, "num_heads": 2},
    "UNet": {"spatial_dims": 3, "channels": [4, 8], "strides": [2], "norm": ["batch", {"eps": 0.001}]},
    "VNet": {},
}  # fmt: skip


@pytest.mark.parametrize("name", MONAI_CLASSES)
def test_the_network_is_monais_and_takes_its_weights(name, tmp_path):
    torch.manual_seed(0)
    theirs = getattr(nets, name)(in_channels=1, out_channels=3, **ARGUMENTS[name]).eval()
    ours = create(f"monai.{name}", 1, 3, **ARGUMENTS[name]).eval()
    torch.save(theirs.state_dict(), tmp_path / "model.pt")
    weights.load_into(ours, tmp_path / "model.pt")
    tile = torch.randn(1, 1, 32, 32, 32)
    with torch.inference_mode():
        found = ours(tile)
        assert found.shape == (1, 3, 32, 32, 32)
        assert torch.equal(found, theirs(tile))


def test_impossible_networks_are_refused():
    assert list_monai_networks() == [f"monai.{name}" for name in MONAI_CLASSES]
    for name, arguments in (
        ("monai.DiNTS", {}),
        ("monai.UNet", {}),
        ("monai.UNet", {**ARGUMENTS["UNet"], "colour": 1}),
        ("monai.UNet", {**ARGUMENTS["UNet"], "norm": "unknown"}),
    ):
        with pytest.raises(NetworkError) as caught:
            create(name, 1, 3, **arguments)
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)
    with pytest.raises(NetworkError, match="MB"):
        create("monai.UNet", 1, 3, max_bytes=1000, **ARGUMENTS["UNet"])
