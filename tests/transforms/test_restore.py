"""Compare RestoreToNative with SciPy's interpolation, in all 48 orientations."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirst, LoadImage, Orientation, Spacing
from nibabel.orientations import apply_orientation, inv_ornt_aff
from scipy.ndimage import map_coordinates

from medseg.errors import GeometryError, ShapeError
from medseg.transforms import RestoreToNative, RestoreToNatived
from medseg.transforms.restore.grid_map import composed_affine, map_grids
from medseg.transforms.restore.label_decision import LabelDecision
from medseg.transforms.restore.resample import SeparableResampler
from medseg.transforms.restore.restore_labels import restore_labels

ORIENTATIONS = [
    np.column_stack([order, flips])
    for order in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]
AXIS_LABELS = (("L", "R"), ("P", "A"), ("I", "S"))


def oblique(angle: float = 0.3) -> np.ndarray:
    """Return an anisotropic affine with a rotation about a skew axis and an offset."""
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([0.9, 1.4, 2.1])
    affine[:3, 3] = [-31.0, 12.5, 7.25]
    return affine


def sample_with_scipy(
    logits: np.ndarray, model_affine: np.ndarray, native_affine: np.ndarray, shape: tuple
) -> np.ndarray:
    """Sample every class at every native voxel centre, voxel by voxel."""
    index = np.indices(shape).reshape(len(shape), -1)
    matrix = composed_affine(model_affine, native_affine, len(shape))
    positions = matrix[:-1, :-1] @ index + matrix[:-1, -1:]
    return np.stack([map_coordinates(c, positions, order=1, mode="nearest").reshape(shape) for c in logits])


def fraction_that_differs(labels: torch.Tensor, sampled: np.ndarray) -> float:
    """Return the share of voxels whose label is not that of the largest sampled logit; ties are left out."""
    ordered = np.sort(sampled, axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-4
    return float((labels.numpy()[clear] != sampled.argmax(0)[clear]).mean())


@pytest.mark.parametrize("ornt", ORIENTATIONS, ids=lambda o: "".join(f"{'+-'[int(f < 0)]}{int(a)}" for a, f in o))
@pytest.mark.parametrize("shape", [(9, 7, 5), (11, 1, 6)], ids=["odd", "one voxel thick"])
def test_every_orientation_matches_scipy(ornt: np.ndarray, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    native = apply_orientation(np.empty(shape), ornt).shape
    native_affine = oblique() @ inv_ornt_aff(ornt, shape)
    scan = MetaTensor(torch.from_numpy(rng.normal(size=(1, *native))), affine=torch.from_numpy(native_affine))
    model = Spacing((1.1, 1.0, 1.6))(Orientation("RAS", labels=AXIS_LABELS)(scan))
    logits = rng.normal(size=(3, *model.shape[1:])).astype(np.float32)
    labels = restore_labels(torch.from_numpy(logits), model.affine, native_affine, native, LabelDecision([0, 1, 2]))
    assert fraction_that_differs(labels, sample_with_scipy(logits, model.affine.numpy(), native_affine, native)) == 0


@pytest.mark.parametrize("ornt", ORIENTATIONS[::5])
def test_reorienting_alone_restores_exactly(ornt: np.ndarray) -> None:
    """Without a change of spacing nothing is interpolated, so every label must come back exactly."""
    shape = (6, 5, 4)
    truth = np.random.default_rng(1).integers(0, 4, size=apply_orientation(np.empty(shape), ornt).shape)
    # files hold affines in float32
    affine = (oblique(0.1) @ inv_ornt_aff(ornt, shape)).astype(np.float32).astype(np.float64)
    one_hot = MetaTensor(torch.nn.functional.one_hot(torch.from_numpy(truth)).movedim(-1, 0).float(), affine=affine)
    model = Orientation("RAS", labels=AXIS_LABELS)(one_hot)
    labels = restore_labels(model.as_tensor(), model.affine, affine, truth.shape, LabelDecision([0, 3, 7, 300]))
    assert labels.dtype == torch.int16
    np.testing.assert_array_equal(labels.numpy(), np.array([0, 3, 7, 300])[truth])


def test_linear_interpolation_reproduces_a_ramp_and_a_constant() -> None:
    shape, native = (7, 9, 5), (13, 21, 6)
    model_affine = np.diag([2.0, 2.0, 2.0, 1.0])
    native_affine = np.diag([0.97, 0.8, 1.5, 1.0])
    grid_map = map_grids(model_affine, shape, native_affine, native)
    assert grid_map is not None
    resampler = SeparableResampler(grid_map)
    index = torch.from_numpy(np.indices(shape).astype(np.float32))
    block = index.permute(0, *(axis + 1 for axis in resampler.axis_order))
    region = [slice(0, native[axis]) for axis in resampler.native_axes]
    whole = resampler.along(resampler.across(block, (0, 0, 0), region), region, region[0])
    for axis in range(3):
        position = np.indices(native)[axis] * native_affine[axis, axis] / 2
        expected = np.clip(position, 0, shape[axis] - 1)
        in_native_order = whole[axis].permute(*np.argsort(resampler.native_axes).tolist())
        np.testing.assert_allclose(in_native_order.numpy(), expected, atol=1e-5)
    constant = torch.full((1, *block.shape[1:]), 0.1)
    restored = resampler.along(resampler.across(constant, (0, 0, 0), region), region, region[0])
    assert torch.equal(restored, torch.full_like(restored, 0.1))


def test_cubic_reproduces_a_parabola_inside_and_a_constant_everywhere() -> None:
    """Catmull–Rom interpolation is exact for quadratics where all four taps lie inside."""
    grid_map = map_grids(np.eye(4), (12, 4, 3), np.diag([0.37, 1, 1, 1]), (30, 4, 3))
    assert grid_map is not None
    resampler = SeparableResampler(grid_map, "cubic")
    x = torch.arange(12.0)
    block = (x**2).view(1, 12, 1, 1).expand(1, 12, 4, 3)
    region = [slice(0, 30), slice(0, 4), slice(0, 3)]
    values = resampler.along(resampler.across(block, (0, 0, 0), region), region, region[0])[0, :, 0, 0]
    position = 0.37 * torch.arange(30.0)
    inside = (position >= 1) & (position <= 10)
    torch.testing.assert_close(values[inside], position[inside] ** 2, atol=1e-4, rtol=0)
    constant = resampler.along(resampler.across(torch.ones_like(block), (0, 0, 0), region), region, region[0])
    torch.testing.assert_close(constant, torch.ones_like(constant))


def test_sheared_scans_match_scipy() -> None:
    native_affine = oblique()
    native_affine[:3, 2] += 0.4 * native_affine[:3, 1]
    shape = (9, 8, 7)
    scan = MetaTensor(torch.zeros(1, *shape), affine=torch.from_numpy(native_affine))
    model = Spacing((1.0, 1.2, 1.5))(Orientation("RAS", labels=AXIS_LABELS)(scan))
    assert map_grids(model.affine, model.shape[1:], native_affine, shape) is None
    logits = np.random.default_rng(2).normal(size=(3, *model.shape[1:])).astype(np.float32)
    labels = restore_labels(torch.from_numpy(logits), model.affine, native_affine, shape, LabelDecision([0, 1, 2]))
    assert fraction_that_differs(labels, sample_with_scipy(logits, model.affine.numpy(), native_affine, shape)) == 0


def test_sigmoid_regions_overwrite_in_the_order_of_their_labels() -> None:
    logits = torch.tensor([[[1.0, 1.0, -1.0, 1.0]], [[-1.0, 1.0, 2.0, 0.0]]])
    labels = restore_labels(logits, np.eye(3), np.eye(3), (1, 4), LabelDecision([0, 2, 5], "sigmoid"))
    assert labels.tolist() == [[2, 5, 5, 2]]


def test_softmax_ties_take_the_first_label() -> None:
    labels = restore_labels(torch.zeros(4, 2, 3), np.eye(3), np.eye(3), (2, 3), LabelDecision([4, 1, 2, 3]))
    assert (labels == 4).all()


def test_dictionary_form_takes_the_metadata_of_another_key() -> None:
    native_affine = np.diag([-1.0, 1.0, 2.0, 1.0])
    meta = {"original_affine": native_affine, "spatial_shape": np.array([4, 5, 6], dtype=np.int16)}
    scan = MetaTensor(torch.zeros(1, 4, 5, 6), affine=torch.from_numpy(native_affine), meta=None)
    scan.meta.update(meta)
    model = Orientation("RAS", labels=AXIS_LABELS)(scan)
    logits = MetaTensor(torch.randn(2, *model.shape[1:], generator=torch.manual_seed(0)), affine=model.affine)
    restored = RestoreToNatived(keys="pred", label_values=[0, 9], activation="softmax", ref_key="image")(
        {"pred": logits, "image": model}
    )["pred"]
    np.testing.assert_array_equal(restored[0].numpy(), np.array([0, 9])[logits.argmax(0).flip(0).numpy()])
    np.testing.assert_array_equal(restored.affine.numpy(), native_affine)
    with pytest.raises(GeometryError, match="original_affine"):
        RestoreToNatived(keys="pred")({"pred": logits})


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="argmax"):
        RestoreToNative([0, 1], activation="argmax")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nearest"):
        RestoreToNative([0, 1], interpolation="nearest")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"3 channel.*2"):
        restore_labels(torch.zeros(2, 3, 3), np.eye(3), np.eye(3), (3, 3), LabelDecision([0, 1, 2]))
    with pytest.raises(GeometryError, match="MetaTensor"):
        RestoreToNative([0, 1])(torch.zeros(2, 3, 3))
    with pytest.raises(GeometryError, match="model grid"):
        map_grids(np.diag([1.0, 0, 1, 1]), (2, 2, 2), np.eye(4), (2, 2, 2))


def test_a_picture_is_restored_to_the_axes_monai_read_it_with(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (12, 7)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(pixels), tmp_path / "a.png")
    labels = (("L", "R"), ("P", "A"), ("I", "S"))
    model = Compose([LoadImage(), EnsureChannelFirst(), Orientation("PL", labels=labels)])(tmp_path / "a.png")
    assert model.shape == (1, 12, 7)  # transposed and flipped, because PIL's reader gives (7, 12) in RA orientation
    logits = MetaTensor(torch.cat([127.5 - model, model - 127.5])).copy_meta_from(model)
    np.testing.assert_array_equal(RestoreToNative()(logits)[0].numpy(), pixels.T > 127)
