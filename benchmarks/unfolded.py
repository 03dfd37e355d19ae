"""Run a network layer by layer, as other libraries do."""

from copy import deepcopy

from torch import nn

from medseg.networks.stages import JoiningStage


def unfolded(network: nn.Module) -> nn.Module:
    """Return a copy of `network` with the same weights that folds no stage (see `medseg.networks.folding`)."""
    network = deepcopy(network)
    for module in network.modules():
        if isinstance(module, JoiningStage):
            module.folds = ()
    return network
