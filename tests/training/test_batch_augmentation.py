"""A batch augmented as a whole equals its items augmented one by one."""

import copy

import ignite.distributed as idist
import pytest
import torch
from monai.data import MetaTensor, list_data_collate
from monai.transforms import RandGaussianNoised, RandScaleIntensityd
from training.test_iteration import small_network

from medseg.training import BatchAugmentation
from medseg.training.batch_augmentation import draw_seed
from medseg.transforms import RandElasticDeformationd

KEYS = ("image", "label", "weight")


def items(with_geometry: bool, count: int = 4) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    samples = []
    for n in range(count):
        item = {
            "image": torch.randn(2, 12, 10, 8, generator=generator),
            "label": torch.randint(0, 3, (1, 12, 10, 8), generator=generator, dtype=torch.uint8),
            "weight": torch.rand(1, 12, 10, 8, generator=generator),
        }
        affine = torch.diag(torch.tensor([1.0 + n, 2.0, 3.0, 1.0], dtype=torch.float64))
        samples.append(
            {key: MetaTensor(value, affine=affine) for key, value in item.items()} if with_geometry else item
        )
    return samples


def transforms() -> list:
    return [
        RandElasticDeformationd(KEYS, ("bilinear", "nearest", "nearest"), prob=0.7, rotation_range=0.4, flip=(0, 1, 2)),
        RandGaussianNoised("image", prob=0.6, std=0.1),
        RandScaleIntensityd("image", prob=0.6, factors=0.3),
    ]


def one_by_one(samples, seed: int, step: int) -> list:
    done = []
    for place, sample in enumerate(samples):
        for number, transform in enumerate(transforms()):
            transform.set_random_state(seed=draw_seed(seed, step, place, number))
            sample = transform(sample)
        done.append(sample)
    return done


def assert_same(ours: torch.Tensor, theirs: torch.Tensor, key: str) -> None:
    """Compare copied voxels exactly and interpolated ones up to the order of summation."""
    tolerance = 1e-4 if key == "image" else 0
    torch.testing.assert_close(ours.as_subclass(torch.Tensor), theirs.as_subclass(torch.Tensor), atol=tolerance, rtol=0)


@pytest.mark.parametrize("with_geometry", [False, True])
def test_the_batch_equals_its_items(with_geometry):
    samples = items(with_geometry)
    before = copy.deepcopy(samples)
    for step in (1, 2):
        whole = BatchAugmentation(transforms(), seed=3)(list_data_collate(samples), step)
        alone = one_by_one(samples, 3, step)
        changed = 0
        for key in KEYS:
            assert type(whole[key]) is type(samples[0][key])
            for n, sample in enumerate(alone):
                assert_same(whole[key][n], sample[key], key)
                changed += not torch.equal(torch.as_tensor(sample[key]), torch.as_tensor(samples[n][key]))
        assert changed > len(KEYS)  # some draws skip their transform
    for sample, kept in zip(samples, before, strict=True):
        assert all(torch.equal(sample[key], kept[key]) for key in KEYS)  # the loader's tensors are not changed
    assert set(torch.as_tensor(whole["label"]).unique().tolist()) <= {0, 1, 2}


def test_draws_depend_only_on_step_and_position():
    batch = list_data_collate(items(False))
    augment = BatchAugmentation(transforms())
    first, second, again = augment(batch, 5), augment(batch, 6), augment(batch, 5)
    assert torch.equal(first["image"], again["image"])
    assert not torch.equal(first["image"], second["image"])


def test_two_processes_draw_the_same_as_one(monkeypatch):
    samples = items(False)
    together = BatchAugmentation(transforms())(list_data_collate(samples), 1)
    monkeypatch.setattr(idist, "get_world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(idist, "get_rank", lambda rank=rank: rank)
        share = BatchAugmentation(transforms())(list_data_collate(samples[rank::2]), 1)
        for key in KEYS:
            assert_same(share[key], together[key][rank::2], key)


def test_the_training_step_augments_its_batch():
    from monai.engines import SupervisedTrainer

    from medseg.losses import WeightedCrossEntropyLoss
    from medseg.training import SupervisedUpdate

    data = {"image": torch.randn(2, 1, 8, 8, 8), "label": torch.randint(0, 2, (2, 1, 8, 8, 8))}
    augment = BatchAugmentation([RandElasticDeformationd(("image", "label"), prob=1.0, rotation_range=0.5)], seed=1)
    states = []
    for batches, given in (([data] * 2, augment), ([augment(data, 1), augment(data, 2)], None)):
        network = small_network()
        SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=1,
            train_data_loader=batches,
            network=network,
            optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
            loss_function=WeightedCrossEntropyLoss(),
            iteration_update=SupervisedUpdate(network, "fp32", augment=given).train,
            decollate=False,
        ).run()
        states.append(network.state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
