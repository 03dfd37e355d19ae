"""Verify that the files of a bundle agree with each other and that its network runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from medseg.bundle.configs import network_component
from medseg.bundle.folder import BundleFolder
from medseg.bundle.golden import SAME_PRECISION, describe, ensemble_sha256, read_golden_sample
from medseg.bundle.int8_file import QUANTIZE_AGAIN, read_int8_model
from medseg.bundle.loading import load, load_network
from medseg.errors import MedsegError, one_line
from medseg.inference.backends.choice import has_openvino
from medseg.inference.backends.torch_backend import TorchBackend
from medseg.inference.preprocessing import preprocessing
from medseg.inference.slice_predictor import plane_plan
from medseg.networks.precision import has_fast_int8

REQUIRED_METADATA = (
    "schema", "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version", "task",
    "description", "authors", "copyright", "network_data_format", "name", "changelog", "intended_use", "references",
)  # fmt: skip

REQUIRED_OF_TENSORS = ("type", "format", "num_channels", "spatial_shape", "dtype", "value_range")


@dataclass(frozen=True)
class Check:
    """Result of one check."""

    name: str
    passed: bool
    message: str


def verify(path: str | Path) -> list[Check]:
    """Compare the files of a bundle with each other and run its network once. The configs are parsed, not run.

    The checks are: the plan; the metadata, with MONAI's schema and the plan; inference.json, with the template filled
    from the plan; the network of train.json, with the plan; the properties that MONAI requires of training and
    inference configs; the SHA-256 of the weights; the network's output for a tile; and its fp32 logits, with the golden
    sample; and the result in int8, if the bundle is quantized.

    Args:
        path: folder of the bundle.

    Returns:
        One result per check.

    Raises:
        BundleError: the folder is not a bundle.
    """
    folder = BundleFolder(Path(path))
    return [_run(name, check, folder) for name, check in _checks(_has_training(folder))]


def _has_training(folder: BundleFolder) -> bool:
    """Return False for a bundle without train.json whose network was trained by another bundle or program."""
    try:
        is_trained_here = folder.plan.regions is None and folder.plan.resampling is None
        return is_trained_here or (folder.path / "configs" / "train.json").is_file()
    except MedsegError:
        return True


def _checks(has_training: bool) -> Iterator[tuple[str, Callable[[BundleFolder], str]]]:
    yield "plan", lambda folder: f"{folder.plan.name}, digest {folder.plan.digest[:12]}"
    yield "metadata", _check_metadata
    yield "inference.json", _check_inference
    if has_training:
        yield "training network", _check_training_network
        yield "training properties", lambda folder: _check_properties(folder, "train")
    yield "inference properties", lambda folder: _check_properties(folder, "inference")
    if has_training:
        yield "evaluate.json", _check_evaluation
    yield "weights", lambda folder: f"sha256 {', '.join(digest[:12] for _, digest in folder.members)}"
    yield "network", _check_network
    yield "golden sample", _check_golden_sample
    yield "int8", _check_int8


def _run(name: str, check: Callable[[BundleFolder], str], folder: BundleFolder) -> Check:
    try:
        return Check(name, True, check(folder))
    except (MedsegError, _FailedCheckError) as error:
        return Check(name, False, str(error))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        # A bundle can be broken in ways that no check expects, and verification must report them.
        return Check(name, False, f"{type(error).__name__}: {one_line(error)}")


class _FailedCheckError(Exception):
    pass


def _check_metadata(folder: BundleFolder) -> str:
    metadata, plan = folder.metadata, folder.plan
    missing = [key for key in REQUIRED_METADATA if key not in metadata]
    if missing:
        raise _FailedCheckError(f"metadata.json: {', '.join(missing)} missing")
    if metadata["version"] not in metadata["changelog"]:
        raise _FailedCheckError(f"metadata.json: the changelog has no entry for version {metadata['version']}")
    formats = metadata["network_data_format"]
    for role, tensors in formats.items():
        for name, tensor in tensors.items():
            absent = [key for key in REQUIRED_OF_TENSORS if key not in tensor]
            if absent:
                raise _FailedCheckError(f"metadata.json: {role} {name}: {', '.join(absent)} missing")
    declared = formats["inputs"]["image"]["num_channels"], formats["outputs"]["pred"]["num_channels"]
    if declared != (plan.in_channels, plan.out_channels):
        raise _FailedCheckError(
            f"metadata.json: found {declared[0]} → {declared[1]} channels, expected {plan.in_channels} → "
            f"{plan.out_channels} as in the plan"
        )
    names = list(formats["outputs"]["pred"]["channel_def"].values())
    if plan.activation == "softmax" and names != plan.output_names:
        raise _FailedCheckError(
            f"metadata.json: found the output channels {names}, expected {plan.output_names} as in the plan"
        )
    return f"version {metadata['version']}"


def _check_inference(folder: BundleFolder) -> str:
    if folder.inference_differs_from_template():
        raise _FailedCheckError(
            "inference.json: differs from medseg's template filled from plan.json, so `monai.bundle run` and "
            "`medseg predict` may give different labels; medseg.bundle.apply_plan rewrites it"
        )
    return "equals the template filled from the plan"


def _check_training_network(folder: BundleFolder) -> str:
    found, expected = folder.read_json("configs/train.json").get("network_def"), network_component(folder.plan)
    if found != expected:
        raise _FailedCheckError(
            "train.json: network_def differs from the network of plan.json; medseg.bundle.apply_plan rewrites it"
        )
    return f"{folder.plan.network['name']}, as in the plan"


def _check_evaluation(folder: BundleFolder) -> str:
    overlay = folder.read_json("configs/evaluate.json")
    if "run" not in overlay:
        raise _FailedCheckError("evaluate.json: no `run`, so it would train")
    return "an overlay of train.json"


def _check_properties(folder: BundleFolder, kind: str) -> str:
    """Look up the required properties by their ids. MONAI's check_properties would build every component instead."""
    from monai.bundle import ConfigParser
    from monai.bundle.properties import InferProperties, TrainProperties
    from monai.utils import BundleProperty, BundlePropertyConfig

    def has(wanted: dict) -> bool:
        return wanted[BundlePropertyConfig.ID] in parser

    parser = ConfigParser(ConfigParser.load_config_file(str(folder.path / "configs" / f"{kind}.json")))
    wanted = {**(TrainProperties if kind == "train" else InferProperties)}
    missing = [p[BundleProperty.DESC] for p in wanted.values() if p[BundleProperty.REQUIRED] and not has(p)]
    if missing:
        raise _FailedCheckError(f"{kind}.json: missing: {missing[0].rstrip('.')}")
    for name, optional in wanted.items():
        refers = optional.get(BundlePropertyConfig.REF_ID)
        if refers and has({BundlePropertyConfig.ID: refers}) and not has(optional):
            raise _FailedCheckError(f"{kind}.json: {name}: expected at {optional[BundlePropertyConfig.ID]}")
    return f"{kind}.json has all properties that MONAI requires"


def _check_network(folder: BundleFolder) -> str:
    from monai.data import MetaTensor

    plan = folder.plan
    network = load_network(folder.path)
    noise = torch.randn(plan.in_channels, *plan.tile, generator=torch.Generator().manual_seed(0))
    if plan.resampling is not None:
        volume = noise if plan.slice_axis is None else noise[:, None]
        meta = {"original_affine": torch.eye(4, dtype=torch.float64), "spatial_shape": torch.tensor(volume.shape[1:])}
        from medseg.inference import ExactPreprocessd

        ExactPreprocessd("image", plan)({"image": MetaTensor(volume, meta=meta)})
    else:
        image_plan = plan if plan.slice_axis is None else plane_plan(plan)
        preprocessing(image_plan)(MetaTensor(noise, affine=torch.eye(4)))  # fails for an unknown orientation or scheme
    tile = noise[None]
    with torch.inference_mode():
        found = tuple(network(tile).shape)
    wanted = (1, plan.out_channels, *plan.tile)
    if found != wanted:
        raise _FailedCheckError(f"logits of a tile {tuple(tile.shape)}: found the shape {found}, expected {wanted}")
    return f"{tuple(tile.shape)} → {found}"


def _check_golden_sample(folder: BundleFolder) -> str:
    sample = read_golden_sample(folder)
    if sample is None:
        return "none, so low precision is refused; promoting weights writes one"
    digest = ensemble_sha256([digest for _, digest in folder.members])
    if sample.weights_sha256 != digest:
        raise _FailedCheckError("golden.npz: written for other weights than the bundle's; promote the weights again")
    network = TorchBackend(load_network(folder.path), torch.device("cpu"))
    objection = sample.objection_to(network, SAME_PRECISION)
    if objection:
        raise _FailedCheckError(f"golden.npz: the weights give another result than at promotion: {objection}")
    return f"fp32 agrees; {describe(sample, folder.plan)}"


def _check_int8(folder: BundleFolder) -> str:
    found = read_int8_model(folder)
    if found is None:
        return "not quantized; `medseg bundle quantize` makes prediction on CPUs faster"
    if list(found.weights_sha256) != [digest for _, digest in folder.members]:
        raise _FailedCheckError(f"int8.json: measured for other weights than the bundle's; {QUANTIZE_AGAIN}")
    if not (has_openvino() and has_fast_int8()):
        return "cannot be checked here, because openvino or the CPU's instructions for int8 are missing"
    reason = load(folder.path, device="cpu", precision="int8").backend_reason  # refuses another result
    return f"{reason}; measured: {found.measured.get('data')}, Dice lost {found.measured.get('dice_lost')}"
