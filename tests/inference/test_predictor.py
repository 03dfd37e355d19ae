"""Tests of the Predictor: geometry, kinds of input, options, and equality with MONAI's own pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from inference.plans import small_plan
from inference.thin_network import ThresholdNetwork, thin_network
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd, Spacingd

from medseg.errors import GeometryError, MedsegError, MemoryLimitError, PlanError, VolumeError
from medseg.inference import Predictor, SlidingWindowInferer
from medseg.inference.preprocessing import AXIS_LABELS
from medseg.transforms import NormalizeIntensityByModalityd, RestoreToNatived

TWO = {"background": 0, "bright": 7}


def threshold_predictor(**changes: Any) -> Predictor:
    """Return a predictor that labels voxels above zero with 7."""
    plan = small_plan(**{"labels": TWO, "normalization": [{"scheme": "none"}], "spacing": None, **changes})
    return Predictor(ThresholdNetwork(), plan, "cpu")


def write_scan(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    image = nib.Nifti1Image(array, None)
    image.header.set_sform(affine, code=2)
    image.header.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, path)
    return path


def tilted_affine() -> np.ndarray:
    turn = np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-0.9, 1.3, 2.5])
    affine[:3, 3] = [11, -22, 33]
    return affine


def test_a_saved_segmentation_has_the_scans_geometry_and_marks_the_right_voxels(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(21, 33, 11)).astype(np.float32)
    path = write_scan(tmp_path / "scan.nii.gz", array, tilted_affine())
    seg = threshold_predictor().predict(path)
    np.testing.assert_array_equal(seg.array, np.where(array > 0, 7, 0))
    saved = nib.load(seg.save(tmp_path / "out" / "seg.nii.gz"))
    given = nib.load(path)
    np.testing.assert_array_equal(np.asanyarray(saved.dataobj), seg.array)
    np.testing.assert_array_equal(saved.affine, given.affine)
    for code in ("sform_code", "qform_code", "xyzt_units"):
        assert saved.header[code] == given.header[code]
    volume = np.count_nonzero(array > 0) * 0.9 * 1.3 * 2.5 / 1000
    assert seg.volumes_ml() == {"bright": pytest.approx(volume)}
    record = json.loads((tmp_path / "out" / "seg.json").read_text())
    assert record["plan_sha256"] == small_plan(labels=TWO, normalization=[{"scheme": "none"}], spacing=None).digest
    assert record["volumes_ml"]["bright"] == pytest.approx(volume)
    assert "Research use only" in record["notice"]


def test_a_segmentation_can_be_shown(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    array = np.random.default_rng(0).normal(size=(12, 10, 8)).astype(np.float32)
    seg = threshold_predictor().predict((array, tilted_affine()))
    assert (tmp_path / "seg.png") == seg.show(tmp_path / "seg.png")
    assert (tmp_path / "seg.png").read_bytes().startswith(b"\x89PNG")
    assert (seg._repr_png_() or b"").startswith(b"\x89PNG")


def test_every_kind_of_input_gives_the_same_labels(tmp_path: Path) -> None:
    array = np.random.default_rng(1).normal(size=(9, 12, 7)).astype(np.float32)
    affine = tilted_affine()
    path = write_scan(tmp_path / "scan.nii", array, affine)
    predictor = threshold_predictor()
    expected = np.where(array > 0, 7, 0)
    for source in (path, str(path), [path], nib.load(path), (array, affine), sitk.ReadImage(str(path))):
        seg = predictor.predict(source)
        np.testing.assert_array_equal(seg.array, expected)
        np.testing.assert_allclose(seg.affine, affine, atol=1e-5)


def test_the_same_labels_as_a_monai_bundles_inference(tmp_path: Path) -> None:
    """The oracle is the pipeline of inference.json, from LoadImaged to RestoreToNatived, batched and decollated."""
    plan = small_plan(spacing=[1.2, 0.9, 1.7], orientation="PIR")
    network = thin_network(6, 3)
    array = (100 * np.random.default_rng(2).random((23, 31, 18))).astype(np.int16)
    path = write_scan(tmp_path / "scan.nii.gz", array, tilted_affine())
    prepare = Compose(
        [
            LoadImaged(keys="image"),
            EnsureChannelFirstd(keys="image"),
            Orientationd(keys="image", axcodes=plan.orientation, labels=AXIS_LABELS),
            Spacingd(keys="image", pixdim=plan.spacing),
            NormalizeIntensityByModalityd(keys="image", normalization=plan.normalization),
        ]
    )
    data = next(iter(DataLoader(Dataset([{"image": str(path)}], prepare), batch_size=1)))
    with torch.no_grad():
        data["pred"] = SlidingWindowInferer(plan.tile, overlap=plan.overlap, mode=plan.blending)(data["image"], network)
    assert isinstance(data["pred"], MetaTensor)
    case = decollate_batch(data)[0]
    restored = RestoreToNatived(keys="pred", label_values=plan.label_values)(case)["pred"]
    seg = Predictor(network, plan, "cpu").predict(path)
    np.testing.assert_array_equal(restored[0].numpy(), seg.array)
    np.testing.assert_allclose(restored.affine.numpy(), seg.affine)
    assert len(np.unique(seg.array)) > 1


def test_several_channels_are_compared_and_kept_in_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    first, second = rng.normal(size=(2, 8, 9, 10)).astype(np.float32)
    channels = [{"name": "flair", "modality": "MR"}, {"name": "t1", "modality": "MR"}]
    predictor = threshold_predictor(channels=channels, normalization=[{"scheme": "none"}] * 2)
    paths = [write_scan(tmp_path / f"{i}.nii", a, np.eye(4)) for i, a in enumerate((first, second))]
    np.testing.assert_array_equal(predictor.predict(paths).array, np.where(first > 0, 7, 0))
    np.testing.assert_array_equal(predictor.predict(paths[::-1]).array, np.where(second > 0, 7, 0))
    np.testing.assert_array_equal(
        predictor.predict((np.stack([first, second]), np.eye(4))).array, np.where(first > 0, 7, 0)
    )
    images = [nib.load(path) for path in paths]
    for pair in (tuple(paths), tuple(images), tuple(sitk.ReadImage(str(path)) for path in paths)):
        np.testing.assert_array_equal(predictor.predict(pair).array, np.where(first > 0, 7, 0))
    with pytest.raises(VolumeError, match=r"2 channel.*flair, t1.*1"):
        predictor.predict(paths[0])
    moved = np.eye(4)
    moved[0, 3] = 0.8
    with pytest.raises(GeometryError, match=r"moved\.nii.*0\.8 mm"):
        predictor.predict([paths[0], write_scan(tmp_path / "moved.nii", second, moved)])
    with pytest.raises(GeometryError, match=r"short\.nii"):
        predictor.predict([paths[0], write_scan(tmp_path / "short.nii", second[:5], np.eye(4))])


def test_two_dimensional_images() -> None:
    image = np.random.default_rng(4).normal(size=(40, 23)).astype(np.float32)
    predictor = threshold_predictor(spatial_dims=2, orientation="RA", patch=[16, 16], tile=[16, 16])
    np.testing.assert_array_equal(predictor.predict((image, np.eye(3))).array, np.where(image > 0, 7, 0))
    with pytest.raises(VolumeError, match="shape"):
        predictor.predict((image[None, None], np.eye(4)))


def test_an_ensemble_is_the_mean_of_logits() -> None:
    image = np.random.default_rng(5).normal(size=(10, 11, 12)).astype(np.float32)
    plan = small_plan(labels=TWO, normalization=[{"scheme": "none"}], spacing=None)
    members = [ThresholdNetwork(-0.5), ThresholdNetwork(0.9)]
    seg = Predictor(members, plan, "cpu").predict((image, np.eye(4)))
    np.testing.assert_array_equal(seg.array, np.where(image > 0.2, 7, 0))


class LeftHalf(torch.nn.Module):
    """Predict class 1 in the first half of a tile along the first axis, so that a flip that is not undone shows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        is_left = torch.zeros_like(x)
        is_left[:, :, : x.shape[2] // 2] = 1
        return torch.cat([torch.full_like(x, 0.4), is_left], dim=1)


def test_flips_are_undone_before_averaging_and_refused_if_not_trained() -> None:
    image = (np.zeros((8, 8, 8), np.float32), np.eye(4))
    changes: dict[str, Any] = {"labels": TWO, "spacing": None, "tile": [8, 8, 8]}
    plain = Predictor(LeftHalf(), small_plan(**changes), "cpu").predict(image)
    assert [int(v) for v in plain.array[:, 0, 0]] == [7] * 4 + [0] * 4
    # The mean over flips is 1/2 in both halves, above the background's 0.4.
    flipped = Predictor(LeftHalf(), small_plan(**changes, mirror_axes=[0]), "cpu", tta="flip").predict(image)
    assert (flipped.array == 7).all()
    # The network is symmetric along the other axis, so flips change nothing.
    other = Predictor(LeftHalf(), small_plan(**changes, mirror_axes=[1, 2]), "cpu", tta="flip").predict(image)
    np.testing.assert_array_equal(other.array, plain.array)
    with pytest.raises(PlanError, match="mirror_axes"):
        Predictor(LeftHalf(), small_plan(**changes), "cpu", tta="flip")


def test_probabilities_and_entropy_follow_the_softmax(tmp_path: Path) -> None:
    image = np.random.default_rng(6).normal(size=(9, 20, 7)).astype(np.float32)
    plan = small_plan(labels=TWO, normalization=[{"scheme": "none"}], spacing=None, orientation="LSA")
    predictor = Predictor(ThresholdNetwork(), plan, "cpu", uncertainty=True, save_probabilities=True)
    seg = predictor.predict((image, np.diag([-1.0, 2.0, 1.0, 1.0])))
    p = 1 / (1 + np.exp(-2 * image.astype(np.float64)))
    assert seg.probabilities is not None
    assert seg.entropy is not None
    assert seg.intervals_ml is not None
    np.testing.assert_allclose(seg.probabilities["bright"], p, atol=1e-3)
    np.testing.assert_allclose(seg.probabilities["background"], 1 - p, atol=1e-3)
    entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    np.testing.assert_allclose(seg.entropy, 255 * entropy, atol=0.51)
    expected = [np.count_nonzero(p >= t) * 2 / 1000 for t in (0.75, 0.25)]
    assert seg.intervals_ml["bright"] == pytest.approx(expected)
    np.testing.assert_array_equal(seg.array, np.where(image > 0, 7, 0))
    seg.save(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(nib.load(tmp_path / "a_probability_bright.nii.gz").get_fdata(), p, atol=1e-3)
    np.testing.assert_array_equal(nib.load(tmp_path / "a_entropy.nii.gz").get_fdata(), seg.entropy)


def test_low_precision_is_used_only_if_the_golden_check_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medseg.inference.backends.choice.has_fast_bf16", lambda device: True)
    plan = small_plan()

    def build(**options: Any) -> Predictor:
        return Predictor(thin_network(4, 3), plan, "cpu", precision="auto", **options)

    assert (build().backend.precision, "no golden sample" in build().backend_reason) == ("fp32", True)
    allowed = build(golden_check=lambda backend: "")
    assert (allowed.backend.precision, allowed.backend_reason.endswith("bf16 (the golden sample agrees)")) == (
        "bf16",
        True,
    )
    refused = build(golden_check=lambda backend: "labels agree on 98 %")
    assert refused.backend.precision == "fp32"
    assert "labels agree on 98 %" in refused.backend_reason


def test_bf16_labels_agree_with_fp32_except_near_ties() -> None:
    image = (np.random.default_rng(7).normal(size=(20, 24, 28)).astype(np.float32), np.eye(4))
    plan, network = small_plan(), thin_network(8, 3)
    labels = [Predictor(network, plan, "cpu", precision=p).predict(image).array for p in ("fp32", "bf16")]
    assert 0.98 < (labels[0] == labels[1]).mean() < 1  # below 1, because bf16 was really used


def test_a_limit_that_cannot_be_kept_is_refused_before_the_network_runs() -> None:
    class Unrunnable(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not isinstance(x, torch._subclasses.FakeTensor):
                raise RuntimeError("the network was run")
            return torch.cat([x, x, x], dim=1)

    predictor = Predictor(Unrunnable(), small_plan(), "cpu", max_ram="20MB")
    with pytest.raises(MemoryLimitError, match=r"image in memory: .*\d MB.* 20 MB"):
        predictor.predict((np.zeros((40, 40, 40), np.float32), np.eye(4)))


def test_the_batch_shrinks_to_keep_a_limit() -> None:
    image = (np.random.default_rng(8).normal(size=(40, 40, 40)).astype(np.float32), np.eye(4))
    network = thin_network(32, 3)
    predictor = Predictor(network, small_plan(), "cpu", batch_size=64)
    scan_needs = [
        predictor.workload().estimate(_scan(predictor, image), window).network
        for window in (predictor.window, _single(predictor.window))
    ]
    assert scan_needs[0] > 30 * scan_needs[1]
    total = predictor.workload().estimate(_scan(predictor, image), predictor.window).total
    limited = Predictor(network, small_plan(), "cpu", batch_size=64, max_ram=total - 20_000_000)
    assert limited.workload().fit(_scan(limited, image), limited.window, limited.max_ram or 0).batch_size < 64
    np.testing.assert_array_equal(limited.predict(image).array, predictor.predict(image).array)


def _scan(predictor: Predictor, image: tuple) -> Any:
    from medseg.inference.scan import load_scan

    return load_scan(image, predictor.plan)


def _single(window: Any) -> Any:
    from dataclasses import replace

    return replace(window, batch_size=1)


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ((np.full((4, 4, 4), np.nan), np.eye(4)), "NaN"),
        ((np.full((4, 4, 4), np.inf), np.eye(4)), "infinite"),
        ((np.full((4, 4, 4), -1e39), np.eye(4)), "image in memory.*float32"),
        ((np.zeros((4, 4, 4), complex), np.eye(4)), "complex128"),
        ((np.zeros((4, 4, 4)), np.zeros((4, 4))), "affine"),
        ((np.zeros((4, 4, 4)), np.full((4, 4), np.nan)), "affine"),
        ((np.zeros((4, 4)), np.eye(4)), r"shape \(4, 4\)"),
        ((np.zeros((0, 4, 4)), np.eye(4)), "at least 1"),
        ((np.zeros((4, 4, 4)), "x"), r"affine.*'x'"),
        ((np.zeros((4, 4, 4)), [[1, 2], [3]]), "affine"),
        (sitk.Image([4, 5, 6, 2], sitk.sitkFloat32), "4D.*where 3D is expected"),
        (sitk.Image([4, 5, 6], sitk.sitkComplexFloat32), "complex64"),
        (3.5, "float"),
        ("nowhere.nii.gz", "no such file"),
    ],
)
def test_wrong_input_is_one_line(source: Any, rule: str) -> None:
    with pytest.raises(MedsegError, match=rule) as caught:
        threshold_predictor().predict(source)
    assert "\n" not in str(caught.value)


def test_a_constant_scan_is_predicted() -> None:
    seg = Predictor(thin_network(4, 3), small_plan(), "cpu").predict((np.full((20, 17, 5), 3.0), np.eye(4)))
    assert seg.array.shape == (20, 17, 5)
    assert set(np.unique(seg.array)) <= {0, 1, 2}
