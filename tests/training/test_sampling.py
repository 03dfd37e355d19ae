import pickle
import random

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, Dataset
from monai.engines import SupervisedTrainer
from monai.transforms import Compose, Lambdad, RandAdjustContrastd, RandGaussianNoised, RandShiftIntensityd

from medseg.training import SampleIndex, SeededSampler, SeededSamples
from medseg.transforms import RandCropByLabeld, RandElasticDeformationd


def cases(number: int = 5) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "image": torch.rand(1, 12, 12, 12, generator=generator),
            "label": torch.randint(0, 3, (1, 12, 12, 12), generator=generator),
        }
        for _ in range(number)
    ]


def global_noise(image: torch.Tensor) -> torch.Tensor:
    """Draw from the global generators of torch, NumPy and Python, as transforms of others may do."""
    return image + torch.randn(()) + np.random.normal() + random.random()  # noqa: NPY002


def dataset(data: list[dict[str, torch.Tensor]] | None = None) -> CacheDataset:
    keys = ["image", "label"]
    transforms = [
        RandCropByLabeld(keys, "label", 8, num_samples=2),
        RandElasticDeformationd(keys, mode=("bilinear", "nearest"), prob=0.7, rotation_range=0.4),
        RandGaussianNoised("image", prob=0.5),
        RandShiftIntensityd("image", prob=0.5, offsets=0.2),
        RandAdjustContrastd("image", prob=0.5),
        Lambdad("image", global_noise),
    ]
    return CacheDataset(data or cases(), Compose(transforms), num_workers=0, progress=False)


def loader(seed: int = 3, workers: int = 0, **options: int) -> DataLoader:
    data = dataset()
    return DataLoader(
        SeededSamples(data), batch_size=2, sampler=SeededSampler(data, seed, **options), num_workers=workers
    )


def epoch_of(batches: DataLoader, epoch: int) -> torch.Tensor:
    batches.sampler.set_epoch(epoch)
    return torch.cat([batch["image"].as_subclass(torch.Tensor) for batch in batches])


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_no_bit(workers):
    here, there = loader(), loader(workers=workers)
    for epoch in (1, 2):
        assert torch.equal(epoch_of(here, epoch), epoch_of(there, epoch))


def test_an_epoch_does_not_depend_on_the_ones_before():
    through, directly = loader(), loader()
    for epoch in range(1, 4):
        last = epoch_of(through, epoch)
    torch.rand(7), np.random.rand(5), random.random()  # noqa: NPY002
    assert torch.equal(epoch_of(directly, 3), last)


def test_epochs_and_seeds_differ():
    first, second = epoch_of(loader(3), 1), epoch_of(loader(3), 2)
    assert not torch.equal(first, second)
    assert not torch.equal(epoch_of(loader(4), 1), first)
    assert not torch.equal(epoch_of(loader(2), 2), first)  # seed + epoch is no seed


def test_every_case_is_visited_once_in_changing_orders():
    sampler = SeededSampler(range(50), seed=1)
    orders = []
    for epoch in range(20):
        sampler.set_epoch(epoch)
        orders.append(tuple(sampler))
        assert sorted(orders[-1]) == list(range(50))
    assert len(set(orders)) == 20
    assert list(SeededSampler(range(4), shuffle=False)) == [0, 1, 2, 3]


def test_sample_seeds_do_not_repeat():
    sampler = SeededSampler(range(200), seed=1)
    seeds = set()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        seeds |= {index.seed for index in sampler}
    assert len(seeds) >= 3998  # 4000 draws of 32 bits: a birthday collision has probability 0.002


def test_processes_share_the_batches_of_a_single_one():
    whole = SeededSampler(range(10), seed=5)
    halves = [SeededSampler(range(10), seed=5, num_replicas=2, rank=rank) for rank in (0, 1)]
    for sampler in (whole, *halves):
        sampler.set_epoch(4)
    one, (a, b) = list(whole), (list(half) for half in halves)
    for k in range(0, 10, 4):  # global batches of 4 are two batches of 2
        assert {(i, i.seed) for i in one[k : k + 4]} == {
            (i, i.seed) for i in a[k // 2 : k // 2 + 2] + b[k // 2 : k // 2 + 2]
        }
    uneven = [list(SeededSampler(range(5), seed=5, num_replicas=2, rank=rank)) for rank in (0, 1)]
    assert [len(part) for part in uneven] == [3, 3]
    assert set(uneven[0]) | set(uneven[1]) == set(range(5))


def test_the_global_generators_are_left_alone():
    samples = SeededSamples(dataset())
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    expected = random.random(), np.random.rand(), float(torch.rand(()))  # noqa: NPY002
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    samples[SampleIndex(2, 99)]
    assert (random.random(), np.random.rand(), float(torch.rand(()))) == expected  # noqa: NPY002


def test_samples_are_drawn_with_one_thread():
    seen = []
    data = Dataset(cases(1), Compose([Lambdad("image", lambda image: seen.append(torch.get_num_threads()) or image)]))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        SeededSamples(data)[SampleIndex(0, 1)]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [1]


def test_monais_engine_sets_the_epoch():
    batches, seen = loader(), []
    network = torch.nn.Conv3d(1, 1, 1)
    SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=3,
        train_data_loader=batches,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=torch.nn.MSELoss(),
        iteration_update=lambda engine, batch: seen.append((engine.state.epoch, batch["image"])),
        decollate=False,
    ).run()
    other = loader()
    for epoch in (1, 2, 3):
        images = torch.cat([image.as_subclass(torch.Tensor) for e, image in seen if e == epoch])
        assert torch.equal(images, epoch_of(other, epoch))


def test_a_pickled_index_keeps_its_seed():
    index = pickle.loads(pickle.dumps(SampleIndex(4, 77)))
    assert (index, index.seed, "abcdef"[index]) == (4, 77, "e")


def test_a_dataset_without_seedable_transforms_is_refused():
    with pytest.raises(TypeError, match="needs a data set whose transform has set_random_state"):
        SeededSamples(torch.utils.data.TensorDataset(torch.zeros(3)))
