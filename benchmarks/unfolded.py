"""A network with its layers one by one, as other libraries run them."""

from copy import deepcopy

from torch import nn

from medseg.networks.stages import JoiningStage


def unfolded(network: nn.Module) -> nn.Module:
    """A copy of `network`, of the same weights, that folds no stage (see `medseg.networks.folding`)."""
    network = deepcopy(network)
    for module in network.modules():
        if isinstance(module, JoiningStage):
            module.folds = ()
    return network
