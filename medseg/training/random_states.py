"""The global random generators of a training, as something a checkpoint can hold."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed

from medseg.training.processes import is_in_group, process_rank


class RandomStates:
    """The states of Python's, NumPy's and torch's global generators as one object with `state_dict`."""

    def state_dict(self) -> dict[str, Any]:
        name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002  the state MONAI draws from
        state = {
            "python": random.getstate(),
            "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached),
            "torch": torch.get_rng_state(),
        }
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state_all()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        random.setstate(_as_tuples(state["python"]))
        name, keys, position, has_gauss, cached = state["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
        torch.set_rng_state(state["torch"])
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])  # there may be fewer GPUs now


class ProcessRandomStates:
    """The random states of every process of a group, so that each goes on with its own; collective to read.

    A process beyond those that were saved keeps the state it has.
    """

    def state_dict(self) -> dict[str, Any]:
        own = RandomStates().state_dict()
        if not is_in_group():
            return {"0": own}
        gathered: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, own)
        return {str(rank): state for rank, state in enumerate(gathered)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        rank = str(process_rank())
        if rank in state:
            RandomStates().load_state_dict(state[rank])


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list | tuple) else value
