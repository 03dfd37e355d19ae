"""Measure how much a network gains on one side of a head from having been trained on the other side.

    python benchmarks/hippocampus_leak.py DATA --work FOLDER [--seeds 3] [--epochs 20]

The Decathlon's hippocampus cases 2k-1 and 2k are the two sides of one head (`hippocampus_pairs.py`). Of the 208 cases
outside the test fold, 52 heads have both sides. For each seed one side of each of them, drawn at random, is a test
case. The same network is then trained twice with equal budgets on 104 cases: once with the 52 partners of the test
cases and 52 other cases, drawn at random; once with the 104 other cases, none of which is a partner. Both networks
predict the 52 test cases.

The network is a strided U-Net of 12 to 96 channels, trained by the bundle's train.json with batch Dice, clipped
gradients and weak deformation. Finished trainings in FOLDER are not repeated. The table shows the differences of the
Dice (with partners - without), with 95 % bootstrap intervals over heads; each head is the mean of its seeds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import yaml

from medseg import weights
from medseg.datasets import Manifest, case_files, fold_cases, read_manifest
from medseg.evaluation import case_dice
from medseg.inference import Predictor
from medseg.networks import create
from medseg.plan import Plan
from medseg.volumes import read_label_map

BUNDLE = Path(__file__).parents[1] / "bundles" / "hippocampus_unet3d_segmentation"
CHANNELS = [12, 24, 48, 96]
STRUCTURES = ("anterior", "posterior")
RECIPE = {
    "network_def": {
        "_target_": "medseg.networks.create",
        "name": "unet_isensee2021",
        "in_channels": 1,
        "out_channels": 3,
        "channels": CHANNELS,
    },
    "loss#batch_dice": True,
    "update#max_grad_norm": 12.0,
    "train#random_transforms#deform#prob": 0.3,
    "train#random_transforms#deform#rotation_range": 0.2,
    "train#random_transforms#deform#scale_range": [0.9, 1.1],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with images/ and labels/ of the Decathlon's Task 04")
    parser.add_argument("--work", type=Path, required=True, help="folder for trainings")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    arguments = parser.parse_args()
    manifest = read_manifest("hippocampus")
    dice: dict[tuple[int, bool], dict[str, list[float]]] = {}
    for seed in range(arguments.seeds):
        for has_partners in (True, False):
            test, training = draw(manifest, seed, has_partners)
            name = f"seed_{seed}_{'with' if has_partners else 'without'}"
            path = write_manifest(manifest, test, training, arguments.work / f"{name}.yaml")
            run = arguments.work / name
            if not (run / "model.pt").is_file():
                train(path, arguments.data, run, seed, arguments.epochs)
            dice[seed, has_partners] = test_dice(run / "model.pt", path, arguments.data)
    print_table(manifest, dice)


def draw(manifest: Manifest, seed: int, has_partners: bool) -> tuple[list[str], list[str]]:
    """Return the test cases and the training cases of one training."""
    heads: dict[str, list[str]] = {}
    for case in fold_cases(manifest, "all", "training"):
        heads.setdefault(head_of(manifest)[case], []).append(case)
    pairs = sorted(sorted(sides) for sides in heads.values() if len(sides) == 2)
    others = sorted(sides[0] for sides in heads.values() if len(sides) == 1)
    random = np.random.default_rng(seed)
    sides = random.integers(0, 2, len(pairs))
    test = [pair[side] for pair, side in zip(pairs, sides, strict=True)]
    partners = [pair[1 - side] for pair, side in zip(pairs, sides, strict=True)]
    kept = random.choice(others, len(others) - len(partners), replace=False).tolist()
    return test, sorted(partners + kept) if has_partners else others


def head_of(manifest: Manifest) -> dict[str, str]:
    """Return the head of each case."""
    return {case.id: case.patient for case in manifest.cases}


def write_manifest(manifest: Manifest, test: list[str], training: list[str], path: Path) -> Path:
    """Write a manifest whose fold 1 is the test cases and whose fold 2 is the training cases."""
    content = yaml.safe_load(manifest.path.read_text(encoding="utf-8"))
    cases = [case for case in content["cases"] if case["id"] in {*test, *training}]
    content |= {"cases": cases, "folds": {1: test, 2: training}, "test_fold": None}
    content.pop("fold_sets", None)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def train(manifest: Path, data: Path, run: Path, seed: int, epochs: int) -> None:
    """Train the bundle with the recipe of this study."""
    overlay = run.parent / "recipe.json"
    overlay.write_text(json.dumps(RECIPE), encoding="utf-8")
    configs = [str(BUNDLE / "configs" / "train.json"), str(overlay)]
    options = {
        "config_file": str(configs), "meta_file": BUNDLE / "configs" / "metadata.json", "bundle_root": BUNDLE,
        "manifest": manifest, "dataset_dir": data, "output_dir": run, "fold": 1, "seed": seed, "max_epochs": epochs,
        "val_interval": epochs, "checkpoint_interval": epochs,
    }  # fmt: skip
    command = [sys.executable, "-m", "monai.bundle", "run"]
    command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
    subprocess.run(command, check=True)


def test_dice(file: Path, manifest: Path, data: Path) -> dict[str, list[float]]:
    """Return the Dice of both structures for every test case."""
    content = json.loads((BUNDLE / "configs" / "plan.json").read_text(encoding="utf-8"))
    content["network"] = {"name": RECIPE["network_def"]["name"], "arguments": {"channels": CHANNELS}}  # type: ignore[index]
    network = create("unet_isensee2021", in_channels=1, out_channels=3, channels=CHANNELS)
    weights.load(network, file)
    content.pop("schema_version")
    model = Predictor(network, Plan(**content), "cpu", backend="torch")
    found = {}
    for record in case_files(manifest, data, fold=1, part="validation"):
        reference = read_label_map(record["label"]).array
        found[record["case"]] = case_dice(model.predict(record["image"]).array, reference, [1, 2])
    return found


def print_table(manifest: Manifest, dice: dict[tuple[int, bool], dict[str, list[float]]]) -> None:
    """Print the means of each training and the differences with their intervals."""
    seeds = sorted({seed for seed, _ in dice})
    print("\n| seed | training cases | anterior | posterior |\n|---|---|---:|---:|")
    for (seed, has_partners), cases in dice.items():
        means = np.mean(list(cases.values()), axis=0)
        print(f"| {seed} | {'with' if has_partners else 'without'} partners | {means[0]:.4f} | {means[1]:.4f} |")
    heads = head_of(manifest)
    by_head: dict[str, list[np.ndarray]] = {}
    for seed in seeds:
        for case, values in dice[seed, True].items():
            difference = np.subtract(values, dice[seed, False][case])
            by_head.setdefault(heads[case], []).append(np.append(difference, difference.mean()))
        differences = np.mean([dice[seed, True][case] for case in dice[seed, True]], 0)
        differences -= np.mean([dice[seed, False][case] for case in dice[seed, True]], 0)
        print(f"seed {seed}: difference {differences[0]:+.4f} / {differences[1]:+.4f}")
    table = np.array([np.mean(values, axis=0) for values in by_head.values()])
    random = np.random.default_rng(0)
    means = table[random.integers(0, len(table), (10_000, len(table)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    for column, name in enumerate((*STRUCTURES, "mean of both")):
        print(f"{name}: {table[:, column].mean():+.4f} ({low[column]:+.4f} to {high[column]:+.4f}), {len(table)} heads")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
