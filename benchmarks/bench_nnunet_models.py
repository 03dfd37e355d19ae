"""Compare `medseg predict` on imported models with nnU-Net's own predictor: whole commands, time and peak memory.

    python benchmarks/bench_nnunet_models.py [--size 160] [--repeats 3] [--data ../shared/data] [--only 14|41]

For each of two models, nnU-Net builds the network that its plans describe, with random weights, and a checkpoint is
written as nnU-Net's trainer writes it. The first has 14 classes and segments a generated CT of 160³ voxels of 1.5 mm;
the second has 41 classes and segments the CT sample of the shared data (122×101×112, 3 mm) at 1.5 mm. Both programs
predict the same file with fp32, half-overlapping tiles of 96³ and no mirroring, each in a process of its own that is
timed from its start to its end. Both times contain the start of Python and the reading of the weights. Compiled models
are in OpenVINO's cache, as for every scan after the first one. The column `equal` is the share of voxels, among those
that either program calls foreground, with the same label.

The peak is the largest resident size of the process, as the system reports it at its end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import nibabel as nib
import numpy as np
import torch
from nnunet_peer import is_installed
from timing import machine
from whole_command import ct_like

from medseg.bundle import import_bundle
from medseg.networks.precision import has_fast_bf16

TILE, SPACING = 96, 1.5
# nnU-Net's command in one process: its usual command starts worker processes, which would need more memory.
NNUNET_COMMAND = """
import sys, torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
predictor = nnUNetPredictor(0.5, True, False, device=torch.device("cpu"), allow_tqdm=False)
predictor.initialize_from_trained_model_folder(sys.argv[1], (0,), "checkpoint_final.pth")
predictor.predict_from_files_sequential([[sys.argv[2]]], [sys.argv[3]])
"""
# `medseg` as it is, except that bf16 may differ from the golden sample: logits of random weights are so close to each
# other that the sample would refuse it, while trained weights pass.
MEDSEG_COMMAND = """
import sys
from medseg.bundle.golden import GoldenSample
GoldenSample.objection = lambda *_: ""
from medseg.__main__ import main
sys.exit(main())
"""


def write_model(folder: Path, classes: int) -> Path:
    """Write a model of nnU-Net with its usual 3D network (32 to 320 channels, five stages) and random weights."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    stages = 5
    arguments = {
        "n_stages": stages, "features_per_stage": [32, 64, 128, 256, 320], "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3] * 3] * stages, "strides": [[1] * 3] + [[2] * 3] * (stages - 1),
        "n_conv_per_stage": [2] * stages, "n_conv_per_stage_decoder": [2] * (stages - 1), "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d", "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None, "dropout_op_kwargs": None, "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }  # fmt: skip
    required = ["conv_op", "norm_op", "dropout_op", "nonlin"]
    name = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
    step = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    function = "resample_data_or_seg_to_shape"
    intensities = {
        "max": 3000.0, "mean": 60.0, "median": 50.0, "min": -1024.0, "percentile_00_5": -900.0,
        "percentile_99_5": 700.0, "std": 200.0,
    }  # fmt: skip
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
        "patch_size": [TILE] * 3, "median_image_size_in_voxels": [160.0] * 3, "spacing": [SPACING] * 3,
        "normalization_schemes": ["CTNormalization"], "use_mask_for_norm": [False], "resampling_fn_data": function,
        "resampling_fn_seg": function, "resampling_fn_data_kwargs": step,
        "resampling_fn_seg_kwargs": {**step, "is_seg": True, "order": 1}, "resampling_fn_probabilities": function,
        "resampling_fn_probabilities_kwargs": {**step, "order": 1}, "batch_dice": False,
        "architecture": {"network_class_name": name, "arch_kwargs": arguments, "_kw_requires_import": required},
    }  # fmt: skip
    plans = {
        "dataset_name": f"Dataset{classes:03d}_Benchmark", "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [SPACING] * 3, "original_median_shape_after_transp": [160] * 3,
        "image_reader_writer": "SimpleITKIO", "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration}, "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager", "foreground_intensity_properties_per_channel": {"0": intensities},
    }  # fmt: skip
    dataset = {
        "channel_names": {"0": "CT"}, "numTraining": 1, "file_ending": ".nii.gz",
        "labels": {"background": 0, **{f"organ_{n}": n for n in range(1, classes)}},
    }  # fmt: skip
    torch.manual_seed(0)
    network = get_network_from_plans(name, arguments, required, 1, classes, deep_supervision=False)
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    checkpoint = {
        "network_weights": network.state_dict(), "trainer_name": "nnUNetTrainer", "current_epoch": 0,
        "init_args": {"configuration": "3d_fullres", "fold": 0}, "inference_allowed_mirroring_axes": (0, 1, 2),
    }  # fmt: skip
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    return folder


def run(command: list[str]) -> tuple[float, float]:
    """Run a command and return its seconds and its peak in MiB."""
    environment = {**os.environ, "nnUNet_raw": "", "nnUNet_preprocessed": "", "nnUNet_results": ""}
    begin = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
    stderr = child.stderr.read() if child.stderr is not None else b""
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - begin
    if status:
        raise SystemExit(f"{' '.join(command[:4])} … failed:\n{stderr.decode(errors='replace')[-2000:]}")
    return seconds, usage.ru_maxrss / 1024


def equal_share(first: Path, second: Path) -> float:
    """Return the share of equal labels among the voxels that either label map calls foreground."""
    a, b = (np.asarray(nib.load(path).dataobj) for path in (first, second))
    considered = (a != 0) | (b != 0)
    return float((a == b)[considered].mean()) if considered.any() else 1.0


def measure(model: Path, scan: Path, work: Path, repeats: int) -> list[dict[str, Any]]:
    """Measure every method on one scan; the methods alternate."""
    bundle = import_bundle(model, work / f"bundle_{model.name}").path
    reference = work / f"nnunet_{model.name}"
    reference.mkdir()
    target = reference / "scan"
    commands: dict[str, tuple[list[str], Path]] = {
        "nnU-Net's predictor": (
            [sys.executable, "-W", "ignore", "-c", NNUNET_COMMAND, str(model), str(scan), str(target)],
            target.with_suffix(".nii.gz"),
        )
    }
    precisions = ["fp32", "bf16"] if has_fast_bf16(torch.device("cpu")) else ["fp32"]
    for backend in ["torch", *(["openvino"] if find_spec("openvino") else [])]:
        for precision in precisions:
            out = work / f"{backend}_{precision}_{model.name}"
            command = [sys.executable, "-c", MEDSEG_COMMAND, "predict", str(bundle), str(scan), "--out", str(out)]
            command += ["--overwrite", "--backend", backend, "--precision", precision]
            commands[f"medseg, {backend} {precision}"] = command, out / scan.name
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for repeat in range(repeats + 1):
        for name, (command, _) in commands.items():
            if repeat == 0 and "openvino" not in name:
                continue  # the first round fills OpenVINO's cache
            found = run(command)
            if repeat:
                figures[name].append(found)
                print(f"{model.name}: {name}: {found[0]:.1f} s, {found[1]:.0f} MiB", file=sys.stderr, flush=True)
    written = commands["nnU-Net's predictor"][1]
    seconds = {name: median(each[0] for each in values) for name, values in figures.items()}
    peaks = {name: median(each[1] for each in values) for name, values in figures.items()}
    first = next(iter(commands))
    return [
        {
            "method": name, "seconds": seconds[name], "faster": seconds[first] / seconds[name], "peak": peaks[name],
            "smaller": peaks[first] / peaks[name], "equal": equal_share(written, out),
        }
        for name, (_, out) in commands.items()
    ]  # fmt: skip


def main() -> None:
    """Measure both models and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=160, help="voxels of the generated CT along each axis")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--only", type=int, choices=(14, 41), help="measure one of the two models")
    arguments = parser.parse_args()
    if not is_installed():
        print("nnU-Net is not installed; `make bench` installs it")
        return
    sample = arguments.data / "ct_abdomen" / "example_ct.nii.gz"
    print(f"Machine: {machine()}\n")
    print("| scan | method | s | times nnU-Net's speed | peak MiB | nnU-Net's peak / it | equal |")
    print("|---|---|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        os.environ.setdefault("MEDSEG_CACHE_DIR", str(work / "cache"))
        generated = work / "generated.nii.gz"
        nib.save(nib.Nifti1Image(ct_like(arguments.size), np.diag([SPACING] * 3 + [1.0])), generated)
        runs = [(14, f"CT-like {arguments.size}³, 14 classes", generated)]
        runs += [(41, "CT sample, 41 classes", sample)] if sample.is_file() else []
        for classes, title, scan in runs:
            if arguments.only in (None, classes):
                model = write_model(work / f"model_{classes}", classes)
                for row in measure(model, scan, work, arguments.repeats):
                    print(
                        f"| {title} | {row['method']} | {row['seconds']:.1f} | {row['faster']:.2f} | {row['peak']:.0f} "
                        f"| {row['smaller']:.2f} | {row['equal']:.5f} |", flush=True,
                    )  # fmt: skip


if __name__ == "__main__":
    main()
