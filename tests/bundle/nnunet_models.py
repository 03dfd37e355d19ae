"""Model folders exactly as nnU-Net 2.8.1 writes them, with random weights, and scans to segment.

The state dicts have every key of nnU-Net's networks, also the duplicates. `record_nnunet_labels.py` lets nnU-Net's
own predictor segment the scans; its labels are the oracle of the tests where nnU-Net is not installed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from scipy.ndimage import gaussian_filter

ARCHITECTURES = "dynamic_network_architectures.architectures.unet"
SPLINE = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
LINEAR = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}


@dataclass(frozen=True)
class ModelCase:
    """One model and one scan.

    Args:
        patch: tile.
        spacing: target spacing of the configuration.
        strides, kernels: of each stage.
        channels: names of the input channels.
        schemes: normalisation of each channel.
        labels: of dataset.json.
        order: regions_class_order.
        is_residual: ResidualEncoderUNet instead of PlainConvUNet.
        has_batch_norm: the trainer is nnUNetTrainerBN.
        folds: number of folds.
        transpose: transpose_forward.
        reader: image reader.
        uses_torch: resample with PyTorch instead of scikit-image.
        is_old: write the network as nnU-Net 2.0 to 2.3 did.
        mirror_axes: that the checkpoint allows.
        scan_shape: of the file's array.
        affine_columns: voxel vectors of the scan in mm.
        border: voxels of zeros around the scan.
    """

    patch: tuple[int, ...] = (16, 16, 16)
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0)
    strides: tuple[Any, ...] = (1, 2, 2)
    kernels: tuple[Any, ...] = (3, 3, 3)
    channels: tuple[str, ...] = ("MRI",)
    schemes: tuple[str, ...] = ("ZScoreNormalization",)
    masks: tuple[bool, ...] = (False,)
    labels: dict[str, Any] = field(default_factory=lambda: {"background": 0, "anterior": 1, "posterior": 2})
    order: list[int] | None = None
    is_residual: bool = False
    has_batch_norm: bool = False
    folds: int = 1
    transpose: tuple[int, ...] = (0, 1, 2)
    reader: str = "SimpleITKIO"
    uses_torch: bool = False
    is_old: bool = False
    mirror_axes: tuple[int, ...] | None = (0, 1, 2)
    scan_shape: tuple[int, ...] = (25, 22, 20)
    affine_columns: tuple[tuple[float, ...], ...] = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    border: int = 0

    @property
    def dims(self) -> int:
        return len(self.patch)

    @property
    def configuration(self) -> str:
        return "2d" if self.dims == 2 else "3d_fullres"

    @property
    def trainer(self) -> str:
        return "nnUNetTrainerBN" if self.has_batch_norm else "nnUNetTrainer"

    @property
    def num_heads(self) -> int:
        return len(self.labels) - ("ignore" in self.labels) - (self.order is not None)


CASES = {
    "plain": ModelCase(folds=2),
    "residual encoder, CT": ModelCase(
        is_residual=True, channels=("CT",), schemes=("CTNormalization",), spacing=(1.25, 1.0, 1.0), border=3,
        affine_columns=((-1.4, 0, 0), (0, 0, 1.3), (0, 0.9, 0)),
    ),
    "2D, transposed": ModelCase(
        patch=(16, 24), spacing=(1.0, 1.5), strides=(1, 2, 2), transpose=(1, 0, 2), mirror_axes=(0, 1),
        affine_columns=((1.2, 0, 0), (0, 1.1, 0), (0, 0, 1.7)),
    ),
    "anisotropic, batch norm": ModelCase(
        patch=(6, 16, 20), spacing=(3.6, 1.0, 1.0), strides=(1, (1, 2, 2), (2, 2, 2)),
        kernels=((1, 3, 3), (1, 3, 3), 3), has_batch_norm=True, scan_shape=(26, 30, 8), mirror_axes=None,
        affine_columns=((0.8, 0.05, 0), (-0.05, 0.8, 0), (0, 0, 4.4)),
    ),
    "two channels, regions": ModelCase(
        channels=("T1", "T2"), schemes=("ZScoreNormalization", "ZScoreNormalization"), masks=(True, True), border=2,
        labels={"background": 0, "whole": [1, 2, 3], "core": [1, 2], "enhancing": 2, "ignore": 4}, order=[3, 1, 2],
        reader="NibabelIOWithReorient", affine_columns=((0, -1.0, 0), (0, 0, 1.2), (-1.1, 0, 0)),
    ),
    "PyTorch, old plans": ModelCase(
        uses_torch=True, is_old=True, channels=("a", "b", "c"), masks=(False, False, False),
        schemes=("RescaleTo01Normalization", "NoNormalization", "RGBTo01Normalization"), spacing=(1.2, 0.9, 1.0),
        mirror_axes=(0, 2),
    ),
}  # fmt: skip


def write_model(case: ModelCase, folder: Path) -> Path:
    """Write plans.json, dataset.json and the checkpoints of a case, and return the folder."""
    plans, dataset = plans_of(case), dataset_of(case)
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans, indent=4))
    (folder / "dataset.json").write_text(json.dumps(dataset, indent=4))
    for fold in range(case.folds):
        (folder / f"fold_{fold}").mkdir()
        torch.save(checkpoint_of(case, fold), folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


def dataset_of(case: ModelCase) -> dict[str, Any]:
    return {
        "channel_names": {str(number): name for number, name in enumerate(case.channels)},
        "labels": dict(case.labels),
        **({} if case.order is None else {"regions_class_order": case.order}),
        "numTraining": 5,
        "file_ending": ".nii.gz",
    }


def plans_of(case: ModelCase) -> dict[str, Any]:
    torch_step = {"is_seg": False, "force_separate_z": False, "memefficient_seg_resampling": False}
    function = "resample_torch_fornnunet" if case.uses_torch else "resample_data_or_seg_to_shape"
    configuration = {
        "data_identifier": f"nnUNetPlans_{case.configuration}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(case.patch),
        "median_image_size_in_voxels": [20.0, 20.0, 20.0][: case.dims],
        "spacing": list(case.spacing),
        "normalization_schemes": list(case.schemes),
        "use_mask_for_norm": list(case.masks),
        "resampling_fn_data": function,
        "resampling_fn_seg": function,
        "resampling_fn_data_kwargs": torch_step if case.uses_torch else SPLINE,
        "resampling_fn_seg_kwargs": {**(torch_step if case.uses_torch else LINEAR), "is_seg": True},
        "resampling_fn_probabilities": function,
        "resampling_fn_probabilities_kwargs": torch_step if case.uses_torch else LINEAR,
        "batch_dice": False,
        **architecture_of(case),
    }
    properties = {
        "max": 3000.0, "mean": 120.0, "median": 100.0, "min": -1000.0, "percentile_00_5": -300.0,
        "percentile_99_5": 700.0, "std": 210.0,
    }  # fmt: skip
    return {
        "dataset_name": "Dataset999_Generated",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [20, 20, 20],
        "image_reader_writer": case.reader,
        "transpose_forward": list(case.transpose),
        "transpose_backward": np.argsort(case.transpose).tolist(),
        "configurations": {case.configuration: configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(c): properties for c in range(len(case.channels))},
    }


def architecture_of(case: ModelCase) -> dict[str, Any]:
    """Return the network as the plans state it."""
    n = len(case.strides)
    strides, kernels = ([per_axis(value, case.dims) for value in values] for values in (case.strides, case.kernels))
    if case.is_old:
        return {
            "UNet_class_name": "PlainConvUNet", "UNet_base_num_features": 4, "unet_max_num_features": 16,
            "n_conv_per_stage_encoder": [2] * n, "n_conv_per_stage_decoder": [2] * (n - 1),
            "num_pool_per_axis": [n - 1] * case.dims, "pool_op_kernel_sizes": strides, "conv_kernel_sizes": kernels,
        }  # fmt: skip
    blocks = "n_blocks_per_stage" if case.is_residual else "n_conv_per_stage"
    arguments = {
        "n_stages": n,
        "features_per_stage": [4, 8, 16, 16][:n],
        "conv_op": f"torch.nn.modules.conv.Conv{case.dims}d",
        "kernel_sizes": kernels,
        "strides": strides,
        blocks: [1, 2, 2, 2][:n] if case.is_residual else [2] * n,
        "n_conv_per_stage_decoder": [1] * (n - 1) if case.is_residual else [2] * (n - 1),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{case.dims}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    name = "ResidualEncoderUNet" if case.is_residual else "PlainConvUNet"
    required = ["conv_op", "norm_op", "dropout_op", "nonlin"]
    return {
        "architecture": {
            "network_class_name": f"{ARCHITECTURES}.{name}", "arch_kwargs": arguments, "_kw_requires_import": required,
        }
    }  # fmt: skip


def checkpoint_of(case: ModelCase, fold: int) -> dict[str, Any]:
    """Return what nnUNetTrainer.save_checkpoint gives to torch.save; the optimiser's state is short."""
    return {
        "network_weights": state_dict_of(case, fold),
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01, "momentum": 0.99, "nesterov": True}]},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.5)], "ema_fg_dice": [np.float32(0.5)], "lrs": [0.01]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 5,
        "init_args": {
            "plans": plans_of(case),
            "configuration": case.configuration,
            "fold": fold,
            "dataset_json": dataset_of(case),
            "device": torch.device("cpu"),
        },
        "trainer_name": case.trainer,
        "inference_allowed_mirroring_axes": case.mirror_axes,
    }


def state_dict_of(case: ModelCase, fold: int) -> dict[str, torch.Tensor]:
    """Return random weights under the keys of nnU-Net's network."""
    random = np.random.RandomState(fold)
    state: dict[str, torch.Tensor] = {}
    for key, shape in parameters_of(case):
        noise = random.standard_normal(shape).astype(np.float32)
        if key.endswith("running_var"):
            value = np.abs(noise) + 0.5
        elif len(shape) > 1:
            value = noise * np.sqrt(1.5 / np.prod(shape[1:]))
        else:
            value = 0.3 * noise + (".norm.weight" in key)
        if "seg_layers" in key:  # classes of similar frequency: features have positive means
            value = value - value.mean(axis=1, keepdims=True) if len(shape) > 1 else 0 * value
        state[key] = torch.from_numpy(np.asarray(value, np.float32))
        if key.endswith("running_var"):
            state[key.replace("running_var", "num_batches_tracked")] = torch.tensor(7)
    # Modules are registered twice, and the decoder holds the encoder once more.
    for key in [*state]:
        for part, number in ((".conv.", 0), (".norm.", 1)):
            if part in key:
                state[key.replace(part, f".all_modules.{number}.")] = state[key]
    state |= {f"decoder.{key}": value for key, value in state.items() if key.startswith("encoder.")}
    return state


def parameters_of(case: ModelCase) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield key and shape of each parameter of PlainConvUNet or ResidualEncoderUNet, without the duplicates."""
    widths = [4, 8, 16, 16][: len(case.strides)]
    strides, kernels = ([per_axis(value, case.dims) for value in values] for values in (case.strides, case.kernels))
    ones = [1] * case.dims

    def block(key: str, before: int, after: int, kernel: list[int], bias: bool = True) -> Iterator[Any]:
        yield f"{key}.conv.weight", (after, before, *kernel)
        if bias:
            yield f"{key}.conv.bias", (after,)
        yield f"{key}.norm.weight", (after,)
        yield f"{key}.norm.bias", (after,)
        if case.has_batch_norm:
            yield f"{key}.norm.running_mean", (after,)
            yield f"{key}.norm.running_var", (after,)

    before = len(case.channels)
    if case.is_residual:
        yield from block("encoder.stem.convs.0", before, widths[0], kernels[0])
        before = widths[0]
    for stage, (width, kernel) in enumerate(zip(widths, kernels, strict=True)):
        for number in range([1, 2, 2, 2][stage] if case.is_residual else 2):
            if case.is_residual:
                key = f"encoder.stages.{stage}.blocks.{number}"
                yield from block(f"{key}.conv1", before, width, kernel)
                yield from block(f"{key}.conv2", width, width, kernel)
                if before != width:
                    place = int(number == 0 and strides[stage] != ones)  # behind the pooling, if there is one
                    yield from block(f"{key}.skip.{place}", before, width, ones, bias=False)
            else:
                yield from block(f"encoder.stages.{stage}.0.convs.{number}", before, width, kernel)
            before = width
    for stage in range(len(widths) - 1):
        width, skip = widths[-1 - stage], widths[-2 - stage]
        yield f"decoder.transpconvs.{stage}.weight", (width, skip, *strides[-1 - stage])
        yield f"decoder.transpconvs.{stage}.bias", (skip,)
        for number in range(1 if case.is_residual else 2):
            key = f"decoder.stages.{stage}.convs.{number}"
            yield from block(key, 2 * skip if number == 0 else skip, skip, kernels[-2 - stage])
        yield f"decoder.seg_layers.{stage}.weight", (case.num_heads, skip, *ones)
        yield f"decoder.seg_layers.{stage}.bias", (case.num_heads,)


def per_axis(value: Any, dims: int) -> list[int]:
    return [value] * dims if isinstance(value, int) else list(value)


def write_scan(case: ModelCase, folder: Path) -> list[Path]:
    """Write the scan of a case, one file per channel, and return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    random, affine = np.random.RandomState(11), np.eye(4)
    affine[:3, :3] = np.array(case.affine_columns).T
    affine[:3, 3] = (-11.5, 7.25, 30.0)
    paths = []
    for channel in range(len(case.channels)):
        noise = random.standard_normal(case.scan_shape)
        image = sum(gaussian_filter(noise, sigma) / gaussian_filter(noise, sigma).std() for sigma in (0.7, 1.5, 3))
        values = np.clip(100 + 60 * image, 1, 255).astype(np.int16)
        if case.border:
            inner = tuple(slice(case.border, -case.border - 1) for _ in range(3))
            outside = np.ones(case.scan_shape, dtype=bool)
            outside[inner] = False
            values[outside] = 0
            values[tuple(n // 2 for n in case.scan_shape)] = 0  # a hole inside the mask
        paths.append(folder / f"scan_{channel:04d}.nii.gz")
        nib.save(nib.Nifti1Image(values, affine), paths[-1])
    return paths
