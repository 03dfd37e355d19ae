"""The EM bundle: its training configs on generated slices, and its promoted weights on real slices."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
import yaml
from monai.bundle import ConfigWorkflow

import medseg
from medseg.datasets import read_manifest
from medseg.evaluation import em_score
from medseg.transforms import boundary_weight_map

BUNDLE = Path(__file__).parents[2] / "bundles" / "em_membrane_unet_segmentation"
TINY = {
    "precision": "fp32",
    "max_epochs": 1,
    "val_interval": 1,
    "margin": 16,
    "patch": [64, 64],
    "validate#inferer#roi_size": [64, 64],
}


def make_slices(root: Path, size: int, **folds: list[str]) -> Path:
    """Write slices of cells with dark membranes, stored as in the challenge, and their manifest."""
    random = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), axis=-1)
    cases = sorted(name for names in folds.values() for name in names)
    for name in cases:
        centres = random.uniform(0, size, (30, 2))
        distance = np.sort(np.linalg.norm(grid[:, :, None] - centres, axis=-1), axis=-1)
        cells = distance[..., 1] - distance[..., 0] > 5
        image = np.clip(np.where(cells, 160, 60) + random.normal(0, 20, cells.shape), 0, 255)
        for role, array in (("images", image), ("labels", 255 * cells)):
            (root / role).mkdir(exist_ok=True)
            sitk.WriteImage(sitk.GetImageFromArray(array.astype(np.uint8)), root / role / f"{name}.png")
    numbers = {"test": 0, "validation": 1, "training": 2}
    manifest = yaml.safe_load(read_manifest("em_membrane").path.read_text(encoding="utf-8"))
    manifest |= {"cases": cases, "folds": {numbers[part]: names for part, names in folds.items()}}
    (root / "em.yaml").write_text(yaml.safe_dump(manifest))
    return root


@pytest.fixture(scope="module")
def slices(tmp_path_factory) -> Path:
    return make_slices(tmp_path_factory.mktemp("em"), 192, test=["24"], validation=["20"], training=["00", "01"])


def workflow(slices: Path, output_dir: Path, *configs: str, **overrides: object) -> ConfigWorkflow:
    training = ConfigWorkflow(
        workflow_type="train",
        config_file=[str(BUNDLE / "configs" / f"{name}.json") for name in ("train", *configs)],
        meta_file=str(BUNDLE / "configs" / "metadata.json"),
        logging_file=False,
        bundle_root=str(BUNDLE),
        dataset_dir=str(slices),
        output_dir=str(output_dir),
        **{"manifest": str(slices / "em.yaml"), **overrides},
    )
    training.initialize()
    return training


def test_training_slices_are_mirrored_at_their_borders_and_have_the_papers_weights(slices, tmp_path):
    training = workflow(slices, tmp_path, **TINY, **{"train#crop_transforms": {}, "train#random_transforms": {}})
    stored = sitk.GetArrayFromImage(sitk.ReadImage(slices / "labels" / "01.png")).T
    sample = training.parser.get_parsed_content("train#dataset")[1]
    weights, target = boundary_weight_map(stored // 255)
    for key, expected in (("label", target), ("weight", weights)):
        np.testing.assert_array_equal(sample[key][0].numpy(), np.pad(expected, 16, mode="reflect"))
    assert sample["image"].shape == sample["label"].shape
    inner = sample["image"][0, 16:-16, 16:-16]
    assert abs(float(inner.mean())) < 1e-4
    assert float(inner.std(correction=0)) == pytest.approx(1, abs=1e-4)


def test_a_short_training_separates_membranes_and_cells(slices, tmp_path):
    training = workflow(slices, tmp_path, **{**TINY, "max_epochs": 12, "val_interval": 12, "learning_rate": 0.01},
                    network_def={"_target_": "medseg.networks.create", "name": "unet_padded", "in_channels": 1,
                                       "out_channels": 2, "channels": [8, 16], "norm": "instance"})  # fmt: skip
    assert training.check_properties() == []
    training.run()
    record = json.loads((tmp_path / "training.json").read_text())
    assert (record["epochs"], record["steps"], record["cases"]) == (12, 12, 2)
    # Otsu's threshold reaches this too; a prediction of cell everywhere has 0.86.
    assert record["validation"]["val_mean_dice"] > 0.9


@pytest.mark.slow
def test_one_training_step_of_the_papers_network(tmp_path):
    """31,030,658 weights, 572² pixels that give 388² logits, SGD with momentum 0.99."""
    data = make_slices(tmp_path, 400, test=["24"], validation=["20"], training=["00"])
    training = workflow(data, tmp_path, "recipe_unet2015", "paper", max_epochs=1, **{"train#handlers": []})
    network = training.parser.get_parsed_content("network")
    assert sum(p.numel() for p in network.parameters()) == 31_030_658
    before = [p.detach().clone() for p in network.parameters()]
    training.run()
    output = training.trainer.state.output
    assert torch.isfinite(output["loss"])
    assert output["image"].shape == (1, 1, 572, 572)
    assert output["pred"].shape == (1, 2, 388, 388)
    centre = output["image"][..., 92:-92, 92:-92] > 0
    assert float((centre == output["label"].bool()).float().mean()) > 0.9  # the logits belong to the centre of the tile
    assert all(not torch.equal(p, q) for p, q in zip(network.parameters(), before, strict=True))


@pytest.mark.data
def test_the_promoted_weights_separate_the_cells_of_a_real_slice(shared_data):
    reference = sitk.GetArrayFromImage(sitk.ReadImage(shared_data / "em_membrane" / "labels" / "22.png")).T
    segmentation = medseg.load(BUNDLE).predict(shared_data / "em_membrane" / "images" / "22.png")
    assert segmentation.array.shape == reference.shape
    # The weights were trained on this slice. A broken pipeline would score far lower, a new slice a little lower.
    score = em_score(segmentation.array.astype(float), reference, thresholds=(0.5,))
    assert score.v_rand > 0.9
    assert score.pixel_error < 0.12


@pytest.mark.data
def test_the_bundle_run_gives_the_same_labels(shared_data, tmp_path, run_inference):
    pixels = sitk.GetArrayFromImage(sitk.ReadImage(shared_data / "em_membrane" / "images" / "20.png")).T
    scan = tmp_path / "scans" / "slice.nii.gz"
    scan.parent.mkdir()
    # The sizes are no multiple of the strides.
    nib.save(nib.Nifti1Image(pixels[:300, :401], np.diag([-0.004, 0.004, 1, 1])), scan)
    by_bundle = np.asarray(nib.load(run_inference(BUNDLE, scan.parent) / "slice_seg.nii.gz").dataobj)
    by_package = medseg.load(BUNDLE, backend="torch", precision="fp32").predict(scan)  # others round differently
    assert np.array_equal(by_bundle.squeeze(), by_package.array)
