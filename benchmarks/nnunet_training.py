"""Train small models with nnU-Net itself, whose folders `medseg bundle import` and nnunet_equality.py take.

    python benchmarks/nnunet_training.py MODELS [--data ../shared/data] [--only NAME...] [--iterations 60]
                                        [--narrower 4]

nnU-Net 2.8.1 plans, preprocesses and trains on the shared data on the CPU with its own classes; only the number of
iterations and the width of the networks are smaller than usual. Needs nnU-Net, which `make bench` installs. The
models are:

- hippocampus: PlainConvUNet in 3D, two folds; a 2D one; and a residual encoder
- cord: an anisotropic T2* scan (0.5×0.5×7.5 mm), trained at another spacing. The nearest slice is taken, and each is
  resampled by itself. A copy of the model, `__slices`, keeps the distance of the slices.
- ct: the CT sample with its structures, CT normalisation, trained at another spacing; two folds
- brain: two channels (T1 and its gradient) with overlapping regions
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from scipy.ndimage import gaussian_gradient_magnitude

RESIDUAL = "nnUNetPlannerResEncM"


def save_case(folder: Path, name: str, images: list[Any], label: np.ndarray, affine: np.ndarray) -> None:
    """Write one case of a raw dataset."""
    for number, image in enumerate(images):
        nib.save(
            nib.Nifti1Image(np.asarray(image, np.float32), affine), folder / "imagesTr" / f"{name}_{number:04d}.nii.gz"
        )
    nib.save(nib.Nifti1Image(np.asarray(label, np.uint8), affine), folder / "labelsTr" / f"{name}.nii.gz")


def hippocampus(folder: Path, data: Path) -> dict[str, Any]:
    """Copy 8 cases of the hippocampus data."""
    root = data / "hippocampus"
    for label in sorted((root / "labels").glob("*.nii.gz"))[:8]:
        image = nib.load(root / "images" / label.name)
        save_case(folder, label.name[:-7], [image.get_fdata()], np.asarray(nib.load(label).dataobj), image.affine)
    return {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "Anterior": 1, "Posterior": 2}}


def cord(folder: Path, data: Path) -> dict[str, Any]:
    """Take the T2* scan of the spinal cord with its grey matter."""
    scan = nib.load(data / "spinal_cord" / "t2s_uncropped.nii.gz")
    label = nib.load(data / "spinal_cord" / "t2s_uncropped_gmseg_manual.nii.gz")
    save_case(folder, "cord", [scan.get_fdata()], np.asarray(label.dataobj) > 0, scan.affine)
    return {"channel_names": {"0": "T2star"}, "labels": {"background": 0, "grey_matter": 1}}


def ct(folder: Path, data: Path) -> dict[str, Any]:
    """Take the CT sample with its structures, numbered without gaps."""
    scan = nib.load(data / "ct_abdomen" / "example_ct_sm.nii.gz")
    label = np.asarray(nib.load(data / "ct_abdomen" / "example_seg.nii.gz").dataobj)
    values, numbered = np.unique(label, return_inverse=True)
    save_case(folder, "ct", [scan.get_fdata()], numbered.reshape(label.shape), scan.affine)
    labels = {"background": 0, **{f"structure_{value:.0f}": n for n, value in enumerate(values) if n}}
    return {"channel_names": {"0": "CT"}, "labels": labels}


def brain(folder: Path, data: Path) -> dict[str, Any]:
    """Crop a brain around its hippocampi; the second channel is the size of the gradient."""
    scan = nib.load(data / "brain_t1" / "t1_brain.mgz")
    label = np.asarray(nib.load(data / "brain_t1" / "t1_brain_hippocampi.nii.gz").dataobj)
    box = tuple(slice(max(index.min() - 14, 0), index.max() + 14) for index in np.nonzero(label))
    image = scan.get_fdata()[box]
    gradient = gaussian_gradient_magnitude(image, 1.0) * (image != 0)
    save_case(folder, "brain", [image, gradient], label[box], scan.slicer[box].affine)
    return {
        "channel_names": {"0": "T1", "1": "gradient"},
        "labels": {"background": 0, "hippocampi": [1, 2], "right": 2},
        "regions_class_order": [1, 2],
    }


# name: (number, data, planner, target spacing (z, y, x), runs (configuration, fold))
MODELS: dict[
    str, tuple[int, Callable[[Path, Path], dict[str, Any]], str, list[float] | None, list[tuple[str, Any]]]
] = {
    "hippocampus": (4, hippocampus, "ExperimentPlanner", None, [("3d_fullres", 0), ("3d_fullres", 1), ("2d", 0)]),
    "residual": (5, hippocampus, RESIDUAL, None, [("3d_fullres", 0)]),
    "cord": (6, cord, "ExperimentPlanner", [6.0, 0.62, 0.6], [("3d_fullres", "all")]),
    "ct": (7, ct, "ExperimentPlanner", [2.6, 2.4, 2.5], [("3d_fullres", 0), ("3d_fullres", 1)]),
    "brain": (8, brain, "ExperimentPlanner", None, [("3d_fullres", "all")]),
}


def match_frequencies(trainer: Any, batch: dict[str, Any]) -> None:
    """Shift the biases of the head, so that each class is predicted as often as it is annotated, at least in 1 %.

    After so few iterations a network may call everything background, which would compare nothing.
    """
    head, target = trainer.network.decoder.seg_layers[-1], batch["target"][0]
    with torch.no_grad():
        trainer.network.eval()
        logits = trainer.network(batch["data"])[0].float().movedim(1, 0).flatten(1)
        has_regions = trainer.label_manager.has_regions
        for channel in range(0 if has_regions else 1, len(logits)):
            others = torch.zeros(1) if has_regions else logits[[n for n in range(len(logits)) if n != channel]].amax(0)
            annotated = target[:, channel] if has_regions else target[:, 0] == channel
            frequency = annotated.float().mean().clamp(min=0.01)
            shift = (others - logits[channel])[:: max(1, logits.shape[1] // 100_000)].quantile(frequency)
            logits[channel] += shift
            head.bias[channel] += shift


def copy_with_spacing(model: Path, spacing: list[float]) -> None:
    """Write a copy of a trained model whose plans state another target spacing."""
    copy = model.with_name(f"{model.name}__slices")
    shutil.copytree(model, copy, dirs_exist_ok=True)
    plans = json.loads((copy / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["spacing"] = spacing
    (copy / "plans.json").write_text(json.dumps(plans, indent=4))


def train(name: str, root: Path, arguments: argparse.Namespace) -> None:
    """Plan, preprocess and train one model."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    number, make, planner, spacing, runs = MODELS[name]
    full = f"Dataset{number:03d}_{name.capitalize()}"
    raw = root / "raw" / full
    os.environ["nnUNet_n_proc_DA"] = "1"  # noqa: SIM112
    if not (raw / "dataset.json").is_file():
        for part in ("imagesTr", "labelsTr"):
            (raw / part).mkdir(parents=True, exist_ok=True)
        content = make(raw, arguments.data)
        count = len(list((raw / "labelsTr").iterdir()))
        (raw / "dataset.json").write_text(json.dumps({**content, "numTraining": count, "file_ending": ".nii.gz"}))
    plans_name = "nnUNetResEncUNetMPlans" if planner == RESIDUAL else "nnUNetPlans"
    prepared = root / "preprocessed" / full
    if not (prepared / f"{plans_name}.json").is_file():
        extract_fingerprints([number], num_processes=1, check_dataset_integrity=False)
        plan_experiments(
            [number], planner, gpu_memory_target_in_gb=1.5 if planner != RESIDUAL else None,
            overwrite_target_spacing=spacing,
        )  # fmt: skip
        preprocess([number], plans_name, sorted({configuration for configuration, _ in runs}), [1])
    cases = [file.name[:-7] for file in sorted((raw / "labelsTr").iterdir())]
    if len(cases) == 1:  # nnU-Net cannot split one case; its folds differ by their random numbers alone
        (prepared / "splits_final.json").write_text(json.dumps([{"train": cases, "val": cases}] * 2))
    os.environ["nnUNet_n_proc_DA"] = "0"  # noqa: SIM112 batches are made in this process
    for configuration, fold in runs:
        plans = json.loads((prepared / f"{plans_name}.json").read_text())
        plans["configurations"][configuration]["batch_size"] = 2
        network = plans["configurations"][configuration]["architecture"]["arch_kwargs"]
        network["features_per_stage"] = [max(width // arguments.narrower, 4) for width in network["features_per_stage"]]
        dataset = json.loads((prepared / "dataset.json").read_text())
        trainer = nnUNetTrainer(
            {**plans, "continue_training": False}, configuration, fold, dataset, torch.device("cpu")
        )
        file = Path(trainer.output_folder) / "checkpoint_final.pth"
        if file.is_file():
            continue
        trainer.initialize()
        batches, without_augmentation = trainer.get_dataloaders()
        trainer.network.train()
        iterations = arguments.iterations
        for step in range(iterations):
            loss = float(trainer.train_step(next(batches))["loss"])
            if step % 10 == 0 or step == iterations - 1:
                print(
                    f"{full} {configuration} fold {fold}: step {step + 1} of {iterations}, loss {loss:.3f}", flush=True
                )
        match_frequencies(trainer, next(without_augmentation))
        for name_of, values in (("plans.json", plans), ("dataset.json", dataset)):
            (file.parents[1] / name_of).write_text(json.dumps(values, indent=4))
        trainer.save_checkpoint(str(file))
        print(file, flush=True)
        if name == "cord":
            copy_with_spacing(file.parents[1], [7.5, 0.62, 0.6])


def main() -> None:
    """Train the models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, help="folder for the raw data, the preprocessed data and the models")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--only", nargs="*", default=[*MODELS], choices=[*MODELS])
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--narrower", type=int, default=4, help="divide the planned number of channels by this")
    arguments = parser.parse_args()
    root = arguments.models.resolve()
    for name in ("raw", "preprocessed", "results"):
        (root / name).mkdir(parents=True, exist_ok=True)
        os.environ[f"nnUNet_{name}"] = str(root / name)
    os.environ["nnUNet_compile"] = "false"  # noqa: SIM112
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    for name in arguments.only:
        train(name, root, arguments)


if __name__ == "__main__":
    sys.exit(main())
