"""One training in many processes: where each runs, and which one writes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sized
from typing import Any

import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Sampler, SequentialSampler


def start_processes() -> int:
    """Join the process group that torchrun set up: NCCL where there are GPUs, else gloo.

    Returns:
        The rank of this process; 0 where it was not started by torchrun, and then nothing is done.

    Raises:
        RuntimeError: there are fewer GPUs on this machine than processes.
    """
    if "RANK" not in os.environ or not torch.distributed.is_available():
        return 0
    if torch.cuda.is_available():
        torch.cuda.set_device(process_device())
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return torch.distributed.get_rank()


def end_processes() -> None:
    """Leave the process group, if there is one."""
    if is_in_group():
        torch.distributed.destroy_process_group()


def process_device() -> torch.device:
    """The GPU of this process (LOCAL_RANK counts the processes of a machine), or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if local_rank >= torch.cuda.device_count():
        raise RuntimeError(
            f"this machine has {torch.cuda.device_count()} GPUs, found process number {local_rank} on it; "
            "give torchrun --nproc_per_node that many"
        )
    return torch.device("cuda", local_rank)


def distribute(network: torch.nn.Module) -> torch.nn.Module:
    """The network with its gradients averaged over all processes; itself where there is only one.

    Losses that are means over samples thus have the gradient of one process with the batches of all.
    """
    if not is_in_group():
        return network
    device = next(network.parameters()).device
    unused: Any = getattr(
        network, "unused_parameters", tuple
    )  # of medseg's networks: heads the forward pass leaves out
    return DistributedDataParallel(
        network, device_ids=[device] if device.type == "cuda" else None, find_unused_parameters=bool(unused())
    )


class ShareSampler(Sampler):
    """Give every process of a group its own cases to validate, each case once; all of them without a group.

    With fewer cases than processes every process gets all: one without cases could not take part in the metric.

    Args:
        dataset: whose length matters.
    """

    def __init__(self, dataset: Sized) -> None:
        rank, world = process_rank(), process_count()
        every = list(SequentialSampler(dataset))
        self.indices = every[rank::world] if len(every) >= world else every

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


def is_main_process() -> bool:
    """Whether this process is the one that writes: the only one, or the first of its group."""
    return process_rank() == 0


def process_count() -> int:
    """How many processes train together."""
    return torch.distributed.get_world_size() if is_in_group() else 1


def process_rank() -> int:
    """Which of them this one is; 0 is the one that writes."""
    return torch.distributed.get_rank() if is_in_group() else 0


def barrier() -> None:
    """Wait for the other processes of the group, if there is one."""
    if is_in_group():
        torch.distributed.barrier()


def all_agree(flag: torch.Tensor) -> bool:
    """Whether the flag, a boolean scalar on this process's device, is true in every process of the group."""
    if is_in_group():
        agreed = flag.int()
        torch.distributed.all_reduce(agreed, torch.distributed.ReduceOp.MIN)
        return bool(agreed.item())
    return bool(flag.item())


def is_in_group() -> bool:
    """Whether this process trains together with others."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()
