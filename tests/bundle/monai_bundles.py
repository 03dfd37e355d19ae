"""Bundles with the inference configs of MONAI's model zoo, random weights of a smaller network, and a scan.

The configs are those of `spleen_ct_segmentation` 0.5.9, `swin_unetr_btcv_segmentation` 0.5.8 and
`wholeBody_ct_segmentation` 0.2.5, with smaller tiles and fewer channels.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.networks import nets
from scipy.ndimage import gaussian_filter

IMAGE = "@image_key"
SPLEEN_NETWORK = {
    "_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8, 16],
    "strides": [2, 2], "num_res_units": 2, "norm": "batch",
}  # fmt: skip
BTCV_NETWORK = {
    "_target_": "SwinUNETR", "spatial_dims": 3, "in_channels": 1, "out_channels": 14, "feature_size": 12,
    "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8], "use_checkpoint": False,
}  # fmt: skip
WHOLE_BODY_NETWORK = {
    "_target_": "SegResNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 105, "init_filters": 8,
    "blocks_down": [1, 2, 2, 4], "blocks_up": [1, 1, 1], "dropout_prob": 0.2,
}  # fmt: skip
BTCV_LABELS = (
    "background", "spleen", "Right Kidney", "Left Kideny", "Gallbladder", "Esophagus", "Liver", "Stomach", "Aorta",
    "IVC", "Portal and Splenic Veins", "Pancreas", "Right adrenal gland", "Left adrenal gland",
)  # fmt: skip


def _step(target: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": target, **arguments}


def _config(network: dict[str, Any], steps: list[Any], inferer: dict[str, Any], post: list[Any]) -> dict[str, Any]:
    """Return what the three configs have in common."""
    config = {
        "imports": ["$import glob", "$import numpy", "$import os"],
        "bundle_root": ".",
        "image_key": "image",
        "output_dir": "$@bundle_root + '/eval'",
        "output_ext": ".nii.gz",
        "output_dtype": "$numpy.float32",
        "output_postfix": "trans",
        "separate_folder": True,
        "load_pretrain": True,
        "dataset_dir": "/workspace/data",
        "datalist": "$list(sorted(glob.glob(@dataset_dir + '/imagesTs/*.nii.gz')))",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": network,
        "network": "$@network_def.to(@device)",
        "preprocessing": _step("Compose", transforms=steps),
        "dataset": _step("Dataset", data="$[{'image': i} for i in @datalist]", transform="@preprocessing"),
        "dataloader": _step("DataLoader", dataset="@dataset", batch_size=1, shuffle=False, num_workers=0),
        "inferer": inferer,
        "postprocessing": _step(
            "Compose",
            transforms=[
                *post,
                _step(
                    "SaveImaged", keys="pred", output_dir="@output_dir", output_ext="@output_ext",
                    output_dtype="@output_dtype", output_postfix="@output_postfix", separate_folder="@separate_folder",
                ),
            ],
        ),
        "handlers": [_step("StatsHandler", iteration_log=False)],
        "evaluator": _step(
            "SupervisedEvaluator", device="@device", val_data_loader="@dataloader", network="@network",
            inferer="@inferer", postprocessing="@postprocessing", val_handlers="@handlers", amp=True,
        ),
        "checkpointloader": _step(
            "CheckpointLoader", load_path="$@bundle_root + '/models/model.pt'", load_dict={"model": "@network"}
        ),
        "initialize": ["$@checkpointloader(@evaluator) if @load_pretrain else None"],
        "run": ["$@evaluator.run()"],
    }  # fmt: skip
    return deepcopy(config)


def _inverted(is_nearest: bool) -> dict[str, Any]:
    return _step(
        "Invertd", keys="pred", transform="@preprocessing", orig_keys=IMAGE, nearest_interp=is_nearest, to_tensor=True
    )


_SOFTMAX, _ARGMAX = _step("Activationsd", keys="pred", softmax=True), _step("AsDiscreted", keys="pred", argmax=True)


def _ct_steps(lower: float, upper: float, **load: Any) -> list[Any]:
    return [
        _step("LoadImaged", keys=IMAGE, **load),
        _step("EnsureChannelFirstd", keys=IMAGE),
        _step("Orientationd", keys=IMAGE, axcodes="RAS"),
        _step("Spacingd", keys=IMAGE, pixdim=[1.5, 1.5, 2.0], mode="bilinear"),
        _step("ScaleIntensityRanged", keys=IMAGE, a_min=lower, a_max=upper, b_min=0.0, b_max=1.0, clip=True),
        _step("EnsureTyped", keys=IMAGE),
    ]


def spleen_config() -> dict[str, Any]:
    """Return the config of spleen_ct_segmentation: probabilities are interpolated, tiles have constant weights."""
    inferer = _step("SlidingWindowInferer", roi_size=[24, 24, 24], sw_batch_size=4, overlap=0.5)
    config = _config(SPLEEN_NETWORK, _ct_steps(-57, 164), inferer, [_SOFTMAX, _inverted(False), _ARGMAX])
    config["initialize"].insert(0, "$monai.utils.set_determinism(seed=123)")
    return config


def btcv_config() -> dict[str, Any]:
    """Return the config of swin_unetr_btcv_segmentation: ITK reads, and the weights have a name of their own."""
    inferer = _step("SlidingWindowInferer", roi_size=[64, 64, 64], sw_batch_size=4, overlap=0.5)
    steps = _ct_steps(-175, 250, reader="ITKReader")
    config = _config(BTCV_NETWORK, steps, inferer, [_SOFTMAX, _inverted(False), _ARGMAX])
    config["checkpoint"] = "$@bundle_root + '/models/model.pt'"
    config["checkpointloader"]["load_path"] = "$@checkpoint"
    config["initialize"].insert(0, "$monai.utils.set_determinism(seed=123)")
    return config


def whole_body_config() -> dict[str, Any]:
    """Return the config of wholeBody_ct_segmentation: two normalisations, and labels of the nearest voxel."""
    steps = [
        _step("LoadImaged", keys=IMAGE),
        _step("EnsureTyped", keys=IMAGE),
        _step("EnsureChannelFirstd", keys=IMAGE),
        _step("Orientationd", keys=IMAGE, axcodes="RAS"),
        _step("Spacingd", keys=IMAGE, pixdim="@pixdim", mode="bilinear"),
        _step("NormalizeIntensityd", keys=IMAGE, nonzero=True),
        _step("ScaleIntensityd", keys=IMAGE, minv=-1.0, maxv=1.0),
    ]
    inferer = _step(
        "SlidingWindowInferer", roi_size=[32, 32, 32], sw_batch_size="@displayable_configs#sw_batch_size",
        overlap="@displayable_configs#sw_overlap", padding_mode="replicate", mode="gaussian",
        device="$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    )  # fmt: skip
    config = _config(WHOLE_BODY_NETWORK, steps, inferer, [_SOFTMAX, _ARGMAX, _inverted(True)])
    config["displayable_configs"] = {"highres": True, "sw_overlap": 0.25, "sw_batch_size": 1}
    config["pixdim"] = "$[1.5, 1.5, 1.5] if @displayable_configs#highres else [3.0, 3.0, 3.0]"
    config["modelname"] = "$'model.pt' if @displayable_configs#highres else 'model_lowres.pt'"
    config["checkpointloader"]["load_path"] = "$@bundle_root + '/models/' + @modelname"
    config["initialize"].insert(0, "$setattr(torch.backends.cudnn, 'benchmark', True)")
    return config


CONFIGS: dict[str, Callable[[], dict[str, Any]]] = {
    "spleen_ct_segmentation": spleen_config,
    "swin_unetr_btcv_segmentation": btcv_config,
    "wholeBody_ct_segmentation": whole_body_config,
}


def _labels(name: str, count: int) -> list[str]:
    if name.startswith("swin"):
        return list(BTCV_LABELS)
    return ["background", "spleen"] if count == 2 else ["background", *(f"segment_{n}" for n in range(1, count))]


def _metadata(name: str, network: dict[str, Any]) -> dict[str, Any]:
    count = network["out_channels"]
    shared = {"type": "image", "spatial_shape": [96, 96, 96], "dtype": "float32", "is_patch_data": True}
    image = {**shared, "format": "hounsfield", "modality": "CT", "num_channels": 1, "value_range": [0, 1],
             "channel_def": {"0": "image"}}  # fmt: skip
    channels = {str(number): label for number, label in enumerate(_labels(name, count))}
    pred = {**shared, "format": "segmentation", "num_channels": count, "value_range": [0, 1], "channel_def": channels}
    return {
        "version": "0.5.9",
        "monai_version": "1.4.0",
        "name": name.replace("_", " "),
        "task": "segmentation",
        "description": "A network with random weights for tests",
        "authors": "MONAI team",
        "copyright": "Copyright (c) MONAI Consortium",
        "data_source": "generated",
        "references": ["A reference"],
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred}},
    }


def write_zoo_bundle(name: str, path: Path, config: dict[str, Any] | None = None) -> Path:
    """Write a bundle with random weights whose classes all occur in its predictions.

    Args:
        name: one of `CONFIGS`.
        path: the folder.
        config: the inference config; None takes that of `CONFIGS`.
    """
    config = CONFIGS[name]() if config is None else config
    for part in ("configs", "models", "docs"):
        (path / part).mkdir(parents=True)
    network = config["network_def"]
    (path / "configs" / "inference.json").write_text(json.dumps(config, indent=4))
    (path / "configs" / "metadata.json").write_text(json.dumps(_metadata(name, network), indent=4))
    (path / "LICENSE").write_text("Apache License 2.0\n")
    torch.save(random_state(network), path / "models" / "model.pt")
    return path


def random_state(network: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return random weights, with running statistics of batch normalisation that are those of no network."""
    torch.manual_seed(0)
    arguments = {key: value for key, value in network.items() if key != "_target_"}
    built = getattr(nets, network["_target_"])(**arguments)
    state = built.state_dict()
    for key, value in state.items():
        if key.endswith("running_mean"):
            value.normal_(0, 0.1)
        elif key.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif key.endswith("weight") and value.ndim > 1:
            value.mul_(2)
    return state


def write_ct(path: Path, shape: tuple[int, ...] = (33, 20, 13), spacing: tuple[float, ...] = (0.75, 2.3, 4.0)) -> Path:
    """Write a CT of smooth noise around soft tissue in air, with flipped axes (LPS) and zeros.

    With 0.75 mm, every other voxel lies in the middle between two voxels of 1.5 mm.
    """
    random = np.random.default_rng(0)
    noise = sum(gaussian_filter(random.normal(size=shape), sigma) * sigma**1.5 * 300 for sigma in (1, 2, 4))
    axes = [np.linspace(-1, 1, size) for size in shape]
    distance = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")))
    array = np.where(distance < 0.9, noise + 40, -1000).round().clip(-1024, 1500).astype(np.int16)
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    affine[:3, 3] = 31.5, 20.25, -100
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def monai_labels(bundle: Path, scans: Path, out: Path) -> dict[str, np.ndarray]:
    """Return the label maps that MONAI's runner gives for `scans/imagesTs`, by the name of the scan.

    It does what `python -m monai.bundle run` does, in this process.
    """
    from monai.bundle import run

    file = bundle / "configs" / "inference.json"
    config = json.loads(file.read_text())
    override = {}
    if config["preprocessing"]["transforms"][0].get("reader") == "ITKReader" and find_spec("itk") is None:
        override["preprocessing#transforms#0#reader"] = "NibabelReader"
    run(
        run_id="run", init_id="initialize", final_id=None, config_file=str(file),
        meta_file=str(bundle / "configs" / "metadata.json"), bundle_root=str(bundle), dataset_dir=str(scans),
        output_dir=str(out), **override,
    )  # fmt: skip
    files = sorted(out.rglob("*_trans.nii.gz"))
    return {file.name.removesuffix("_trans.nii.gz"): np.asarray(nib.load(file).dataobj) for file in files}
