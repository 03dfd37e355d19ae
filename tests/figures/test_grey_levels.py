import numpy as np
import pytest

from medseg.figures.grey_levels import CT_WINDOWS, PERCENTILE_WINDOW, grey_levels


@pytest.fixture
def hounsfield() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(-1024, 1800, (6, 7, 8)).astype(np.int16)


def test_levels_are_the_nearest_ones(hounsfield):
    grey = grey_levels(hounsfield, "CT")
    nearest = np.abs(hounsfield[..., None] - grey.values).min(axis=-1)
    found = np.abs(hounsfield - grey.values[grey.encode(hounsfield)])
    np.testing.assert_allclose(found, nearest, atol=1e-9)


def test_ct_levels_span_every_window(hounsfield):
    values = grey_levels(hounsfield, "CT").values
    assert values[0] <= min(level - width / 2 for width, level in CT_WINDOWS.values())
    assert values[-1] >= max(level + width / 2 for width, level in CT_WINDOWS.values())
    assert (np.diff(values) > 0).all()


@pytest.mark.parametrize(
    ("window", "error"), [("brain", 1.6 / 80), ("liver", 1.6 / 150), ("lung", 0.01), ("bone", 0.01)]
)
def test_a_window_of_the_levels_equals_a_window_of_the_image(window, error):
    image = np.arange(-1500, 2000, dtype=np.int16)
    grey = grey_levels(image, "CT")
    width, level = CT_WINDOWS[window]
    wanted = np.clip((image - (level - width / 2)) / width, 0, 1)
    assert np.abs(grey.shades(window)[grey.encode(image)] - wanted).max() <= error


def test_ct_is_recognised_by_air_and_the_reason_is_given(hounsfield):
    grey = grey_levels(hounsfield)
    assert (grey.modality, next(iter(grey.windows))) == ("CT", "soft tissue")
    assert str(hounsfield.min()) in grey.reason
    assert grey_levels(hounsfield.astype(float) + 0.5).modality == "image"  # no scanner stores halves
    assert grey_levels(np.abs(hounsfield)).modality == "image"


def test_other_images_are_shown_between_percentiles_of_their_non_zero_voxels():
    rng = np.random.default_rng(1)
    image = np.concatenate([np.zeros(5000), rng.normal(500, 100, 5000)])
    low, high = np.percentile(image[image != 0], (0.5, 99.5))
    width, level = grey_levels(image, "MR").windows[PERCENTILE_WINDOW]
    assert (level - width / 2, level + width / 2) == pytest.approx((low, high))


@pytest.mark.parametrize("image", [np.zeros((3, 4)), np.full((3, 4), 7.0), np.zeros((0, 4))])
def test_an_image_without_contrast_is_one_grey(image):
    grey = grey_levels(image, "MR")
    assert len(np.unique(grey.encode(image))) <= 1
    assert np.isfinite(grey.values).all()
