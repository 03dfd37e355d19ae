"""The UNet++ and UNETR bundles and the sparse recipe: short trainings, and the promoted weights on a real scan."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from bundle.tiny_bundles import BUNDLES, change_plan, copy_bundle
from monai.bundle import ConfigWorkflow

import medseg
from medseg.bundle import promote, verify
from medseg.datasets import generate_phantoms, read_manifest
from medseg.evaluation import case_dice
from medseg.inference import Predictor
from medseg.training import DeepSupervision

TINY: dict[str, dict[str, Any]] = {
    "unet3d": {"channels": [4, 8, 8], "strides": [2, 2]},
    "unetplusplus": {"channels": [4, 8, 8]},
    "unetr": {
        "image_size": 16,
        "channels": [4, 8],
        "embedding_channels": 12,
        "num_heads": 2,
        "mlp_channels": 24,
        "taps": [1, 2],
    },
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Write three phantoms for training and one for validation, with the label values of the hippocampus."""
    root = tmp_path_factory.mktemp("data")
    generate_phantoms(root, num_cases=5, seed=5, shape=(24, 24, 16))
    manifest = yaml.safe_load(read_manifest("phantom_cells").path.read_text(encoding="utf-8"))
    manifest["cases"] = [f"phantom_{n:03d}" for n in range(5)]
    manifest["folds"] = {0: ["phantom_004"], 1: ["phantom_003"], 2: [f"phantom_{n:03d}" for n in range(3)]}
    (root / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    return root


def tiny_bundle(network: str, root: Path) -> Path:
    name = f"hippocampus_{network}_segmentation"
    folder = copy_bundle(name, root / name)
    change_plan(folder, TINY[network], patch=[16, 16, 16], tile=[16, 16, 16])
    return folder


def workflow(bundle: Path, data: Path, *configs: str, **overrides: object) -> ConfigWorkflow:
    training = ConfigWorkflow(
        workflow_type="train",
        config_file=[str(bundle / "configs" / f"{name}.json") for name in ("train", *configs)],
        meta_file=str(bundle / "configs" / "metadata.json"),
        logging_file=False,
        bundle_root=str(bundle),
        dataset_dir=str(data),
        output_dir=str(bundle.parent / "run"),
        precision="fp32",
        max_epochs=1,
        val_interval=1,
        manifest=str(data / "manifest.yaml"),
        **overrides,
    )
    training.initialize()
    return training


def train(training: ConfigWorkflow, bundle: Path) -> set[str]:
    """Run a training and return the names of the weights that changed."""
    assert training.check_properties() == []
    before = {name: value.clone() for name, value in training.parser.get_parsed_content("network").state_dict().items()}
    training.run()
    after = torch.load(bundle.parent / "run" / "model.pt", weights_only=True)
    assert (
        after.keys()
        == before.keys()
        == medseg.read_plan(bundle / "configs" / "plan.json").create_network().state_dict().keys()
    )
    return {name for name in after if not torch.equal(after[name], before[name])}


def weight_names(bundle: Path) -> set[str]:
    return set(medseg.read_plan(bundle / "configs" / "plan.json").create_network().state_dict())


def test_unet_plus_plus_trains_all_its_heads(data, tmp_path):
    bundle = tiny_bundle("unetplusplus", tmp_path)
    training = workflow(bundle, data)
    assert isinstance(training.trainer.network, DeepSupervision)
    moved = train(training, bundle)
    assert moved == weight_names(bundle)
    promote(bundle, tmp_path / "run")
    assert not [check for check in verify(bundle) if not check.passed]
    # A pruned network predicts like its head in the whole network.
    network, plan = medseg.load_network(bundle), medseg.read_plan(bundle / "configs" / "plan.json")
    x = torch.randn(1, 1, 16, 16, 16)
    with torch.inference_mode():
        heads = [
            head(f) for head, f in zip(network.intermediate_heads(), network.intermediate_features(x), strict=True)
        ]
        assert torch.equal(network.prune(1)(x), heads[-1])
        assert torch.equal(network(x), heads[0])
    scan = data / "images" / "phantom_003.nii.gz"
    assert Predictor(network.prune(1), plan, "cpu").predict(scan).array.shape == nib.load(scan).shape


def test_unetr_trains_all_its_weights(data, tmp_path):
    bundle = tiny_bundle("unetr", tmp_path)
    assert train(workflow(bundle, data), bundle) == weight_names(bundle)
    promote(bundle, tmp_path / "run")
    assert not [check for check in verify(bundle) if not check.passed]


def test_the_sparse_recipe_annotates_a_share_of_the_slices(data, tmp_path):
    bundle = tiny_bundle("unet3d", tmp_path)
    training = workflow(bundle, data, "recipe_sparse", **{"train#deterministic_transforms#keep_slices#fraction": 0.2})
    assert train(training, bundle) == weight_names(bundle)
    for sample in training.parser.get_parsed_content("train#dataset")._cache:
        known = sample["label_voxel_index"]
        width, height, depth = known.shape
        assert sum(known.count(value) for value in (0, 1, 2)) == round(0.2 * depth) * width * height
        assert sum(known.count(value) for value in (0, 1, 2, 255)) == width * height * depth
    for sample in training.parser.get_parsed_content("train#dataset"):
        for patch in sample if isinstance(sample, list) else [sample]:
            assert patch["label"].unique().tolist()[-1] == 255
    assert training.trainer.loss_function.cross_entropy.ignore_label == 255


@pytest.fixture(scope="module", params=["unetplusplus", "unetr"])
def bundle(request) -> Path:
    folder = BUNDLES / f"hippocampus_{request.param}_segmentation"
    if not (folder / "models" / "model.pt").is_file():
        pytest.skip("no weights promoted yet")
    return folder


@pytest.mark.data
def test_the_promoted_weights_segment_a_scan_they_never_saw(bundle, shared_data):
    scan = shared_data / "hippocampus" / "images" / "hippocampus_003.nii.gz"  # of fold 1
    reference = np.asarray(nib.load(shared_data / "hippocampus" / "labels" / scan.name).dataobj).astype(np.uint8)
    network, plan = medseg.load_network(bundle), medseg.read_plan(bundle / "configs" / "plan.json")
    depths = range(1, network.depth + 1) if hasattr(network, "prune") else []
    for candidate in [network, *(network.prune(depth) for depth in depths)]:
        segmentation = Predictor(candidate, plan, "cpu").predict(scan)
        assert min(case_dice(segmentation.array, reference, [1, 2])) > 0.75
    assert np.array_equal(segmentation.affine, nib.load(scan).affine)


@pytest.mark.data
def test_the_bundle_run_gives_the_same_labels(bundle, shared_data, tmp_path, run_inference):
    scans = tmp_path / "scans"
    scans.mkdir()
    (scans / "a.nii.gz").symlink_to(shared_data / "hippocampus" / "images" / "hippocampus_003.nii.gz")
    by_bundle = np.asarray(nib.load(run_inference(bundle, scans) / "a_seg.nii.gz").dataobj)
    assert np.array_equal(
        by_bundle, medseg.load(bundle, backend="torch", precision="fp32").predict(scans / "a.nii.gz").array
    )
