"""Samples that depend on the seed, the epoch and the case alone, whichever process makes them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, DistributedSampler

from medseg.training.distributed import is_in_group, process_count, process_rank


class SampleIndex(int):
    """A case's index in its data set that carries the seed of the sample to draw from it.

    Being an integer it indexes any data set, and being pickled it brings the seed to a worker process.
    """

    seed: int

    def __new__(cls, index: int, seed: int) -> SampleIndex:
        made = super().__new__(cls, index)
        made.seed = seed
        return made

    def __reduce__(self) -> tuple[type[SampleIndex], tuple[int, int]]:
        return SampleIndex, (int(self), self.seed)


class SeededSampler(DistributedSampler):
    """Visit every case once an epoch, in an order and with sample seeds that are functions of (seed, epoch[, index]).

    Being a `DistributedSampler`, MONAI's engines tell it the epoch. Among W processes the r-th takes every W-th index
    from r on, so W processes with batches of b see together the batches of one process with W·b. Where W does not
    divide the number of cases, the first cases of the epoch are drawn twice, as PyTorch does.

    Args:
        dataset: whose length matters.
        seed: of the training, any integer ≥ 0.
        shuffle: a new order every epoch; else the data set's own.
        num_replicas: W; the process group's by default, 1 without one.
        rank: r, likewise.
    """

    def __init__(
        self,
        dataset: Sized,
        seed: int = 0,
        shuffle: bool = True,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        world = process_count() if num_replicas is None else num_replicas
        place = process_rank() if rank is None else rank
        super().__init__(dataset, num_replicas=world, rank=place, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[SampleIndex]:
        length = len(self.dataset)  # type: ignore[arg-type]
        order = np.arange(length)
        if self.shuffle:
            # not seed + epoch, as PyTorch has it: there the epochs of seed 1 are those of seed 0, one later
            order = np.random.default_rng((self.seed, self.epoch)).permutation(length)
        order = np.resize(order, self.total_size)  # repeats from the start
        for index in order[self.rank :: self.num_replicas].tolist():
            yield SampleIndex(index, sample_seed(self.seed, self.epoch, index))


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """The 32 bits all randomness of one sample comes from; well mixed, so neighbouring cases are unrelated."""
    return int(np.random.SeedSequence((seed, epoch, index)).generate_state(1)[0])


class SeededSamples(Dataset):
    """A data set whose samples are drawn from the seed their index carries (see `SeededSampler`).

    Before a sample is made, the seed is given to the data set's transforms (`Compose.set_random_state`) and to the
    global generators of Python, NumPy and torch, which get their states back afterwards. So neither the number of
    workers nor what was drawn before changes a sample. Sums differ between one thread and several, therefore the number
    of threads is fixed too. An index without a seed is passed on as it is.

    Args:
        dataset: a MONAI data set with a `transform`, e.g. a `CacheDataset`.
        num_threads: torch threads while a sample is made; 1 is what PyTorch's worker processes have.

    Raises:
        TypeError: the data set's transform cannot be given a random state.
    """

    def __init__(self, dataset: Any, num_threads: int = 1) -> None:
        if not hasattr(getattr(dataset, "transform", None), "set_random_state"):
            raise TypeError(
                f"SeededSamples needs a data set whose transform has set_random_state, e.g. monai.transforms.Compose; "
                f"found {type(dataset).__name__}"
            )
        self.dataset = dataset
        self.num_threads = num_threads

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        if not isinstance(index, SampleIndex):
            return self.dataset[index]
        with drawn_from(index.seed), _threads(self.num_threads):
            self.dataset.transform.set_random_state(index.seed)
            return self.dataset[int(index)]


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """Seed the global generators of the CPU, and put them back."""
    python, legacy, torchs = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002  what transforms that ignore their own generator draw from
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would touch CUDA, which a worker must not
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
        torch.set_rng_state(torchs)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if before == number:
        yield
        return
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
