"""Compare NormalizeIntensityByModality with closed forms, NumPy and MONAI."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor, set_track_meta
from monai.transforms import Compose, NormalizeIntensity, ScaleIntensityRange, ScaleIntensityRangePercentiles

from medseg.errors import PlanError, ShapeError, VolumeError
from medseg.transforms import (
    NormalizeIntensityByModality,
    NormalizeIntensityByModalityD,
    NormalizeIntensityByModalityd,
    NormalizeIntensityByModalityDict,
)

CT = {"scheme": "ct", "lower": -160.0, "upper": 240.0, "mean": 40.0, "std": 80.0}


def image(shape=(1, 12, 13, 14), seed=0, mean=300.0, std=70.0):
    values = np.random.default_rng(seed).normal(mean, std, shape)
    return MetaTensor(torch.from_numpy(values.astype(np.float32)), meta={"filename_or_obj": "scan_07.nii.gz"})


def close(found, expected, **tolerances):
    torch.testing.assert_close(
        torch.as_tensor(np.asarray(found)), torch.as_tensor(np.asarray(expected)), check_dtype=False, **tolerances
    )


def test_z_score_equals_monai_and_numpy():
    x = image()
    found = NormalizeIntensityByModality([{"scheme": "z_score"}])(x)
    close(found, NormalizeIntensity()(x), rtol=1e-5, atol=1e-5)
    values = x.numpy().astype(np.float64)
    close(found, (values - values.mean()) / values.std(), rtol=1e-5, atol=1e-5)


def test_z_score_of_the_nonzero_voxels():
    x = image()
    x[:, :6] = 0
    found = NormalizeIntensityByModality({"scheme": "z_score", "foreground": "nonzero"})(x)
    theirs = NormalizeIntensity(nonzero=True)(x.clone())  # it writes into its input
    close(found[:, 6:], theirs[:, 6:], rtol=1e-5, atol=1e-5)
    inside = x[:, 6:].numpy().astype(np.float64)
    close(found[:, :6], np.full((1, 6, 13, 14), -inside.mean() / inside.std()), rtol=1e-5, atol=1e-5)


def test_z_score_inside_a_mask():
    x = image()
    mask = torch.zeros(1, 12, 13, 14)
    mask[:, 2:7, 3:9] = 1
    inside = x.numpy()[:, 2:7, 3:9].astype(np.float64)
    expected = (x.numpy() - inside.mean()) / inside.std()
    scheme = [{"scheme": "z_score", "foreground": "mask"}]
    close(NormalizeIntensityByModality(scheme)(x, mask), expected, rtol=1e-5, atol=1e-5)
    dictionary = NormalizeIntensityByModalityd("image", scheme, mask_key="mask")({"image": x, "mask": mask})
    close(dictionary["image"], expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ShapeError, match=r"scan_07.*mask.*\(12, 13, 14\)"):
        NormalizeIntensityByModality(scheme)(x)


def test_z_score_with_given_statistics():
    x = image()
    found = NormalizeIntensityByModality([{"scheme": "z_score", "mean": 100.0, "std": 50.0}])(x)
    close(found, (x.numpy() - 100) / 50)


def test_ct_clips_then_scales():
    x = torch.tensor([[-1000.0, -160.0, 0.0, 40.0, 120.0, 240.0, 3000.0]])
    found = NormalizeIntensityByModality([CT])(x)
    close(found, np.array([[-2.5, -2.5, -0.5, 0.0, 1.0, 2.5, 2.5]]))


@pytest.mark.parametrize("clip", [True, False])
def test_percentile_equals_monai(clip):
    x = image(seed=1)
    scheme = {"scheme": "percentile", "lower": 2, "upper": 97, "out_min": -1, "out_max": 3, "clip": clip}
    theirs = ScaleIntensityRangePercentiles(2, 97, -1, 3, clip=clip)(x)
    close(NormalizeIntensityByModality([scheme])(x), theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("clip", [True, False])
def test_window_equals_monai(clip):
    x = image(seed=2)
    scheme = {"scheme": "window", "lower": 200, "upper": 350, "out_min": 0.5, "out_max": 2.0, "clip": clip}
    theirs = ScaleIntensityRange(200, 350, 0.5, 2.0, clip=clip)(x)
    close(NormalizeIntensityByModality([scheme])(x), theirs, rtol=1e-5, atol=1e-4)


def test_none_only_converts():
    x = np.arange(24, dtype=np.int16).reshape(1, 2, 3, 4)
    found = NormalizeIntensityByModality([{"scheme": "none"}])(x)
    assert found.dtype == torch.float32
    close(found, x)


def test_every_channel_has_its_own_scheme():
    x = image((3, 8, 9))
    schemes = [{"scheme": "none"}, {"scheme": "z_score"}, {**CT, "upper": 500.0}]
    found = NormalizeIntensityByModality(schemes)(x)
    for c, scheme in enumerate(schemes):
        close(found[c], NormalizeIntensityByModality(scheme)(x[c : c + 1])[0], rtol=0, atol=0)
    with pytest.raises(ShapeError, match=r"scan_07.*3 channels.*\(2, 8, 9\)"):
        NormalizeIntensityByModality(schemes)(x[:2])


@pytest.mark.parametrize("scheme", ["z_score", "percentile"])
@pytest.mark.parametrize("value", [0.0, 1e-3, 7.1, -1e6])
def test_a_constant_image_becomes_zero_with_a_warning(scheme, value):
    x = MetaTensor(torch.full((1, 33, 34, 35), value), meta={"filename_or_obj": "flat.nii"})
    with pytest.warns(UserWarning, match=r"flat\.nii channel 0"):
        found = NormalizeIntensityByModality([{"scheme": scheme}])(x)
    close(found, np.zeros(x.shape), rtol=0, atol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transform = NormalizeIntensityByModality([{"scheme": scheme}])
        close(transform.inverse(transform(x)), x, rtol=0, atol=0)


def test_nearly_constant_image_keeps_its_contrast():
    x = torch.full((1, 10, 10), 1e6)
    x[0, 0, ::2] += 1
    close(NormalizeIntensityByModality([{"scheme": "z_score"}])(x).std(correction=0), 1.0, rtol=1e-3, atol=0)


def test_coinciding_percentiles_fall_back_to_the_extremes():
    x = torch.zeros(1, 100, 100)
    x[0, 0, :2] = torch.tensor([2.0, 4.0])
    with pytest.warns(UserWarning, match=r"channel 0.*0\.5.*99\.5"):
        found = NormalizeIntensityByModality([{"scheme": "percentile"}])(x)
    close(found, x / 4)


@pytest.mark.parametrize(
    ("scheme", "nan_becomes"),
    [
        ({"scheme": "z_score"}, 0.0),
        (CT, -2.5),
        ({"scheme": "percentile"}, 0.0),
        ({"scheme": "window", "lower": 0, "upper": 10, "out_min": -1}, -1.0),
        ({"scheme": "none"}, 0.0),
    ],
)
def test_nan_and_infinity_are_replaced_with_a_warning(scheme, nan_becomes):
    x = image(seed=3)
    x[0, 0, 0, 0], x[0, 1, 1, 1], x[0, 2, 2, 2] = torch.nan, torch.inf, -torch.inf
    transform = NormalizeIntensityByModality([scheme])
    with pytest.warns(UserWarning, match=r"scan_07\.nii\.gz channel 0: 3 voxels"):
        found = transform(x)
    assert torch.isfinite(found).all()
    assert float(found[0, 0, 0, 0]) == pytest.approx(nan_becomes, abs=1e-6)
    values = found.as_tensor().flatten()
    others = torch.cat([values[1:][torch.isfinite(x.as_tensor().flatten()[1:])]])
    assert float(found[0, 1, 1, 1]) == float(others.max())
    assert float(found[0, 2, 2, 2]) == float(others.min())
    # the replaced voxels do not change the others
    finite = x.as_tensor()[torch.isfinite(x.as_tensor())]
    close(found.as_tensor()[torch.isfinite(x.as_tensor())], transform(finite[None])[0], rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*NaN or infinite")
def test_nothing_finite_or_nothing_in_the_foreground():
    with pytest.warns(UserWarning, match="no finite voxel"):
        found = NormalizeIntensityByModality({"scheme": "z_score"})(torch.full((1, 3, 3), torch.nan))
    close(found, np.zeros((1, 3, 3)))
    with pytest.warns(UserWarning, match=r"foreground \(nonzero\)"):
        close(
            NormalizeIntensityByModality({"scheme": "z_score", "foreground": "nonzero"})(np.zeros((1, 3, 3))),
            np.zeros((1, 3, 3)),
        )


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    mean=st.floats(-1e4, 1e4),
    std=st.floats(1e-2, 1e4),
    scheme=st.sampled_from(
        [
            {"scheme": "z_score"},
            {"scheme": "z_score", "mean": 3.0, "std": 20.0},
            {"scheme": "percentile", "clip": False},
            {"scheme": "percentile", "lower": 0, "upper": 100},
            {"scheme": "window", "lower": -7.0, "upper": 50.0, "clip": False},
            {"scheme": "none"},
        ]
    ),
)
def test_inverse_gives_the_image_back(seed, mean, std, scheme):
    x = image((2, 6, 7), seed, mean, std)
    transform = NormalizeIntensityByModality(scheme)
    normalised = transform(x)
    size = float(x.abs().max()) + abs(scheme.get("mean", 0)) + 50
    back = transform.inverse(normalised)
    close(back, x, rtol=0, atol=1e-6 * size)
    assert back.applied_operations == []


def test_inverse_of_clipped_voxels_is_the_bound():
    x = torch.tensor([[-1000.0, -100.0, 1000.0]])
    transform = NormalizeIntensityByModality([CT])
    close(transform.inverse(transform(x)), np.array([[-160.0, -100.0, 240.0]]), rtol=1e-5, atol=1e-4)


def test_compose_inverts_the_dictionary_form():
    x = image()
    pipeline = Compose(
        [NormalizeIntensityByModalityd(["image", "other"], {"scheme": "z_score"}, allow_missing_keys=True)]
    )
    close(pipeline.inverse(pipeline({"image": x}))["image"], x, rtol=1e-5, atol=1e-3)


def test_arrays_tensors_and_meta_tensors_agree():
    x = image()
    transform = NormalizeIntensityByModality([{"scheme": "z_score"}])
    expected = transform(x)
    for other in (x.numpy(), x.as_tensor(), x.numpy().astype(np.float64)):
        close(transform(other), expected, rtol=1e-5, atol=1e-5)
    assert expected.meta["filename_or_obj"] == "scan_07.nii.gz"
    set_track_meta(False)
    try:
        assert type(transform(x)) is torch.Tensor
    finally:
        set_track_meta(True)


@pytest.mark.parametrize("scheme", [{"scheme": "z_score"}, {"scheme": "percentile", "clip": False}, {"scheme": "none"}])
def test_a_stack_of_images_is_normalised_image_by_image(scheme):
    random = np.random.default_rng(0)
    volume = random.normal(random.normal(size=7), 1 + random.random(7), (2, 9, 8, 7))  # each slice with its own numbers
    scan = MetaTensor(torch.from_numpy(volume), affine=torch.diag(torch.tensor([1.0, 2, 3, 1])))
    sliced = NormalizeIntensityByModality(scheme, spatial_dims=2)
    found = sliced(scan)
    alone = [NormalizeIntensityByModality(scheme)(volume[..., n]) for n in range(7)]
    assert torch.equal(found.as_tensor(), torch.stack([image.as_tensor() for image in alone], -1))
    assert torch.equal(found.affine, scan.affine)
    np.testing.assert_allclose(sliced.inverse(found), volume, atol=1e-5)
    # an image and, where volumes are what the network takes, a volume are taken as a whole
    assert torch.equal(sliced(volume[..., 0]).as_tensor(), alone[0].as_tensor())
    whole = NormalizeIntensityByModalityd("image", scheme, spatial_dims=3)({"image": volume})["image"]
    assert torch.equal(whole.as_tensor(), NormalizeIntensityByModality(scheme)(volume).as_tensor())


def test_a_stack_of_images_keeps_to_a_mask():
    volume = np.random.default_rng(0).normal(size=(1, 9, 8, 3))
    mask = np.random.default_rng(1).random((1, 9, 8, 3)) > 0.5
    scheme = {"scheme": "z_score", "foreground": "mask"}
    found = NormalizeIntensityByModality(scheme, spatial_dims=2)(volume, mask)
    for n in range(3):
        inside = volume[0, ..., n][mask[0, ..., n]]
        np.testing.assert_allclose(found[0, ..., n], (volume[0, ..., n] - inside.mean()) / inside.std(), atol=1e-5)


def test_aliases():
    assert NormalizeIntensityByModalityD is NormalizeIntensityByModalityDict is NormalizeIntensityByModalityd


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ({"scheme": "zscore"}, "channel 0.*z_score, ct, .*'zscore'"),
        ({}, "channel 0.*None"),
        ({"scheme": "ct", "lower": 0, "upper": 1}, r"ct.*\['mean', 'std'\]"),
        ({"scheme": "z_score", "sigma": 1}, r"z_score.*\['sigma'\]"),
        ({"scheme": "window", "lower": 5, "upper": 5}, "lower.*upper.*5 and 5"),
        ({"scheme": "z_score", "mean": 5}, "mean.*std"),
        ({"scheme": "z_score", "mean": 5, "std": 0}, "std.*0"),
        ({"scheme": "z_score", "foreground": "body"}, "foreground.*'body'"),
        ({"scheme": "percentile", "upper": 101}, "percentile.*101"),
        ({"scheme": "window", "lower": 0, "upper": 5, "out_min": 1}, "out_min.*out_max"),
    ],
)
def test_invalid_parameters_raise(scheme, message):
    with pytest.raises(PlanError, match=message):
        NormalizeIntensityByModality([scheme])


RELATIVE = [{"scheme": "z_score"}, {"scheme": "percentile"}, {"scheme": "percentile", "clip": False}]


@pytest.mark.parametrize("entry", RELATIVE)
@pytest.mark.parametrize("factor", [1e21, 1e30, 1e35, 1e-21, 1e-30, 1e-36])
def test_the_result_does_not_depend_on_the_unit_of_the_intensities(entry, factor):
    x = np.random.default_rng(0).normal(300, 70, (1, 12, 13, 14))
    transform = NormalizeIntensityByModality([entry])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = transform(torch.from_numpy((x * factor).astype(np.float32)))
    close(found, transform(torch.from_numpy(x)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("entry", RELATIVE)
@pytest.mark.parametrize(
    ("dtype", "offset"), [("uint32", 4e9), ("int32", -2e9), ("int64", 2**50), ("float64", 1e12), ("float64", -1e15)]
)
def test_the_result_does_not_depend_on_an_offset(entry, dtype, offset):
    x = np.random.default_rng(0).integers(0, 1000, (1, 12, 13, 14))
    shifted = (x + int(offset)).astype(dtype)
    transform = NormalizeIntensityByModality([entry])
    found = transform(shifted)
    close(found, transform(x.astype(np.int16)), rtol=1e-5, atol=1e-5)
    if entry["scheme"] != "percentile" or not entry.get("clip", True):
        back = transform.inverse(found).numpy().astype(np.float64)
        np.testing.assert_allclose(back, shifted.astype(np.float64), rtol=1e-6)


def test_an_offset_in_float32_biases_neither_mean_nor_scale():
    x = (4e9 + 256 * np.random.default_rng(0).integers(0, 9, (1, 12, 13, 14))).astype(np.float32)
    found = NormalizeIntensityByModality([{"scheme": "z_score"}])(torch.from_numpy(x)).numpy()
    values = x.astype(np.float64)
    np.testing.assert_allclose(found, (values - values.mean()) / values.std(), atol=1e-4)


@pytest.mark.parametrize(
    "entry", [{"scheme": "z_score"}, {"scheme": "percentile", "lower": 0, "upper": 100, "clip": False}]
)
@pytest.mark.parametrize("value", [3e38, -3e38, 1e12])
def test_one_voxel_that_rules_the_scale_is_a_warning(entry, value):
    x = image()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        NormalizeIntensityByModality([entry])(x)
    x[0, 3, 4, 5] = value
    with pytest.warns(UserWarning, match=r"scan_07\.nii\.gz channel 0: one voxel"):
        found = NormalizeIntensityByModality([entry])(x)
    assert np.isfinite(found.numpy()).all()
    if entry["scheme"] == "z_score":
        values = x.numpy().astype(np.float64)
        close(found, (values - values.mean()) / values.std(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("entry", RELATIVE)
def test_a_scale_that_float32_cannot_hold_is_an_error(entry):
    x = np.random.default_rng(0).normal(0, 1, (1, 8, 9, 10))
    with pytest.raises(VolumeError, match="channel 0"):
        NormalizeIntensityByModality([entry])(x * 1e-50)
    extremes = torch.from_numpy(np.where(x > 0, 3.4e38, -3.4e38).astype(np.float32))
    if entry["scheme"] == "percentile":
        with pytest.raises(VolumeError, match="channel 0"):
            NormalizeIntensityByModality([entry])(extremes)
    else:  # its standard deviation is still a number
        close(NormalizeIntensityByModality([entry])(extremes).abs().mean(), 1.0, rtol=0.05, atol=0)
