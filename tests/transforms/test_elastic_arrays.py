"""What elastic deformation takes and gives: kinds of arrays, batches, dictionaries, data sets, bad input."""

import pickle

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor, PersistentDataset
from monai.transforms import Compose
from transforms.deforming import DEVICES, all_at_once, transform

from medseg.errors import ShapeError
from medseg.transforms.elastic.transform import RandElasticDeformation, RandElasticDeformationd


@pytest.mark.parametrize("kind", ["array", "tensor", "metatensor"])
def test_kind_dtype_affine_and_input_are_kept(kind):
    rng = np.random.default_rng(0)
    values = {"image": rng.normal(size=(2, 12, 10, 8)), "label": rng.integers(0, 3, (1, 12, 10, 8)).astype(np.int16)}
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    wrap = {"array": np.asarray, "tensor": torch.as_tensor, "metatensor": lambda a: MetaTensor(a, affine=affine)}[kind]
    sample = {key: wrap(value.copy()) for key, value in values.items()} | {"case": "a"}
    deform = pickle.loads(pickle.dumps(RandElasticDeformationd(("image", "label"), prob=1.0, rotation_range=1.0)))
    result = deform.set_random_state(0)(sample)
    for key, value in values.items():
        assert type(result[key]) is type(sample[key])
        assert result[key].dtype == sample[key].dtype
        assert not np.array_equal(np.asarray(result[key]), value)
        np.testing.assert_array_equal(np.asarray(sample[key]), value)
        if kind == "metatensor":
            np.testing.assert_array_equal(result[key].affine, affine)
    assert result["case"] == "a"


def test_integers_are_interpolated_as_floats():
    assert transform()(np.arange(64, dtype=np.int16).reshape(1, 8, 8)).dtype == np.float32


def test_views_and_channels_last_are_taken_as_they_are():
    image = torch.rand(1, 3, 12, 14, 10)
    strided = image.contiguous(memory_format=torch.channels_last_3d)[0]
    assert torch.equal(transform(5)(strided), transform(5)(image[0]))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("mode", "dtype"), [("bilinear", torch.float32), ("nearest", torch.uint8)])
def test_a_batch_equals_its_items(mode, dtype, device):
    deform = all_at_once(mode=mode)
    batch = (torch.rand(4, 2, 20, 18, 70, device=device) * 9).to(dtype)
    params = [deform.randomize((20, 18, 70)) for _ in range(4)]
    params[2] = None
    whole = deform.apply_batch(params, batch)
    for drawn, before, after in zip(params, batch, whole, strict=True):
        expected = before if drawn is None else deform.apply(drawn, before)
        torch.testing.assert_close(after, expected, atol=1e-4, rtol=0)
    assert whole.dtype == dtype


def sample_dictionaries():
    generator = torch.Generator().manual_seed(0)
    return [
        {"image": torch.rand(1, 12, 12, generator=generator), "label": torch.full((1, 12, 12), k)} for k in range(6)
    ]


@pytest.mark.parametrize("dataset", ["cached", "persistent"])
@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_the_same_under_every_dataset(dataset, num_workers, tmp_path):
    """MONAI's loader seeds each worker; equal worker counts must give equal samples whatever holds them."""

    def results(make):
        composed = Compose([RandElasticDeformationd(("image", "label"), prob=0.7)]).set_random_state(4)
        torch.manual_seed(11)
        loader = DataLoader(make(sample_dictionaries(), composed), batch_size=1, num_workers=num_workers)
        return torch.cat([batch["image"] for batch in loader])

    kinds = {
        "cached": lambda data, t: CacheDataset(data, t, progress=False),
        "persistent": lambda data, t: PersistentDataset(data, t, cache_dir=tmp_path),
    }
    assert torch.equal(results(kinds[dataset]), results(Dataset))


def test_seeding_a_composition_reaches_the_inner_transform():
    sample = sample_dictionaries()[0]
    composed = [Compose([RandElasticDeformationd(("image", "label"), prob=1.0)]).set_random_state(2) for _ in range(2)]
    assert torch.equal(composed[0](sample)["image"], composed[1](sample)["image"])


def test_missing_keys():
    image = torch.rand(1, 8, 8)
    deform = RandElasticDeformationd(("image", "label"), prob=1.0, allow_missing_keys=True)
    assert set(deform({"image": image})) == {"image"}
    assert deform({"other": 1}) == {"other": 1}
    with pytest.raises(KeyError, match="label"):
        RandElasticDeformationd(("image", "label"), prob=1.0)({"image": image})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"form": "unet"}, "form"),
        ({"grid": 3, "grid_spacing": 9.0}, "not both"),
        ({"grid": 1}, "2 control points"),
        ({"grid_spacing": 0.0}, "> 0"),
        ({"sigma": -1.0}, ">= 0"),
        ({"unit": "mm"}, "needs a sigma"),
        ({"scale_range": 1.0}, "scale factors"),
        ({"scale_range": (1.2, 0.8)}, "rising"),
        ({"mode": "bicubic"}, "mode"),
        ({"padding": "reflection"}, "padding"),
        ({"prob": 1.5}, "prob"),
    ],
)
def test_bad_arguments_are_refused_when_made(arguments, message):
    with pytest.raises(ValueError, match=message) as raised:
        RandElasticDeformation(**arguments)
    assert "\n" not in str(raised.value)


def test_bad_arrays_are_refused():
    with pytest.raises(ShapeError, match="'label'"):
        RandElasticDeformationd(("image", "label"), prob=1.0)(
            {"image": torch.rand(1, 8, 8), "label": torch.ones(1, 8, 9)}
        )
    with pytest.raises(ShapeError, match="2 or 3 spatial axes"):
        transform()(torch.rand(1, 8))
    with pytest.raises(ValueError, match="3 of them"):
        transform(sigma=(1.0, 2.0), unit="voxel")(torch.rand(1, 8, 8, 8))
