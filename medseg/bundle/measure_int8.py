"""Prepare a bundle for prediction in int8, and refuse it if that costs accuracy or saves no time."""

from __future__ import annotations

import heapq
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from medseg.bundle.fingerprint import plan_of_crops
from medseg.bundle.folder import RECORD, BundleFolder
from medseg.bundle.golden import GoldenSample, Tolerance, ensemble_sha256, read_golden_sample
from medseg.bundle.int8_file import MOST, Int8Model, write_int8_model
from medseg.bundle.loading import load_network, predictor_class
from medseg.datasets import Manifest, case_files, read_manifest, replace_values
from medseg.errors import BundleError, OptionError
from medseg.evaluation.overlap import case_dice
from medseg.evaluation.statistics import ClusterBootstrap, Estimate
from medseg.inference import Predictor
from medseg.inference.backends.openvino_backend import measured_ranges
from medseg.inference.backends.quantization import Ranges
from medseg.inference.backends.torch_backend import Backend
from medseg.networks.precision import Precision, has_fast_bf16, has_fast_int8
from medseg.plan import Plan
from medseg.versions import software_versions
from medseg.volumes import read_label_map

# Tiles on which ranges are measured, and how many of one case.
NUM_TILES, TILES_PER_CASE = 24, 2
# Mean Dice that int8 may cost.
MAX_LOSS = 0.001
# A tile must be computed so many times faster, because another machine may gain less.
LEAST_SPEEDUP = 1.05
REPEATS = 7


@dataclass(frozen=True)
class Quantization:
    """State what int8 costs in Dice and saves in time.

    Args:
        num_layers: convolutions that are computed in int8, of all networks together.
        data: data set and fold.
        dice: mean Dice of the fold's cases, by precision.
        lost: fp32 minus int8, with its interval.
        is_seen: True if the weights were trained on these cases.
        speedup: time of a tile in the precision that would be used otherwise, divided by that in int8.
        other: that precision.
        golden_difference: from fp32 on the golden sample.
    """

    num_layers: int
    data: str
    dice: Mapping[Precision, float]
    lost: Estimate
    is_seen: bool
    speedup: float
    other: Precision
    golden_difference: Tolerance

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for the bundle."""
        low, high = self.lost.low, self.lost.high
        return {
            "data": self.data,
            "cases": self.lost.n,
            "patients": self.lost.patients,
            "trained_on_these_cases": self.is_seen,
            "dice": {name: round(value, 5) for name, value in self.dice.items()},
            "dice_lost": round(self.lost.value, 5),
            "dice_lost_interval": [round(low, 5), round(high, 5)] if np.isfinite([low, high]).all() else None,
            "times_as_fast_as": {self.other: round(self.speedup, 2)},
            "layers": self.num_layers,
        }


def quantize(
    bundle: str | Path, data: str | Path, manifest: str | Path | None = None, fold: int | str | None = None
) -> Quantization:
    """Measure what a bundle needs for int8, and write it to `models/int8.json` if it costs nothing and saves time.

    The ranges of the maps inside the network are measured on training cases. Then the fold's validation cases are
    predicted in fp32 and in int8. Nothing is written if the mean Dice is more than 0.001 lower, or if a tile is not
    computed faster than in bf16 (or fp32, where that is faster than bf16). The time is CPU time, which other programs
    on the machine change little.

    Args:
        bundle: folder of the bundle, with its weights.
        data: folder of the data set. Cases whose files are missing are left out, with a warning.
        manifest: name or file of the data set's manifest; by default that of the bundle's train.json.
        fold: the fold whose cases are not used for the ranges but for the Dice; by default the one that the training
            left out. The weights may have seen its cases: then the loss is that on cases they were trained on.

    Raises:
        BundleError: int8 costs too much or saves nothing, or the bundle has no golden sample or no fold.
        OptionError: the CPU has no instructions for int8.
        BackendError: openvino is not installed, or cannot convert the network.
        ManifestError: no case is there.
    """
    if not has_fast_int8():
        raise OptionError(
            "quantizing measures int8, for which this CPU has no VNNI or AMX instructions; use one that has them"
        )
    folder = BundleFolder(Path(bundle))
    described = read_manifest(folder.manifest if manifest is None else manifest)
    own_fold = _fold_of_training(folder)
    fold = own_fold if fold is None else fold
    if fold is None:
        raise BundleError(
            f"{folder.path}: the weights were trained on all cases; name the fold to measure the Dice on with --fold "
            "(the loss of cases that the weights have seen)"
        )
    files = folder.members
    digests = [digest for _, digest in files]
    sample = read_golden_sample(folder)
    if sample is None or sample.weights_sha256 != ensemble_sha256(digests):
        raise BundleError(f"{folder.path}: no golden sample of these weights; promote the weights again")
    networks = [load_network(folder.path, file) for file, _ in files]
    plan = folder.plan if folder.plan.regions is None else plan_of_crops(folder.plan, described)[0]
    tiles = calibration_tiles(networks[0], plan, case_files(described, data, fold, "training", missing="skip"))
    ranges = [measured_ranges(network, tiles) for network in networks]
    if not all(ranges):
        raise BundleError(f"{folder.path}: the network has no convolution that can be computed in int8; use bf16")
    quantization = _measure(folder, networks, plan, ranges, sample, described, data, fold, str(fold) != str(own_fold))
    _check(folder, quantization)
    provenance = {"versions": software_versions(), "created": datetime.now(UTC).isoformat(timespec="seconds")}
    measured = {**quantization.to_dict(), "tiles": len(tiles), **provenance}
    write_int8_model(folder, Int8Model(digests, ranges, quantization.golden_difference, measured))
    return quantization


def calibration_tiles(network: nn.Module, plan: Plan, cases: Sequence[Mapping[str, Any]]) -> list[torch.Tensor]:
    """Return tiles (1, C, *tile) of some cases as the network is given them: those of a case that vary most.

    Tiles of air say nothing about the values inside a network.

    Args:
        network: gives the number of features; it is not run.
        plan: of the network.
        cases: as `case_files` returns them.
    """
    num_cases = -(-NUM_TILES // TILES_PER_CASE)
    model = _predictor([network], plan, "fp32", (), backend="torch", batch_size=1)
    tiles: list[torch.Tensor] = []
    for case in cases[:: max(1, len(cases) // num_cases)][:num_cases]:
        recorder = _TileRecorder(model.backend, plan.out_channels)
        usual, model.backend = model.backend, recorder
        model.predict(case["image"])
        model.backend = usual
        tiles += [tile for *_, tile in recorder.kept]
    return tiles


class _TileRecorder:
    """A backend that keeps some of its tiles and returns zeros.

    Args:
        backend: the one whose features are returned as zeros.
        num_channels: number of logits.
    """

    name = "recorder"
    precision: Precision = "fp32"

    def __init__(self, backend: Backend, num_channels: int) -> None:
        self.device = backend.device
        self.head_weight, self.head_bias = backend.head_weight, backend.head_bias
        self.num_channels = num_channels if self.head_weight is None else self.head_weight.shape[1]
        self.kept: list[tuple[float, int, torch.Tensor]] = []
        self.numbers = count()

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        """See `Backend`."""
        for tile in tiles.split(1):
            entry = (float(tile.std()), next(self.numbers), tile.clone())  # equal tiles are ordered by their number
            push = heapq.heappush if len(self.kept) < TILES_PER_CASE else heapq.heappushpop
            push(self.kept, entry)
        return tiles.new_zeros(len(tiles), self.num_channels, *tiles.shape[2:])


def _predictor(
    networks: Sequence[nn.Module], plan: Plan, precision: Precision, ranges: Sequence[Ranges], **options: Any
) -> Predictor:
    options = {"backend": "openvino", **options}
    return predictor_class(plan)(networks, plan, "cpu", precision=precision, int8_ranges=ranges, **options)


def _fold_of_training(folder: BundleFolder) -> int | str | None:
    """Return the fold that the training left out; None if it is not known or there is none."""
    if not (folder.path / RECORD).is_file():
        return None
    fold = folder.read_json(RECORD).get("settings", {}).get("fold", "all")
    return None if fold == "all" else fold


def _measure(
    folder: BundleFolder,
    networks: Sequence[nn.Module],
    plan: Plan,
    ranges: Sequence[Ranges],
    sample: GoldenSample,
    manifest: Manifest,
    data: str | Path,
    fold: int | str,
    is_seen: bool,
) -> Quantization:
    """Compare int8 with the other precisions; see `quantize`."""
    precisions: tuple[Precision, ...] = ("fp32", "int8")
    models = {name: _predictor(networks, plan, name, ranges) for name in precisions}
    other: Precision = "bf16" if has_fast_bf16() else "fp32"
    rival = models[other] if other in models else _predictor(networks, plan, other, ())
    seconds = _cpu_seconds({"int8": models["int8"].backend, "other": rival.backend}, sample.image)
    cases = case_files(manifest, data, fold, "validation", missing="skip")
    dice: dict[Precision, list[float]] = {name: [] for name in models}
    for case in cases:
        reference = np.asarray(read_label_map(case["label"]).array)
        if manifest.file_values:
            reference = replace_values(reference, manifest.file_values, np.int64)
        for name, model in models.items():
            values = case_dice(model.predict(case["image"]).array, reference, list(plan.structures.values()))
            dice[name].append(float(np.nanmean(values)) if np.isfinite(values).any() else np.nan)
    patient_of = {case.id: case.patient for case in manifest.cases}
    patients = [patient_of[case["case"]] for case in cases]
    lost = ClusterBootstrap(patients).mean(np.subtract(dice["fp32"], dice["int8"]), patients)
    return Quantization(
        sum(map(len, ranges)),
        f"{manifest.name}, fold {fold}",
        {name: float(np.nanmean(values)) for name, values in dice.items()},
        lost,
        is_seen,
        seconds["other"] / seconds["int8"],
        other,
        sample.difference_of(models["int8"].backend),
    )


def _cpu_seconds(backends: Mapping[str, Backend], tile: torch.Tensor) -> dict[str, float]:
    """Return the least CPU time of a tile with each backend; they alternate, after a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in backends}
    for repeat in range(REPEATS + 1):
        for name, backend in backends.items():
            begin = time.process_time()
            backend(tile)
            if repeat:
                seconds[name].append(time.process_time() - begin)
    return {name: min(values) for name, values in seconds.items()}


def _check(folder: BundleFolder, found: Quantization) -> None:
    """Raise BundleError if int8 must not be offered."""
    refused = "; nothing was written, and `auto` uses another precision"
    # Not <=, because the loss is NaN if no case has a structure.
    if not found.lost.value <= MAX_LOSS:
        raise BundleError(
            f"{folder.path}: int8 lowers the mean Dice of {found.data} from {found.dice['fp32']:.4f} to "
            f"{found.dice['int8']:.4f}, by more than {MAX_LOSS}{refused}"
        )
    difference = found.golden_difference
    if difference.logits > MOST.logits or difference.labels > MOST.labels:
        raise BundleError(
            f"{folder.path}: int8 changes the logits of the golden sample by {difference.logits:.3f} standard "
            f"deviations and {difference.labels:.2%} of the labels; at most {MOST.logits} and {MOST.labels:.0%} are "
            f"allowed{refused}"
        )
    if found.speedup < LEAST_SPEEDUP:
        raise BundleError(
            f"{folder.path}: int8 is {found.speedup:.2f} times as fast as {found.other} on this CPU, less than "
            f"{LEAST_SPEEDUP}{refused}"
        )
