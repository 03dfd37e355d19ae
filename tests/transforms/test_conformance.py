"""Tests that every transform passes: reproducible, without side effects on its input, with correct labels and grids."""

import copy
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor, PersistentDataset, pickle_hashing, set_track_meta
from monai.transforms import Compose, Randomizable
from monai.transforms.traits import RandomizableTrait
from transforms.conforming import ENTRIES, SHAPES, Entry, assert_identical, case, samples_of, snapshot

from medseg import transforms

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*has no voxel of label"),
    # torch advises against forking after threads; the workers run no torch threads
    pytest.mark.filterwarnings("ignore:.*use of fork"),
]

every_transform = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
random_ones = pytest.mark.parametrize(
    "entry", [e for e in ENTRIES if isinstance(e.make(False), Randomizable)], ids=lambda entry: entry.name
)
both_dims = pytest.mark.parametrize("dims", sorted(SHAPES))


def seeded(entry: Entry, seed: int = 0, missing: bool = False) -> Any:
    transform = entry.make(missing)
    if isinstance(transform, Randomizable):
        transform.set_random_state(seed=seed)
    return transform


def draws(transform: Any, dims: int, count: int = 4) -> list[Any]:
    return [transform(case(dims, number)) for number in range(count)]


@every_transform
@both_dims
def test_the_same_seed_gives_the_same_result(entry, dims):
    assert_identical(draws(seeded(entry), dims), draws(seeded(entry), dims))


@random_ones
@both_dims
def test_another_seed_or_another_draw_differs(entry, dims):
    first, second = seeded(entry, 0), seeded(entry, 1)
    ours, theirs = draws(first, dims, 6), draws(second, dims, 6)
    again = draws(first, dims, 6)
    for other in (theirs, again):
        with pytest.raises(AssertionError):
            assert_identical(ours, other)


@random_ones
@both_dims
def test_compose_seeds_the_inner_transform(entry, dims):
    def composed(seed):
        return draws(Compose([entry.make(False)]).set_random_state(seed=seed), dims)

    assert_identical(composed(3), composed(3))
    with pytest.raises(AssertionError):
        assert_identical(composed(3), composed(4))
    # every inner random transform was seeded, none uses the shared default state
    transform = Compose([entry.make(False)]).set_random_state(seed=3).transforms[0]
    inner = [part for part in vars(transform).values() if isinstance(part, Randomizable)]
    assert all(part.R is not Randomizable.R for part in [transform, *inner])


@every_transform
@both_dims
def test_the_same_from_every_data_set(entry, dims, tmp_path):
    """Dataset, CacheDataset (with and without copies) and PersistentDataset (written, then read back) agree."""
    data = [case(dims, number) for number in range(3)]

    def pipeline():
        return Compose([transforms.LabelVoxelIndexd("label"), entry.make(False)]).set_random_state(seed=5)

    expected = [*Dataset(data, pipeline())]
    assert_identical([*CacheDataset(data, pipeline(), progress=False)], expected)
    assert_identical([*CacheDataset(data, pipeline(), progress=False, copy_cache=False)], expected)
    for _ in range(2):
        stored = PersistentDataset(data, pipeline(), cache_dir=tmp_path, hash_transform=pickle_hashing, track_meta=True)
        stored.transform.set_random_state(seed=5)  # hashing the transforms has reseeded them
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Corrupt cache file")
            assert_identical([*stored], expected)
    assert len(list(tmp_path.glob("*.pt"))) == 3


class SeededByIndex(Dataset):
    """Seed every sample by its index, as training does, so that the number of workers does not matter."""

    def __getitem__(self, index):
        if isinstance(self.transform, Randomizable):
            self.transform.set_random_state(seed=100 + index)
        return super().__getitem__(index)


def as_list(batch: list[Any]) -> list[Any]:
    return batch


@every_transform
def test_the_same_from_any_number_of_workers(entry):
    data = [case(3, number) for number in range(4)]
    results = [
        [*DataLoader(SeededByIndex(data, entry.make(False)), batch_size=1, num_workers=workers, collate_fn=as_list)]
        for workers in (0, 1, 2)
    ]
    assert_identical(results[1], results[0])
    assert_identical(results[2], results[0])


@every_transform
@both_dims
def test_the_input_is_untouched(entry, dims):
    data = case(dims)
    before, keys = snapshot(data), list(data)
    result = seeded(entry)(data)
    assert list(data) == keys
    assert_identical(snapshot(data), before)
    # writing to the results must not change the input either
    for sample in samples_of(result):
        for key, value in sample.items():
            if isinstance(value, torch.Tensor) and value is not data.get(key):
                value.fill_(1)
    assert_identical(snapshot(data), before)


@every_transform
def test_a_pickled_transform_gives_the_same(entry):
    transform = seeded(entry)
    draws(transform, 3, 1)  # so that a used transform is pickled
    restored = pickle.loads(pickle.dumps(transform))
    assert_identical(draws(restored, 3), draws(transform, 3))
    assert_identical(draws(copy.deepcopy(restored), 3), draws(transform, 3))


@every_transform
def test_a_persistent_cache_sees_changed_parameters(entry):
    """The hash that keys a cache is equal for equal parameters, used or not."""
    if isinstance(entry.make(False), RandomizableTrait):
        pytest.skip("random transforms are not cached")
    used = entry.make(False)
    draws(used, 3, 1)
    assert pickle_hashing(used) == pickle_hashing(entry.make(False)) != pickle_hashing(entry.make(True))


@every_transform
def test_random_transforms_have_monais_trait(entry):
    """Without the trait CacheDataset would keep the first draw for ever."""
    transform = entry.make(False)
    assert (
        isinstance(transform, RandomizableTrait)
        == isinstance(transform, Randomizable)
        == ("Rand" in type(transform).__name__)
    )


@pytest.mark.parametrize("entry", [e for e in ENTRIES if e.inverse_tolerance], ids=lambda entry: entry.name)
@both_dims
def test_inversion_error(entry, dims):
    pipeline = Compose([seeded(entry)])
    data = case(dims)
    restored = pipeline.inverse(pipeline(data))
    for key in entry.keys:
        error = float((restored[key].as_tensor() - data[key].as_tensor()).abs().max())
        assert error <= entry.inverse_tolerance
        assert restored[key].applied_operations == []


@pytest.mark.parametrize("entry", [e for e in ENTRIES if e.label_keys], ids=lambda entry: entry.name)
@settings(max_examples=40, deadline=None)
@given(data=st.data(), dims=st.integers(2, 3), seed=st.integers(0, 2**31 - 1))
def test_labels_never_leave_their_set(entry, data, dims, seed):
    shape = data.draw(st.lists(st.integers(4, 14), min_size=dims, max_size=dims), label="shape")
    values = data.draw(st.lists(st.integers(0, 255), min_size=1, max_size=5, unique=True), label="label values")
    sample = case(dims, seed % 1000, shape, values)
    before = set(np.unique(sample["label"].numpy()).tolist()) | set(entry.added_labels)
    for result in samples_of(seeded(entry, seed)(sample)):
        for key in entry.label_keys:
            assert set(np.unique(result[key].numpy()).tolist()) <= before
            assert result[key].dtype == sample[key].dtype


@every_transform
@both_dims
def test_missing_keys(entry, dims):
    for absent in entry.keys:
        data = case(dims)
        del data[absent]
        with pytest.raises(KeyError, match=absent):
            seeded(entry)(data)
        if absent == "label" and "crop" in entry.name:
            data["label_voxel_index"] = transforms.LabelVoxelIndex()(case(dims)["label"])
        for result in samples_of(seeded(entry, missing=True)(data)):
            assert absent not in result


@every_transform
@both_dims
def test_affines_are_kept_or_moved_exactly(entry, dims):
    """An image of world coordinates still agrees with its affine; an unchanged grid keeps its affine."""
    data = case(dims)
    shape = data["image"].shape[1:]
    grid = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in shape), indexing="ij"))
    affine = data["image"].affine
    for result in samples_of(seeded(entry)(data)):
        for key in entry.keys:
            if key in result:
                assert isinstance(result[key], MetaTensor)
                assert result[key].affine.dtype == torch.float64
                assert result[key].meta["filename_or_obj"] == "case_0.nii.gz"
                assert entry.moves_grid or torch.equal(result[key].affine, affine)
    if not entry.moves_grid:
        return
    world = torch.einsum("wv,v...->w...", affine[:dims, :dims], grid) + affine[:dims, -1].view(-1, *(1,) * dims)
    data["image"] = MetaTensor(torch.cat([world, torch.ones_like(world[:1])]), affine=affine)
    for result in samples_of(seeded(entry)(data)):
        patch = result["image"]
        here = torch.stack(
            torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in patch.shape[1:]), indexing="ij")
        )
        own = patch.affine
        expected = torch.einsum("wv,v...->w...", own[:dims, :dims], here) + own[:dims, -1].view(-1, *(1,) * dims)
        inside = patch.as_tensor()[-1] == 1  # the rest is padding
        torch.testing.assert_close(patch.as_tensor()[:-1, inside], expected[:, inside])
        assert int(inside.sum()) == np.prod([min(n, m) for n, m in zip(shape, patch.shape[1:], strict=True)])


@every_transform
@both_dims
def test_arrays_tensors_and_meta_tensors_give_the_same_values(entry, dims):
    if entry.needs_affine:
        pytest.skip("needs an affine")
    kinds = {"meta": lambda x: x, "tensor": lambda x: x.as_tensor().clone(), "array": lambda x: x.numpy().copy()}
    results = {}
    for kind, convert in kinds.items():
        data = {
            key: convert(value) if isinstance(value, MetaTensor) else value
            for key, value in case(dims, affine=torch.eye(4)).items()
        }
        results[kind] = samples_of(seeded(entry)(data))
    for kind in ("tensor", "array"):
        for found, expected in zip(results[kind], results["meta"], strict=True):
            for key in entry.keys:
                np.testing.assert_allclose(np.asarray(found[key]), np.asarray(expected[key]), rtol=1e-6, atol=1e-6)


@every_transform
def test_works_without_meta_data(entry):
    if entry.needs_affine:
        pytest.skip("needs an affine")
    data = {key: value.as_tensor() if isinstance(value, MetaTensor) else value for key, value in case(3).items()}
    expected = samples_of(seeded(entry)(case(3, affine=torch.eye(4))))
    set_track_meta(False)
    try:
        for found, with_meta in zip(samples_of(seeded(entry)(data)), expected, strict=True):
            for key in entry.keys:
                assert not isinstance(found[key], MetaTensor)
                np.testing.assert_allclose(np.asarray(found[key]), np.asarray(with_meta[key]), rtol=1e-6, atol=1e-6)
    finally:
        set_track_meta(True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_transform
@both_dims
def test_the_gpu_gives_the_cpus_result(entry, dims):
    on_gpu = {key: value.cuda() if isinstance(value, MetaTensor) else value for key, value in case(dims).items()}
    for found, expected in zip(samples_of(seeded(entry)(on_gpu)), samples_of(seeded(entry)(case(dims))), strict=True):
        for key in entry.keys:
            assert found[key].device.type == "cuda"
            torch.testing.assert_close(found[key].as_tensor().cpu(), expected[key].as_tensor(), rtol=1e-4, atol=1e-4)


def test_every_public_name_exists_with_its_aliases():
    for name in transforms.__all__:
        assert getattr(transforms, name) is not None
    for name in transforms.__all__:
        if name.endswith("Dict"):
            stem = name.removesuffix("Dict")
            assert getattr(transforms, name) is getattr(transforms, f"{stem}d") is getattr(transforms, f"{stem}D")
    with pytest.raises(AttributeError, match="no attribute 'RandCrop'"):
        transforms.RandCrop  # noqa: B018
