"""Train with several processes: join and leave the group, share out gradients and validation cases.

Rank, size, barrier and collectives are `ignite.distributed`'s. Joining is our own: `ignite.distributed.initialize`
expects one SLURM task per process and refuses torchrun on several SLURM nodes, which has one task per node.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sized
from typing import Any

import ignite.distributed as idist
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Sampler, SequentialSampler

from medseg.errors import OptionError


def start_processes() -> None:
    """Join the process group that torchrun describes: NCCL with GPUs, gloo without. Does nothing without torchrun.

    Raises:
        OptionError: this machine has fewer GPUs than processes.
    """
    if "RANK" not in os.environ or not torch.distributed.is_available():
        return
    if torch.cuda.is_available():
        # before anything of ignite, which sets LOCAL_RANK to SLURM's
        torch.cuda.set_device(_local_device())
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    idist.sync()


def end_processes() -> None:
    """Leave the process group, if there is one."""
    idist.finalize()


def process_device() -> torch.device:
    """Return the GPU that `start_processes` chose for this process, or the CPU if there is none."""
    return idist.device()


def _local_device() -> torch.device:
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if local_rank >= torch.cuda.device_count():
        raise OptionError(
            f"this machine has {torch.cuda.device_count()} GPUs, found process number {local_rank} on it; "
            "give torchrun --nproc_per_node that many"
        )
    return torch.device("cuda", local_rank)


def distribute(network: torch.nn.Module) -> torch.nn.Module:
    """Average the gradients of a network over all processes; a single process gets the network itself back.

    Losses that are means over samples then have the gradient of one process with the batches of all. This is not
    `ignite.distributed.auto_model`, which wraps the network of a single process into `DataParallel` as soon as the
    machine has several GPUs.
    """
    if idist.get_world_size() == 1:
        return network
    device = next(network.parameters()).device
    # medseg's networks name the heads that their forward pass leaves out
    unused: Any = getattr(network, "unused_parameters", tuple)
    return DistributedDataParallel(
        network, device_ids=[device] if device.type == "cuda" else None, find_unused_parameters=bool(unused())
    )


class ShareSampler(Sampler):
    """Give every process its own validation cases, each case once; a single process gets all of them.

    With fewer cases than processes every process gets all cases, because a process without cases could not take part
    in the metric. MONAI's `DistributedSampler(even_divisible=False)` refuses such data sets.

    Args:
        dataset: only its length is used.
    """

    def __init__(self, dataset: Sized) -> None:
        rank, world = idist.get_rank(), idist.get_world_size()
        every = list(SequentialSampler(dataset))
        self.indices = every[rank::world] if len(every) >= world else every

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


def is_main_process() -> bool:
    """Return True in the process that writes files: the only one, or the first of its group."""
    return idist.get_rank() == 0


def all_agree(flag: torch.Tensor) -> bool:
    """Return True if a boolean scalar is true in every process of the group.

    Args:
        flag: on this process's device.
    """
    lowest = idist.all_reduce(flag.int(), "MIN")
    return bool(lowest)
