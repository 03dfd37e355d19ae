"""Compare elastic deformation with SciPy's interpolation, and test labels, array types, batches and data sets."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor, PersistentDataset
from monai.transforms import Compose
from scipy.ndimage import map_coordinates
from transforms.deforming import DEVICES, FORMS, all_at_once, transform

from medseg.errors import ShapeError
from medseg.transforms.elastic.transform import RandElasticDeformation, RandElasticDeformationd


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(70, 45), (40, 33, 21), (1, 50), (20, 1, 30)])
def test_equals_scipy_at_the_same_coordinates(form, shape, device):
    deform = all_at_once(form=form)
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, *shape)).astype(np.float32)
    label = rng.integers(0, 5, (1, *shape)).astype(np.uint8)
    for _ in range(3):
        params = deform.randomize(shape)
        at = np.moveaxis(params.source_coordinates(), -1, 0)
        expected = [map_coordinates(channel, at, order=1, mode="nearest") for channel in image]
        found = deform.apply(params, torch.as_tensor(image, device=device)).cpu().numpy()
        np.testing.assert_allclose(found, expected, atol=2e-4)
        copied = deform.apply(params, torch.as_tensor(label, device=device), mode="nearest").cpu().numpy()
        ties = np.any(np.abs(at - np.floor(at) - 0.5) < 1e-4, axis=0)  # halfway between two voxels rounding decides
        clamped = [np.clip(np.rint(a), 0, n - 1).astype(int) for a, n in zip(at, shape, strict=True)]
        np.testing.assert_array_equal(copied[0][~ties], label[0][tuple(clamped)][~ties])


def test_coordinates_are_the_sum_of_spline_rotation_and_centre():
    params = all_at_once().randomize((20, 30))
    plain = replace(params, matrix=np.eye(2))
    centre = np.array([9.5, 14.5])
    expected = (plain.source_coordinates() - centre) @ params.matrix.T + centre
    np.testing.assert_allclose(params.source_coordinates(), expected, atol=1e-9)
    still = replace(params, matrix=np.eye(2), displacements=np.zeros_like(params.displacements))
    np.testing.assert_allclose(still.source_coordinates(), np.moveaxis(np.indices((20, 30)), 0, -1), atol=1e-9)


@pytest.mark.parametrize("axes", [(0,), (1, 2), (0, 1, 2)])
def test_flips_are_exact(axes):
    label = torch.arange(2 * 5 * 6 * 7).reshape(2, 5, 6, 7)
    deform = transform(sigma=0.0)
    params = deform.randomize((5, 6, 7))
    params = replace(params, matrix=np.diag([-1.0 if axis in axes else 1.0 for axis in range(3)]))
    expected = label.flip([axis + 1 for axis in axes])
    assert torch.equal(deform.apply(params, label, mode="nearest"), expected)
    torch.testing.assert_close(deform.apply(params, label.float()), expected.float(), atol=1e-2, rtol=0)


@given(
    seed=st.integers(0, 2**31 - 1),
    ndim=st.sampled_from([2, 3]),
    form=st.sampled_from(FORMS),
    dtype=st.sampled_from([np.uint8, np.int16, np.int64, np.float32, bool]),
    fill=st.sampled_from(["border", 7]),
)
@settings(max_examples=200, deadline=None)
def test_labels_never_leave_their_set(seed, ndim, form, dtype, fill):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 28, ndim))
    label = rng.choice(rng.integers(0, 200, 3), (1, *shape)).astype(dtype)
    if dtype == np.int64:
        label += 2**40  # more than a float holds exactly
    deform = all_at_once(seed, form=form, mode="nearest", padding=fill)
    deformed = deform(label)
    assert deformed.dtype == label.dtype
    assert set(np.unique(deformed)) <= set(np.unique(label)) | (set() if fill == "border" else {label.dtype.type(7)})


@given(seed=st.integers(0, 2**31 - 1), ndim=st.sampled_from([2, 3]), form=st.sampled_from(FORMS))
@settings(max_examples=100, deadline=None)
def test_label_and_image_stay_aligned(seed, ndim, form):
    """The image holds the coordinates of each voxel and the label its number, so both must give the same place."""
    shape = tuple(np.random.default_rng(seed).integers(2, 28, ndim))
    sample = {
        "image": torch.as_tensor(np.indices(shape), dtype=torch.float32),
        "label": torch.arange(int(np.prod(shape))).reshape(1, *shape),
    }
    deform = RandElasticDeformationd(
        ("image", "label"), prob=1.0, form=form, rotation_range=0.4, scale_range=0.3, flip=(0, 1)
    ).set_random_state(seed)
    deformed = deform(sample)
    named = np.stack(np.unravel_index(deformed["label"][0].numpy(), shape))
    assert np.abs(named - deformed["image"].numpy()).max() <= 0.5 + 1e-3


def test_rotation_is_a_rotation_in_mm():
    spacing = np.array([0.7, 0.7, 5.0])
    for seed in range(20):
        params = transform(seed, sigma=0.0, rotation_range=(0.3, 0.1, 3.0)).randomize((30, 30, 8), spacing)
        in_mm = params.matrix * spacing[:, None] / spacing
        np.testing.assert_allclose(in_mm @ in_mm.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(in_mm) == pytest.approx(1)


def test_a_scale_above_one_magnifies():
    image = torch.zeros(1, 21, 21)
    image[:, 8:13, 8:13] = 1
    assert transform(sigma=0.0, scale_range=(2.0, 2.0))(image).sum() > 3 * image.sum()


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_a_number_fills_the_same_voxels_in_either_mode(mode):
    deform = transform(sigma=0.0, rotation_range=(0.8, 0.8, 0.8))
    params = deform.randomize((20, 22, 18))
    at = params.source_coordinates()
    outside = np.any((at < -0.5) | (at > np.array([20, 22, 18]) - 0.5), axis=-1)
    deformed = deform.apply(params, np.ones((1, 20, 22, 18), np.float32), mode, padding=-5.0)
    np.testing.assert_array_equal(deformed[0], np.where(outside, -5, 1))
    assert 0.05 < outside.mean() < 0.9


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


def test_memory_layout_does_not_matter():
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
    """MONAI's loader seeds each worker, so equal worker counts must give equal samples from every data set."""

    def results(dataset_of):
        composed = Compose([RandElasticDeformationd(("image", "label"), prob=0.7)]).set_random_state(4)
        torch.manual_seed(11)
        loader = DataLoader(dataset_of(sample_dictionaries(), composed), batch_size=1, num_workers=num_workers)
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
        ({"form": "unet"}, "form.*unet"),
        ({"grid": 3, "grid_spacing": 9.0}, "grid.*grid_spacing"),
        ({"grid": 1}, "grid.*1"),
        ({"grid_spacing": 0.0}, "grid_spacing.*0"),
        ({"sigma": -1.0}, "sigma.*-1"),
        ({"unit": "mm"}, "mm.*sigma"),
        ({"scale_range": 1.0}, r"scale.*\(0\.0, 2\.0\)"),
        ({"scale_range": (1.2, 0.8)}, r"scale.*\(1\.2, 0\.8\)"),
        ({"mode": "bicubic"}, "mode.*bicubic"),
        ({"padding": "reflection"}, "padding.*reflection"),
        ({"prob": 1.5}, "prob.*1.5"),
    ],
)
def test_invalid_arguments_raise_an_error_of_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as raised:
        RandElasticDeformation(**arguments)
    assert "\n" not in str(raised.value)


def test_invalid_arrays_raise():
    with pytest.raises(ShapeError, match=r"'label'.*\(8, 9\).*\(8, 8\)"):
        RandElasticDeformationd(("image", "label"), prob=1.0)(
            {"image": torch.rand(1, 8, 8), "label": torch.ones(1, 8, 9)}
        )
    with pytest.raises(ShapeError, match=r"\(8,\)"):
        transform()(torch.rand(1, 8))
    with pytest.raises(ValueError, match=r"sigma.*3.*\(1\.0, 2\.0\)"):
        transform(sigma=(1.0, 2.0), unit="voxel")(torch.rand(1, 8, 8, 8))
