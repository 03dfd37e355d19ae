"""From a folder to an evaluation: regions with channels in one file, and colour pictures with many classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from bundle.tiny_bundles import change_plan, copy_bundle
from PIL import Image
from training.bundle_runs import command, run

import medseg
from medseg.bundle import promote
from medseg.datasets import Manifest, describe_dataset
from medseg.evaluation import evaluate
from medseg.inference import predict_files

pytestmark = pytest.mark.slow
DEEP_SUPERVISION = {
    "loss": {
        "_target_": "DeepSupervisionLoss",
        "loss": {"_target_": "medseg.losses.WeightedDiceCELoss", "ignore_label": 255},
        "weight_mode": "same",
    },
    "trained_network": {"_target_": "medseg.training.DeepSupervision", "network": "@network"},
}


def write_brats(root: Path) -> Manifest:
    """Write spheres in spheres with the labels 2, 1 and 4, four channels in one file, as nnU-Net's regions."""
    for name in ("imagesTr", "labelsTr"):
        (root / name).mkdir(parents=True)
    random, shape = np.random.default_rng(0), (24, 24, 20)
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    for case in range(6):
        distance = np.linalg.norm(voxels - np.array(shape) / 2 - random.uniform(-2, 2, 3), axis=-1)
        label = np.select([distance < 3, distance < 5.5, distance < 8], [4, 1, 2], 0).astype(np.float32)
        level = np.select([label == 4, label == 1, label == 2], [6.0, 4.0, 2.0], 0.0)
        image = np.stack([level * (1 + 0.3 * c) + random.normal(0, 0.5, shape) for c in range(4)], -1)
        nib.save(nib.Nifti1Image(image.astype(np.float32), np.eye(4)), root / "imagesTr" / f"b{case}.nii.gz")
        nib.save(nib.Nifti1Image(label, np.eye(4)), root / "labelsTr" / f"b{case}.nii.gz")
    content = {
        "channel_names": {str(n): name for n, name in enumerate(("FLAIR", "T1w", "T1gd", "T2w"))},
        "labels": {"background": 0, "whole": [1, 2, 4], "core": [1, 4], "enhancing": [4]},
        "regions_class_order": [2, 1, 4],
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return describe_dataset(root)


def write_streets(root: Path) -> Manifest:
    """Write street-like RGB pictures: bands and rectangles of 12 classes with their own colours, a border of void."""
    random = np.random.default_rng(0)
    colors = np.vstack([random.integers(30, 255, (12, 3)), [[0, 0, 0]]])
    rows = [f"class {n},{r},{g},{b}" for n, (r, g, b) in enumerate(colors[:-1])]
    for part, count in (("train", 6), ("val", 1), ("test", 1)):
        for number in range(count):
            index = np.repeat([0, 1, 2, 3], 8)[:, None].repeat(48, axis=1)
            for value in range(4, 12):
                row, column = random.integers(0, 26), random.integers(0, 40)
                index[row : row + 6, column : column + 8] = value
            picture = np.clip(colors[index] + random.normal(0, 8, (32, 48, 3)), 0, 255)
            index[:1] = 12
            for folder, array in ((part, picture), (f"{part}_labels", colors[index])):
                (root / folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array.astype(np.uint8)).save(root / folder / f"{part}{number}.png")
    (root / "class_dict.csv").write_text("\n".join(["name,r,g,b", *rows, "Void,0,0,0"]))
    return describe_dataset(root)


def trained(bundle: Path, data: Path, output: Path, changes: Mapping[str, Any], **options: Any) -> medseg.Predictor:
    """Train a bundle on a folder, promote its weights and load it."""
    file = bundle / "configs" / "train.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    run(command(bundle, output, dataset_dir=data, manifest=data, fold=0, **options))
    promote(bundle, output)
    return medseg.load(bundle)


def plan_values(manifest: Manifest, size: list[int]) -> dict[str, Any]:
    """Return the values of a plan that a manifest decides."""
    return {
        "name": "own_data",
        "channels": [{"name": channel.name, "modality": channel.modality} for channel in manifest.channels],
        "labels": dict(manifest.labels),
        "normalization": [{"scheme": "z_score"}] * len(manifest.channels),
        "patch": size,
        "tile": size,
        "crop_ratios": [1] * len(manifest.labels),
    }


def test_regions_of_nnunet_with_channels_in_one_file(tmp_path: Path) -> None:
    data = tmp_path / "Dataset900_Brats"
    manifest = write_brats(data)
    bundle = copy_bundle("hippocampus_unet3d_segmentation", tmp_path / "bundle")
    change_plan(
        bundle,
        {"channels": [8, 16]},
        **plan_values(manifest, [16, 16, 16]),
        activation="sigmoid",
        label_regions={name: list(values) for name, values in manifest.regions.items()},
        regions_class_order=list(manifest.regions_class_order),
    )
    config = json.loads((bundle / "configs" / "train.json").read_text(encoding="utf-8"))
    config["loss"]["regions"] = "$list(@plan.classes_of_structures.values())"
    config["validate"]["key_metric"]["val_mean_dice"]["labels"] = "$@plan.classes_of_structures"
    config["validate"]["postprocessing"]["transforms"][0]["label_values"] = "$@plan.drawn_classes"
    model = trained(bundle, data, tmp_path / "run", config, max_epochs=24, val_interval=24, learning_rate=0.01)
    cases = manifest.folds[0]
    files = [manifest.paths(data, case)["image"][0] for case in cases]
    results = predict_files(model, files, tmp_path / "predictions")
    assert [list(result.volumes_ml) for result in results] == [["whole", "core", "enhancing"]] * len(cases)
    references = {case: manifest.paths(data, case)["label"][0] for case in cases}
    evaluation = evaluate(tmp_path / "predictions", references, labels=data, num_draws=2000)
    assert evaluation.mean("dice", "whole") > 0.8
    assert evaluation.mean("dice", "core") > 0.6
    drawn = {
        int(value)
        for file in (tmp_path / "predictions").glob("*.nii.gz")
        for value in np.unique(nib.load(file).dataobj)
    }
    assert drawn <= {0, 1, 2, 4}
    assert drawn >= {0, 1, 2}


def test_colour_pictures_with_twelve_classes_and_unet_plus_plus(tmp_path: Path) -> None:
    data = tmp_path / "streets"
    manifest = write_streets(data)
    bundle = copy_bundle("em_membrane_unet_segmentation", tmp_path / "bundle")
    plan_file = bundle / "configs" / "plan.json"
    plan = json.loads(plan_file.read_text(encoding="utf-8"))
    plan["network"] = {"name": "unetplusplus_zhou2018", "arguments": {"spatial_dims": 2, "heads": "all"}}
    plan_file.write_text(json.dumps(plan), encoding="utf-8")
    change_plan(
        bundle, {"channels": [8, 16, 32], "norm": "instance"}, **plan_values(manifest, [32, 32]), mirror_axes=[0]
    )
    config = json.loads((bundle / "configs" / "train.json").read_text(encoding="utf-8")) | DEEP_SUPERVISION
    train = config["train"]
    for name in ("weight", "mirror_border"):
        del train["deterministic_transforms"][name]
    for name in ("deform", "center"):
        del train["random_transforms"][name]
    train["crop_transforms"]["crop"] |= {"keys": ["image", "label"], "spatial_size": "@patch"}
    del config["margin"]
    model = trained(bundle, data, tmp_path / "run", config, max_epochs=20, val_interval=20, learning_rate=0.01)
    predict_files(model, [data / "test"], tmp_path / "predictions")
    references = {"test0": manifest.paths(data, "test0")["label"][0]}
    evaluation = evaluate(tmp_path / "predictions", references, labels=data, num_draws=2000)
    assert np.mean([evaluation.mean("dice", f"class {n}") for n in range(4)]) > 0.5
