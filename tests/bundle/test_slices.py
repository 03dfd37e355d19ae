"""A 2D network on the slices of volumes gives the same labels by MONAI's runner and by `medseg predict`."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from bundle.tiny_bundles import add_random_weights, change_plan, copy_bundle
from monai.bundle import run

import medseg
from medseg.bundle import verify
from medseg.datasets import read_manifest
from medseg.evaluation import case_dice


def sliced_bundle(root: Path, **plan_values: object) -> Path:
    """Return the EM bundle with a small network that takes volumes slice by slice."""
    folder = copy_bundle("em_membrane_unet_segmentation", root / "tiny_segmentation")
    change_plan(folder, {"channels": [4, 8]}, patch=[16, 16], tile=[16, 16], **plan_values)
    add_random_weights(folder, zero_bias=True)
    return folder


@pytest.mark.parametrize(
    ("slice_axis", "orientation", "spacing"),
    [("S", "RA", None), ("A", "SR", None), ("R", "AS", [1.3, 1.1]), ("S", "LP", [0.8, 1.5])],
)
def test_volumes_are_cut_as_in_medseg_predict(tmp_path, scan, run_inference, slice_axis, orientation, spacing):
    plan_values = {"slice_axis": slice_axis, "orientation": orientation, "spacing": spacing, "mirror_axes": []}
    bundle = sliced_bundle(tmp_path, **plan_values)
    assert [check.message for check in verify(bundle) if not check.passed] == []
    by_bundle = nib.load(run_inference(bundle, scan.parent) / "case_a_seg.nii.gz")
    segmentation = medseg.load(bundle, backend="torch", precision="fp32").predict(scan)
    found = np.asarray(by_bundle.dataobj)
    assert found.shape == nib.load(scan).shape
    assert 0.02 < found.mean() < 0.98  # both labels occur, so the comparison is meaningful
    np.testing.assert_array_equal(found, segmentation.array)
    np.testing.assert_allclose(by_bundle.affine, nib.load(scan).affine, atol=1e-5)


def test_volumes_are_evaluated_slice_by_slice(tmp_path):
    bundle = sliced_bundle(tmp_path, slice_axis="S", mirror_axes=[])
    random = np.random.default_rng(0)
    for role in ("images", "labels"):
        (tmp_path / "data" / role).mkdir(parents=True)
    manifest = yaml.safe_load(read_manifest("em_membrane").path.read_text(encoding="utf-8"))
    manifest |= {"cases": ["a", "b", "c"], "folds": {0: ["c"], 1: ["a"], 2: ["b"]}}
    manifest["files"] = {role: f"{role}s/{{case}}.nii.gz" for role in ("image", "label")}
    (tmp_path / "volumes.yaml").write_text(yaml.safe_dump(manifest))
    for case in "abc":
        image = random.normal(random.normal(size=6), 1 + random.random(6), (28, 20, 6)).astype(np.float32)
        label = 255 * (random.random(image.shape) > 0.4).astype(np.uint8)
        for role, array in (("images", image), ("labels", label)):
            nib.save(nib.Nifti1Image(array, np.diag([-1.0, -1, 3, 1])), tmp_path / "data" / role / f"{case}.nii.gz")
    run(
        config_file=[str(bundle / "configs" / f"{name}.json") for name in ("train", "evaluate")],
        meta_file=str(bundle / "configs" / "metadata.json"),
        logging_file=False,
        bundle_root=str(bundle),
        dataset_dir=str(tmp_path / "data"),
        output_dir=str(tmp_path / "out"),
        precision="fp32",
        manifest=str(tmp_path / "volumes.yaml"),
    )
    metrics = dict(line.split(",") for line in (tmp_path / "out" / "metrics.csv").read_text().splitlines())
    segmentation = medseg.load(bundle, backend="torch").predict(tmp_path / "data" / "images" / "a.nii.gz")
    reference = np.asarray(nib.load(tmp_path / "data" / "labels" / "a.nii.gz").dataobj) // 255
    expected = case_dice(segmentation.array, reference, [1])[0]
    assert 0.1 < expected < 0.9
    assert float(metrics["val_mean_dice"]) == pytest.approx(expected, abs=1e-6)
