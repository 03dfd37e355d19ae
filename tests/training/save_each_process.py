"""A handler with which a test sees the weights of every process of a training."""

from pathlib import Path

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events


class SaveEachProcess:
    """Save the weights of this process as `process_<rank>.pt` when the training ends."""

    def __init__(self, folder: str, network: torch.nn.Module) -> None:
        self.folder = Path(folder)
        self.network = network

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self.save)

    def save(self) -> None:
        torch.save(self.network.state_dict(), self.folder / f"process_{idist.get_rank()}.pt")
