"""Read the folder of a model that nnU-Net 2 has trained, as data: plans.json, dataset.json and the checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from medseg import weights
from medseg.errors import BundleError, WeightsError, did_you_mean
from medseg.volumes.files import read_json
from medseg.weights.state_dict import check_claimed_sizes, strip_prefixes

PLANS, DATASET = "plans.json", "dataset.json"
CHECKPOINT = "checkpoint_final.pth"
# Trainers of nnU-Net 2.8.1 that build the network which plans.json describes. They differ in the training alone.
_EPOCHS = (1, 5, 10, 20, 50, 100, 250, 500, 750, 2000, 4000, 8000)
TRAINERS = frozenset(
    {
        "nnUNetTrainer", "nnUNetTrainerDA5", "nnUNetTrainerDA5ord0", "nnUNetTrainerDA5Segord0",
        "nnUNetTrainerDA5_10epochs", "nnUNetTrainerNoDA", "nnUNetTrainer_DASegOrd0",
        "nnUNetTrainer_DASegOrd0_NoMirroring", "nnUNetTrainer_noDummy2DDA", "nnUNetTrainerNoMirroring",
        "nnUNetTrainer_onlyMirror01", "nnUNetTrainer_onlyMirror01_1500ep", "nnUNetTrainer_onlyMirror01_DASegOrd0",
        "nnUNetTrainer_onlyMirror01_DA5", "nnUNetTrainer_warmup", "nnUNetTrainerCosAnneal", "nnUNetTrainerAdan",
        "nnUNetTrainerAdan1en3", "nnUNetTrainerAdan3en4", "nnUNetTrainerAdan1en1", "nnUNetTrainerAdanCosAnneal",
        "nnUNetTrainerAdam", "nnUNetTrainerAdam1en3", "nnUNetTrainerAdam3en4", "nnUNetTrainerVanillaAdam",
        "nnUNetTrainerVanillaAdam1en3", "nnUNetTrainerVanillaAdam3en4", "nnUNetTrainerDiceLoss",
        "nnUNetTrainerDiceCELoss_noSmooth", "nnUNetTrainerTopk10Loss", "nnUNetTrainerTopk10LossLS01",
        "nnUNetTrainerDiceTopK10Loss", "nnUNetTrainerCELoss", "nnUNetTrainerCELoss_5epochs",
        "nnUNetTrainerNoDeepSupervision", "nnUNetTrainer_probabilisticOversampling",
        "nnUNetTrainer_probabilisticOversampling_033", "nnUNetTrainer_probabilisticOversampling_010",
        "nnUNetTrainerBenchmark_5epochs", "nnUNetTrainerBenchmark_5epochs_noDataLoading", "nnUNet_Trainer_BS8",
        "nnUNetTrainer_1epoch", "nnUNetTrainerBN",
        *(f"nnUNetTrainer_{count}epochs" for count in _EPOCHS),
        *(f"nnUNetTrainer_{count}epochs_NoMirroring" for count in _EPOCHS),
    }
)  # fmt: skip
# The one trainer that changes the network: instance normalisation becomes batch normalisation.
BATCH_NORM_TRAINER = "nnUNetTrainerBN"
# Values that decide a prediction. If they were changed in plans.json after the training, the bundle's notes say so.
_DECISIVE = (
    "spacing", "patch_size", "normalization_schemes", "use_mask_for_norm", "resampling_fn_data",
    "resampling_fn_data_kwargs", "resampling_fn_probabilities", "resampling_fn_probabilities_kwargs",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class NNUNetModel:
    """A trained model of nnU-Net 2.

    Args:
        path: its folder.
        plans: content of plans.json.
        dataset: content of dataset.json.
        configuration: the configuration of the plans that was trained, with what it inherits.
        configuration_name: e.g. `3d_fullres`.
        trainer: name of the trainer's class.
        mirror_axes: axes of the tile that test-time mirroring may flip.
        folds: state dict of the network per fold, by the fold's name.
        files: checkpoint of each fold.
        epochs: epochs that each checkpoint was trained for; 0 if it is not stated.
        notes: what a user should know about the folder, one line each.
    """

    path: Path
    plans: Mapping[str, Any]
    dataset: Mapping[str, Any]
    configuration: Mapping[str, Any]
    configuration_name: str
    trainer: str
    mirror_axes: tuple[int, ...]
    folds: Mapping[str, Mapping[str, Tensor]] = field(repr=False)
    files: Mapping[str, Path]
    epochs: Mapping[str, int]
    notes: tuple[str, ...] = ()


def is_nnunet_folder(path: Path) -> bool:
    """Return True for the folder of a model of nnU-Net, or a folder of such folders."""
    is_model = any((path / name).exists() for name in (PLANS, "plans.pkl")) or any(path.glob("fold_*"))
    return is_model or any(path.glob(f"*/{PLANS}"))


def read_nnunet_folder(
    path: Path, folds: Sequence[str] = (), checkpoint: str = CHECKPOINT, trainer: str | None = None
) -> NNUNetModel:
    """Read a model's folder without running anything in it.

    Args:
        path: the folder with plans.json, dataset.json and fold_0, fold_1, ….
        folds: names of the folds, such as "0" or "all"; none takes every numbered fold, or else "all".
        checkpoint: name of the file in each fold.
        trainer: name of a trainer that nnU-Net 2.8.1 does not contain, if it builds the network of plans.json.

    Raises:
        BundleError: a file is missing or is not what nnU-Net writes, the configuration is a cascade, the trainer is
            unknown, the folds differ, or dataset.json is not that of the training.
        WeightsError: a checkpoint cannot be read, or contains Python objects besides data.
    """
    _check_folder(path)
    plans, dataset = (_read_object(path / name) for name in (PLANS, DATASET))
    for name, content, keys in (
        (PLANS, plans, ("configurations", "transpose_forward", "image_reader_writer")),
        (DATASET, dataset, ("labels",)),
    ):
        missing = [key for key in keys if key not in content]
        if missing:
            raise BundleError(
                f"{path / name}: not written by a known version of nnU-Net 2; the key {missing[0]!r} is missing"
            )
    files = _checkpoints(path, folds, checkpoint)
    loaded = {name: _read_checkpoint(file) for name, file in files.items()}
    facts = {name: _facts(content, files[name]) for name, content in loaded.items()}
    first = next(iter(facts.values()))
    for name, found in facts.items():
        if found != first:
            raise BundleError(
                f"{files[name]}: another training than the first fold's; found trainer, configuration and mirroring "
                f"axes {found}, expected {first}; choose folds with --fold"
            )
    trainer_name, configuration_name, mirror_axes = first
    if trainer_name not in TRAINERS and trainer_name != trainer:
        raise BundleError(
            f"{next(iter(files.values()))}: trained by {trainer_name}, which may build another network than plans.json "
            f"describes; found no trainer of nnU-Net 2.8.1 with this name; if it changes the training alone, add "
            f"--trainer {trainer_name}"
        )
    configuration = _configuration(plans, configuration_name, path / PLANS)
    notes = [note for name, content in loaded.items() for note in _changes(content, path, dataset, configuration_name,
                                                                           configuration, files[name])]  # fmt: skip
    return NNUNetModel(
        path, plans, dataset, configuration, configuration_name, trainer_name, mirror_axes,
        {name: content["network_weights"] for name, content in loaded.items()}, files,
        {name: int(content.get("current_epoch") or 0) for name, content in loaded.items()}, tuple(dict.fromkeys(notes)),
    )  # fmt: skip


def _check_folder(path: Path) -> None:
    if not path.is_dir():
        raise BundleError(f"{path}: no such folder; give the folder that contains {PLANS} and fold_0")
    if (path / PLANS).is_file():
        return
    inner = sorted(file.parent for file in path.glob(f"*/{PLANS}"))
    if inner:
        raise BundleError(
            f"{path}: contains {len(inner)} trained model(s), expected one; give {' or '.join(map(str, inner[:5]))}"
        )
    if any(path.glob("**/plans.pkl")):
        raise BundleError(
            f"{path}: found plans.pkl of nnU-Net 1, expected {PLANS} of nnU-Net 2; train the model with nnU-Net 2"
        )
    raise BundleError(f"{path}: found no {PLANS}; give the folder in which nnU-Net wrote {PLANS}, {DATASET} and fold_0")


def _read_object(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise BundleError(f"{file}: no such file; copy it from the folder of the training")
    content = read_json(file, BundleError)
    if not isinstance(content, dict):
        raise BundleError(f"{file}: must hold a JSON object; found {type(content).__name__}")
    return content


def _checkpoints(path: Path, folds: Sequence[str], checkpoint: str) -> dict[str, Path]:
    """Return the checkpoint of each fold."""
    known = sorted(
        (folder.name.removeprefix("fold_") for folder in path.glob("fold_*") if folder.is_dir()),
        key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name),
    )
    if not known:
        raise BundleError(f"{path}: found no folder fold_0, fold_1, … or fold_all; copy it from the training")
    wanted = list(dict.fromkeys(folds)) or [name for name in known if name.isdecimal()] or known
    for name in wanted:
        if name not in known:
            raise BundleError(f"{path}: found no fold_{name}; expected one of {', '.join(known)}; correct --fold")
    files = {name: path / f"fold_{name}" / checkpoint for name in wanted}
    for file in files.values():
        if not file.is_file():
            others = [other.name for other in sorted(file.parent.glob("checkpoint_*.pth"))]
            found = f"found {', '.join(others)}; choose one with --checkpoint, or" if others else "found no checkpoint;"
            raise BundleError(f"{file}: no such file; {found} choose finished folds with --fold")
    return files


def _read_checkpoint(file: Path) -> dict[str, Any]:
    content = weights.read_checkpoint(file)
    if not isinstance(content, dict):
        raise WeightsError(f"{file}: not a checkpoint of nnU-Net 2; found {type(content).__name__}, expected a mapping")
    for key in ("network_weights", "trainer_name", "init_args"):
        if key not in content:
            found = ", ".join(str(name) for name in list(content)[:5])
            raise WeightsError(
                f"{file}: not a checkpoint of nnU-Net 2; {key} is missing; found {found}; give the trained model's "
                "folder as nnU-Net wrote it"
            )
    state = content["network_weights"]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{file}: network_weights must hold tensors only; use the original file")
    check_claimed_sizes(state, file)
    return {**content, "network_weights": strip_prefixes(state)}


def _facts(content: Mapping[str, Any], file: Path) -> tuple[str, str, tuple[int, ...]]:
    """Return the trainer, the configuration and the mirroring axes of a checkpoint."""
    arguments = content["init_args"]
    configuration = arguments.get("configuration") if isinstance(arguments, Mapping) else None
    if not isinstance(configuration, str) or not isinstance(content["trainer_name"], str):
        raise WeightsError(f"{file}: states no configuration or no trainer; use the original file")
    axes = content.get("inference_allowed_mirroring_axes") or ()
    if not all(isinstance(axis, int) for axis in axes):
        raise WeightsError(f"{file}: inference_allowed_mirroring_axes must be whole numbers; found {axes!r}")
    return content["trainer_name"], configuration, tuple(axes)


def _configuration(plans: Mapping[str, Any], name: str, file: Path) -> dict[str, Any]:
    """Return a configuration with the values it inherits.

    Raises:
        BundleError: it does not exist, inherits from itself, or is a cascade.
    """
    configurations, chain, merged = plans["configurations"], [name], dict[str, Any]()
    while True:
        found = configurations.get(chain[-1])
        if not isinstance(found, Mapping):
            hint = did_you_mean(chain[-1], configurations) or f"; found {', '.join(configurations)}"
            raise BundleError(f"{file}: has no configuration {chain[-1]!r}, with which the weights were trained{hint}")
        merged = {**deepcopy(dict(found)), **merged}
        parent = found.get("inherits_from")
        if parent is None:
            break
        if parent in chain:
            raise BundleError(f"{file}: the configuration {parent!r} inherits from itself; restore the file")
        chain.append(str(parent))
    previous = merged.get("previous_stage")
    if previous:
        raise BundleError(
            f"{file}: {name} is a cascade, whose network also takes the segmentation of {previous}; medseg runs single "
            f"networks; import {previous} or 3d_fullres"
        )
    return merged


def _changes(
    content: Mapping[str, Any],
    path: Path,
    dataset: Mapping[str, Any],
    configuration_name: str,
    configuration: Mapping[str, Any],
    file: Path,
) -> list[str]:
    """Compare the folder's files with what the checkpoint was trained with; return what was changed.

    Raises:
        BundleError: the labels were changed, so that the classes would get wrong names.
    """
    arguments, notes = content["init_args"], []
    trained = arguments.get("dataset_json")
    if isinstance(trained, Mapping):
        for key in ("labels", "regions_class_order"):
            was, now = trained.get(key), dataset.get(key)
            if _plain(was) != _plain(now):
                raise BundleError(
                    f"{path / DATASET}: {key} was changed after the training of {file.parent.name}; found {now}, "
                    f"expected {was}; restore the file"
                )
    plans = arguments.get("plans")
    configurations = plans.get("configurations") if isinstance(plans, Mapping) else None
    if isinstance(configurations, Mapping) and configuration_name in configurations:
        before = _configuration({"configurations": configurations}, configuration_name, file)
        changed = [key for key in _DECISIVE if _plain(before.get(key)) != _plain(configuration.get(key))]
        if changed:
            notes.append(f"{PLANS} was changed after the training: {', '.join(changed)}")
    return notes


def _plain(value: Any) -> Any:
    """Return a value with lists for tuples, and items in the order of a JSON object."""
    if isinstance(value, Mapping):
        return [(str(key), _plain(each)) for key, each in value.items()]
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def dataset_number(name: str) -> str:
    """Return the name of a data set without nnU-Net's number: "Hippocampus" for "Dataset004_Hippocampus"."""
    return re.sub(r"^Dataset\d+_", "", name)
