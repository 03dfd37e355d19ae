"""Elastic deformation against SciPy's interpolation, and the promises made for labels, folds and randomness."""

import pickle
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor, PersistentDataset
from monai.transforms import Compose
from scipy.ndimage import map_coordinates

from medseg.errors import ShapeError
from medseg.transforms.elastic import RandElasticDeformation, RandElasticDeformationd

FORMS = ["relative", "unet_ronneberger2015", "unet3d_cicek2016"]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def transform(seed=0, **arguments):
    return RandElasticDeformation(**{"prob": 1.0, **arguments}).set_random_state(seed)


def all_at_once(seed=0, **arguments):
    return transform(seed, rotation_range=0.5, scale_range=0.2, flip=(0, 1), **arguments)


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
        ties = np.any(np.abs(at - np.floor(at) - 0.5) < 1e-4, axis=0)  # rounding decides halfway between two voxels
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


def test_the_drawn_displacements_are_reached_at_the_control_points():
    params = transform(form="unet_ronneberger2015").randomize((201, 101))
    moved = params.source_coordinates() - np.moveaxis(np.indices((201, 101)), 0, -1)
    np.testing.assert_allclose(moved[::100, ::50], np.moveaxis(params.displacements[:, 1:-1, 1:-1], 0, -1), atol=1e-9)


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
        label += 2**40  # a float would lose it
    deform = all_at_once(seed, form=form, mode="nearest", padding=fill)
    deformed = deform(label)
    assert deformed.dtype == label.dtype
    assert set(np.unique(deformed)) <= set(np.unique(label)) | (set() if fill == "border" else {label.dtype.type(7)})


@given(seed=st.integers(0, 2**31 - 1), ndim=st.sampled_from([2, 3]), form=st.sampled_from(FORMS))
@settings(max_examples=100, deadline=None)
def test_label_and_image_stay_aligned(seed, ndim, form):
    """The image holds each voxel's coordinates and the label its number: both must name the same place."""
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


def jacobian_determinants(params, refine=4):
    """Determinants of the map's derivative by differences on a grid finer than the voxels."""
    step = 1 / refine
    fine = replace(
        params,
        shape=tuple((n - 1) * refine + 1 for n in params.shape),
        lattices=tuple(replace(a, origin=a.origin * refine, step=a.step * refine) for a in params.lattices),
    )
    controls = np.moveaxis(params.displacements, 0, -1)
    for axis, weights in enumerate(fine.weights):
        controls = np.moveaxis(np.tensordot(weights, controls, axes=(1, axis)), 0, axis)
    axes = tuple(range(len(params.shape)))
    gradient = np.stack([np.stack(np.gradient(controls[..., i], step, axis=axes), -1) for i in axes], -2)
    return np.linalg.det(np.eye(len(axes)) + gradient)


@given(seed=st.integers(0, 2**31 - 1), ndim=st.sampled_from([2, 3]), form=st.sampled_from(FORMS))
@settings(max_examples=60, deadline=None)
def test_fold_free_keeps_the_jacobian_positive(seed, ndim, form):
    shape = (24, 17) if ndim == 2 else (14, 12, 9)
    params = transform(seed, form=form, sigma=40.0, unit="voxel", fold_free=True).randomize(shape)
    assert jacobian_determinants(params).min() > 0
    assert np.abs(params.displacements).max() > 0.1  # shrunk, not suppressed


def test_without_the_option_ten_voxels_fold_a_small_patch():
    folded = [
        jacobian_determinants(transform(seed, form="unet_ronneberger2015").randomize((40, 40))).min() <= 0
        for seed in range(20)
    ]
    assert np.mean(folded) > 0.5


@pytest.mark.parametrize("shape", [(256, 256), (48, 64, 48), (128, 128, 128)])
def test_the_default_form_is_seldom_shrunk(shape):
    free, kept = ([transform(seed, fold_free=f).randomize(shape) for seed in range(200)] for f in (False, True))
    shrunk = [not np.array_equal(a.displacements, b.displacements) for a, b in zip(free, kept, strict=True)]
    assert np.mean(shrunk) < 0.1


def test_published_forms_draw_what_they_say():
    unet = [transform(seed, form="unet_ronneberger2015").randomize((512, 512)) for seed in range(300)]
    assert unet[0].displacements[:, 1:-1, 1:-1].shape == (2, 3, 3)
    np.testing.assert_allclose(unet[0].lattices[0].positions[1:-1], [0, 255.5, 511])
    assert np.std([p.displacements[:, 1:-1, 1:-1] for p in unet]) == pytest.approx(10, rel=0.05)
    unet3d = [transform(seed, form="unet3d_cicek2016").randomize((132, 132, 116)) for seed in range(50)]
    assert {lattice.step for lattice in unet3d[0].lattices} == {32.0}
    assert unet3d[0].basis == "bspline"
    assert np.std([p.displacements for p in unet3d]) == pytest.approx(4, rel=0.05)


def test_sigma_in_mm_is_the_same_length_along_every_axis():
    spacing = (0.5, 1.0, 4.0)
    drawn = [
        transform(seed, sigma=3.0, unit="mm", fold_free=False).randomize((40, 30, 20), spacing) for seed in range(300)
    ]
    in_mm = np.std([p.displacements for p in drawn], axis=(0, 2, 3, 4)) * spacing
    np.testing.assert_allclose(in_mm, 3, rtol=0.05)
    per_grid = transform(form="unet3d_cicek2016", sigma=2.0, grid_spacing=16.0, unit="mm").randomize(
        (40, 30, 20), spacing
    )
    np.testing.assert_allclose([lattice.step for lattice in per_grid.lattices], [32, 16, 4])


def test_metatensor_gives_the_spacing():
    image = MetaTensor(torch.rand(1, 20, 20, 20), affine=np.diag([0.5, 1.0, 4.0, 1.0]))
    arguments = {"sigma": 3.0, "unit": "mm", "fold_free": False}
    by_affine = transform(1, **arguments)(image)
    deform = transform(1, **arguments)
    torch.testing.assert_close(
        by_affine.as_tensor(), deform.apply(deform.randomize((20, 20, 20), (0.5, 1, 4)), image.as_tensor())
    )


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


def test_a_skipped_draw_does_nothing():
    image, label = torch.rand(1, 9, 9), torch.ones(1, 9, 9, dtype=torch.uint8)
    deform = RandElasticDeformationd(("image", "label"), prob=0.0)
    result = deform({"image": image, "label": label})
    assert result["image"] is image
    assert result["label"] is label
    assert RandElasticDeformation(prob=0.0).randomize((9, 9)) is None


def test_the_probability_is_kept():
    deform = RandElasticDeformation(prob=0.3).set_random_state(0)
    assert np.mean([deform.randomize((8, 8)) is not None for _ in range(2000)]) == pytest.approx(0.3, abs=0.04)


def test_the_record_is_frozen():
    params = transform().randomize((8, 8))
    with pytest.raises(FrozenInstanceError):
        params.basis = "bspline"


def test_seeds_decide_and_the_last_draw_can_be_repeated():
    image = torch.rand(1, 16, 16)
    first, second = transform(3), transform(3)
    results = [first(image) for _ in range(3)]
    assert all(torch.equal(a, second(image)) for a in results)
    assert not torch.equal(results[0], results[1])
    assert torch.equal(first(image, randomize=False), results[2])


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
