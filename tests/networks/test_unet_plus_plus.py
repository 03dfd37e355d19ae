import pytest
import torch

from medseg.errors import NetworkError
from medseg.networks import UNetPlusPlus, create


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", ["unetplusplus_zhou2018", "unetplusplus_preactivation"])
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_pruned_network_equals_that_head_of_the_full_one(name, dims, norm):
    torch.manual_seed(0)
    network = create(name, 1, 3, channels=(4, 8, 16, 32), spatial_dims=dims, heads="all", norm=norm)
    x = torch.randn(2, 1, *(16, 8, 24)[:dims])
    network.train()(x)  # so that the running statistics are not those of a new network
    network.eval()
    with torch.no_grad():
        features, heads = network.intermediate_features(x), network.intermediate_heads()
        for depth in (1, 2, 3):
            pruned = network.prune(depth)
            assert not pruned.training
            assert torch.equal(pruned(x), heads[3 - depth](features[3 - depth]))


def test_pruned_network_takes_the_sizes_of_its_depth_and_owns_its_weights():
    network = create("unetplusplus_zhou2018", 1, 2, channels=(4, 8, 16), heads="all").eval()
    pruned = network.prune(1)
    assert pruned.output_shape((6, 10)) == (6, 10)
    x = torch.randn(1, 1, 8, 8)
    with torch.no_grad():
        before = pruned(x)
        for p in network.parameters():
            p.zero_()
        assert torch.equal(pruned(x), before)


def test_pruning_to_full_depth_removes_the_other_heads_only():
    network = create("unetplusplus_preactivation", 1, 2, channels=(4, 8, 16)).eval()
    pruned = network.prune(2)
    x = torch.randn(1, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(pruned(x), network(x))
    assert pruned.unused_parameters() == ()
    assert pruned.double().prune(2)(x.double()).dtype == torch.float64


def test_nodes_join_every_older_node_of_their_level_and_the_one_below():
    """Eq. 1: x_{i,j} depends on x_{i,0} … x_{i,j−1} and x_{i+1,j−1}, and joins the upsampled map first."""
    network = UNetPlusPlus(1, 1, channels=(2, 3, 4))
    assert sorted(network.nodes) == ["0_1", "0_2", "1_1"]
    inputs = {name: node.convolutions[0].conv.in_channels for name, node in network.nodes.items()}
    assert inputs == {"0_1": 2 + 2, "1_1": 3 + 3, "0_2": 2 + 2 + 2}
    node, joined = network.nodes["0_2"], []
    node.convolutions[0].register_forward_pre_hook(lambda _, args: joined.append(args[0]))
    coarse, first, second = torch.randn(1, 3, 2, 2), torch.randn(1, 2, 4, 4), torch.randn(1, 2, 4, 4)
    node(coarse, [first, second])
    assert torch.equal(joined[0], torch.cat([node.upsample(coarse), first, second], 1))


def test_wrong_depths_and_missing_heads_are_refused():
    network = create("unetplusplus_zhou2018", 1, 2, channels=(4, 8, 16))
    with pytest.raises(NetworkError, match=r"depth=3: .*1 to 2"):
        network.prune(3)
    with pytest.raises(NetworkError, match=r"depth=1: .*heads='all'"):
        network.prune(1)
    with pytest.raises(NetworkError, match="heads='all'"):
        network.intermediate_heads()
    with pytest.raises(NetworkError, match=r"heads='none'.*last, all"):
        UNetPlusPlus(1, 2, heads="none")
