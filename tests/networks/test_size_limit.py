import subprocess
import sys
from functools import partial

import pytest
import torch
from networks.tiny_networks import TINY, tiny
from torch import nn

from medseg.errors import NetworkError
from medseg.networks import create
from medseg.networks.size_limit import MAX_LAYERS, check_size
from medseg.weights import load_into


def num_bytes(network):
    return sum(t.numel() * t.element_size() for t in [*network.parameters(), *network.buffers()])


@pytest.mark.parametrize("name", TINY)
def test_the_size_is_that_of_the_built_network(name):
    assert check_size(name, partial(tiny, name)) == num_bytes(tiny(name))


def test_a_network_above_the_limit_is_refused_before_it_is_built():
    exact = num_bytes(nn.Conv3d(64, 64, 3))
    assert check_size("conv", partial(nn.Conv3d, 64, 64, 3), exact) == exact
    with pytest.raises(NetworkError, match=r"conv.*0 MB, expected at most 0 MB"):
        check_size("conv", partial(nn.Conv3d, 64, 64, 3), exact - 1)
    with pytest.raises(NetworkError, match="expected at most"):
        create("unet_padded", 1, 2, channels=(2**20, 2**20))  # 250 TB
    with pytest.raises(NetworkError, match="no network can have these sizes"):
        create("unet_padded", 1, 2, channels=(2**40, 2**40))


def test_a_network_with_too_many_layers_is_refused():
    with pytest.raises(NetworkError, match="more than"):
        check_size("deep", lambda: nn.Sequential(*(nn.ReLU() for _ in range(MAX_LAYERS + 1))))


@pytest.mark.parametrize("name", TINY)
def test_weights_loaded_without_initialisation_give_the_same_network(name):
    source = tiny(name).eval()
    for values in source.buffers():
        if values.is_floating_point():
            values.uniform_(0.5, 1.5)
    state = {key: value.clone() for key, value in source.state_dict().items()}
    network = tiny(name, initialize=False).eval()
    load_into(network, state, assign=True)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert {name for name, _ in network.named_buffers()} == {name for name, _ in source.named_buffers()}
    assert [p.requires_grad for p in network.parameters()] == [p.requires_grad for p in source.parameters()]
    first = next(iter(state))
    assert network.state_dict()[first].data_ptr() == state[first].data_ptr()  # not copied


def test_creating_a_network_does_not_import_the_compiler():
    """Drawing weights on the meta device imports torch._dynamo, which takes longer than building any network."""
    code = (
        "import sys; from medseg.networks import create; before = 'torch._dynamo' in sys.modules;"
        "create('unet_isensee2021', 1, 2, channels=(8, 16), initialize=False);"
        "create('unetr_monai', 1, 2, image_size=8, channels=(4, 8), embedding_channels=8, num_heads=2, taps=(1, 2));"
        "assert before or 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
