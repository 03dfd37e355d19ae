"""Draw samples that depend only on the seed, the epoch and the case, in whichever process they are made."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from monai.data import DataLoader
from torch.utils.data import Dataset, DistributedSampler


class SeededDataLoader(DataLoader):
    """Load batches of a training set; the same seed gives the same batches for any number of workers.

    A `monai.data.DataLoader` of `SeededSamples` in the order of a `SeededSampler`.

    Args:
        dataset: a MONAI data set with a `transform`, e.g. a `CacheDataset`.
        batch_size: cases per batch and process.
        seed: of the training, an integer ≥ 0.
        num_workers: worker processes; 0 makes the samples in the training's own process.
        pin_memory: copy batches into pinned memory, from which transfers to a GPU are faster.
        persistent_workers: keep the workers between epochs.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        seed: int = 0,
        num_workers: int = 0,
        pin_memory: bool = False,
        persistent_workers: bool = False,
    ) -> None:
        super().__init__(
            SeededSamples(dataset),
            num_workers=num_workers,
            batch_size=batch_size,
            sampler=SeededSampler(dataset, seed),
            # iterating draws a seed for the workers; the global generator must not notice
            generator=torch.Generator().manual_seed(seed),
            pin_memory=pin_memory,
            persistent_workers=persistent_workers,
        )


class SampleIndex(int):
    """The index of a case in its data set together with the seed of the sample to draw from it.

    It is an integer, so it indexes any data set. Pickling keeps the seed, so it reaches the worker processes.
    """

    seed: int

    def __new__(cls, index: int, seed: int) -> SampleIndex:
        new = super().__new__(cls, index)
        new.seed = seed
        return new

    def __reduce__(self) -> tuple[type[SampleIndex], tuple[int, int]]:
        return SampleIndex, (int(self), self.seed)


class SeededSampler(DistributedSampler):
    """Visit every case once per epoch; order and sample seeds are functions of (seed, epoch, index).

    MONAI's engines tell the epoch to every `DistributedSampler`. Among W processes, process r takes every W-th index
    from r on, so W processes with batches of b together see the batches of one process with batches of W·b. If W does
    not divide the number of cases, the first cases of the epoch are drawn twice, as in PyTorch.

    Args:
        dataset: only its length is used.
        seed: of the training, an integer ≥ 0.
        shuffle: a new order every epoch; otherwise the data set's own.
        num_replicas: W; None takes the size of the process group.
        rank: r; None takes the rank of this process.
    """

    def __init__(
        self,
        dataset: Sized,
        seed: int = 0,
        shuffle: bool = True,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        world = idist.get_world_size() if num_replicas is None else num_replicas
        place = idist.get_rank() if rank is None else rank
        super().__init__(dataset, num_replicas=world, rank=place, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[SampleIndex]:
        length = len(self.dataset)  # type: ignore[arg-type]
        order = np.arange(length)
        if self.shuffle:
            # PyTorch uses seed + epoch, with which the epochs of seed 1 are those of seed 0, one later
            order = np.random.default_rng((self.seed, self.epoch)).permutation(length)
        order = np.resize(order, self.total_size)  # repeats from the start
        for index in order[self.rank :: self.num_replicas].tolist():
            yield SampleIndex(index, sample_seed(self.seed, self.epoch, index))


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """Return the 32-bit seed of one sample; well mixed, so that neighbouring cases are unrelated."""
    return int(np.random.SeedSequence((seed, epoch, index)).generate_state(1)[0])


class SeededSamples(Dataset):
    """Draw each sample of a data set from the seed that its index carries (see `SeededSampler`).

    Before a sample is drawn, the data set's transforms (`Compose.set_random_state`) and the global generators of
    Python, NumPy and torch get the seed. The generators get their states back afterwards. So neither the number of
    workers nor earlier draws change a sample. The number of threads is fixed too, because sums differ between one
    thread and several. An index without a seed is passed on unchanged.

    Args:
        dataset: a MONAI data set with a `transform`, e.g. a `CacheDataset`.
        num_threads: torch threads while a sample is drawn; PyTorch's worker processes have 1.

    Raises:
        TypeError: the data set's transform has no `set_random_state`.
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
        with seeded_generators(index.seed), _threads(self.num_threads):
            self.dataset.transform.set_random_state(index.seed)
            return self.dataset[int(index)]


@contextmanager
def seeded_generators(seed: int) -> Iterator[None]:
    """Seed the global CPU generators of Python, NumPy and torch, and restore their states at the end."""
    python, legacy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002  for transforms that ignore their own generator
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would initialise CUDA, which a worker must not
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
        torch.set_rng_state(cpu)


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
    """Read and restore the states of Python's, NumPy's and torch's global generators."""

    def state_dict(self) -> dict[str, Any]:
        """Return plain data and tensors for a checkpoint."""
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
        """Restore the states of a checkpoint."""
        random.setstate(_as_tuples(state["python"]))
        name, keys, position, has_gauss, cached = state["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
        torch.set_rng_state(state["torch"])
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])  # there may be fewer GPUs now


class ProcessRandomStates:
    """Read and restore the random states of every process of a group, so that each goes on with its own.

    Reading is collective: every process must call it. A process beyond those that were saved keeps its state.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all processes by rank."""
        own = RandomStates().state_dict()
        gathered = idist.all_gather(own) if idist.get_world_size() > 1 else [own]
        return {str(rank): state for rank, state in enumerate(gathered)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of this process."""
        rank = str(idist.get_rank())
        if rank in state:
            RandomStates().load_state_dict(state[rank])


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list | tuple) else value
