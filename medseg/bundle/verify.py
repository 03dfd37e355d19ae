"""Checking that a bundle keeps its promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from monai.bundle.properties import InferProperties, TrainProperties
from monai.data import MetaTensor
from monai.utils import BundleProperty, BundlePropertyConfig

from medseg.bundle.configs import network_component
from medseg.bundle.folder import BundleFolder
from medseg.bundle.golden import SAME_PRECISION, describe, read_golden_sample
from medseg.bundle.loading import load_network
from medseg.errors import MedsegError, one_line
from medseg.inference import preprocessing
from medseg.inference.backends.torch_backend import TorchBackend
from medseg.inference.slice_predictor import plane_plan

REQUIRED_METADATA = (
    "schema", "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version", "task",
    "description", "authors", "copyright", "network_data_format", "name", "changelog", "intended_use", "references",
)  # fmt: skip

REQUIRED_OF_TENSORS = ("type", "format", "num_channels", "spatial_shape", "dtype", "value_range")


@dataclass(frozen=True)
class Check:
    """One promise, whether it is kept, and what was found."""

    name: str
    passed: bool
    message: str


def verify(path: str | Path) -> list[Check]:
    """Check a bundle's files against each other and run its network once.

    The configs are parsed, not run. Checks: the plan, the metadata against MONAI's schema and the plan, the properties
    MONAI requires of training and inference configs, inference.json against the template, the weights' sha256 and
    fit, the network's output on a tile, and its agreement with the golden sample in fp32.

    Raises:
        BundleError: the folder is not a bundle at all.
    """
    folder = BundleFolder(Path(path))
    return [_run(name, check, folder) for name, check in _checks(_has_training(folder))]


def _has_training(folder: BundleFolder) -> bool:
    """Return False for a bundle whose network was trained on crops by another bundle, and which has no train.json."""
    try:
        return folder.plan.regions is None or (folder.path / "configs" / "train.json").is_file()
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
    yield "weights", lambda folder: f"sha256 {folder.checked_weights()[1][:12]}"
    yield "network", _check_network
    yield "golden sample", _check_golden_sample


def _run(name: str, check: Callable[[BundleFolder], str], folder: BundleFolder) -> Check:
    try:
        return Check(name, True, check(folder))
    except (MedsegError, _BrokenPromiseError) as error:
        return Check(name, False, str(error))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        # a bundle can be broken in ways nobody listed, and naming them is what verification is for
        return Check(name, False, f"{type(error).__name__}: {one_line(error)}")


class _BrokenPromiseError(Exception):
    pass


def _check_metadata(folder: BundleFolder) -> str:
    metadata, plan = folder.metadata, folder.plan
    missing = [key for key in REQUIRED_METADATA if key not in metadata]
    if missing:
        raise _BrokenPromiseError(f"metadata.json lacks {', '.join(missing)}")
    if metadata["version"] not in metadata["changelog"]:
        raise _BrokenPromiseError(f"metadata.json: changelog has no entry for version {metadata['version']}")
    formats = metadata["network_data_format"]
    for role, tensors in formats.items():
        for name, tensor in tensors.items():
            absent = [key for key in REQUIRED_OF_TENSORS if key not in tensor]
            if absent:
                raise _BrokenPromiseError(f"metadata.json: {role} {name} lacks {', '.join(absent)}")
    declared = formats["inputs"]["image"]["num_channels"], formats["outputs"]["pred"]["num_channels"]
    if declared != (plan.in_channels, plan.out_channels):
        raise _BrokenPromiseError(
            f"metadata.json declares {declared[0]} → {declared[1]} channels, "
            f"the plan {plan.in_channels} → {plan.out_channels}"
        )
    names = list(formats["outputs"]["pred"]["channel_def"].values())
    if plan.activation == "softmax" and names != plan.output_names:
        raise _BrokenPromiseError(f"metadata.json names the output channels {names}, the plan {plan.output_names}")
    return f"version {metadata['version']}"


def _check_inference(folder: BundleFolder) -> str:
    if folder.inference_differs_from_template():
        raise _BrokenPromiseError(
            "inference.json: differs from medseg's template filled from plan.json, so `monai.bundle run` and "
            "`medseg predict` may give different labels; medseg.bundle.apply_plan rewrites it"
        )
    return "equals the template filled from the plan"


def _check_training_network(folder: BundleFolder) -> str:
    found, expected = folder.read_json("configs/train.json").get("network_def"), network_component(folder.plan)
    if found != expected:
        raise _BrokenPromiseError(
            "train.json: network_def differs from the network of plan.json; medseg.bundle.apply_plan rewrites it"
        )
    return f"{folder.plan.network['name']}, as in the plan"


def _check_evaluation(folder: BundleFolder) -> str:
    overlay = folder.read_json("configs/evaluate.json")
    if "run" not in overlay:
        raise _BrokenPromiseError("evaluate.json has no run, so it would train")
    return "an overlay of train.json"


def _check_properties(folder: BundleFolder, kind: str) -> str:
    """Look the properties up by id: MONAI's own check_properties would build every component, data set included."""
    parser = ConfigParser(ConfigParser.load_config_file(str(folder.path / "configs" / f"{kind}.json")))
    wanted = {**(TrainProperties if kind == "train" else InferProperties)}
    missing = [p[BundleProperty.DESC] for p in wanted.values() if p[BundleProperty.REQUIRED] and not _has(parser, p)]
    if missing:
        raise _BrokenPromiseError(f"{kind}.json lacks the {missing[0].rstrip('.')}")
    for name, optional in wanted.items():
        refers = optional.get(BundlePropertyConfig.REF_ID)
        if refers and _has(parser, {BundlePropertyConfig.ID: refers}) and not _has(parser, optional):
            raise _BrokenPromiseError(f"{kind}.json keeps {name} elsewhere than at {optional[BundlePropertyConfig.ID]}")
    return f"all that MONAI requires of {kind}.json"


def _has(parser: ConfigParser, wanted: dict) -> bool:
    return wanted[BundlePropertyConfig.ID] in parser


def _check_network(folder: BundleFolder) -> str:
    plan = folder.plan
    network = load_network(folder.path)
    noise = torch.randn(plan.in_channels, *plan.tile, generator=torch.Generator().manual_seed(0))
    image_plan = plan if plan.slice_axis is None else plane_plan(plan)  # of what the network is given
    preprocessing(image_plan)(MetaTensor(noise, affine=torch.eye(4)))  # an orientation or scheme nobody knows raises
    tile = noise[None]
    with torch.inference_mode():
        found = tuple(network(tile).shape)
    wanted = (1, plan.out_channels, *plan.tile)
    if found != wanted:
        raise _BrokenPromiseError(f"a tile {tuple(tile.shape)} gave logits {found}, expected {wanted}")
    return f"{tuple(tile.shape)} → {found}"


def _check_golden_sample(folder: BundleFolder) -> str:
    sample = read_golden_sample(folder)
    if sample is None:
        return "none, so low precision is refused; promoting weights makes one"
    digest = folder.checked_weights()[1]
    if sample.weights_sha256 != digest:
        raise _BrokenPromiseError("was made with other weights than the bundle's; promote the weights again")
    network = TorchBackend(load_network(folder.path), torch.device("cpu"))
    objection = sample.objection_to(network, SAME_PRECISION)
    if objection:
        raise _BrokenPromiseError(f"fp32 gives another result than when it was made: {objection}")
    return f"fp32 agrees; {describe(sample, folder.plan)}"
