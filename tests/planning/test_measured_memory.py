"""The estimates of memory are within 15 % of what whole processes of training and prediction take."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from planning.small_data_sets import write_case, write_manifest
from scipy import ndimage
from training.bundle_runs import environment

from medseg.bundle import promote
from medseg.planning import plan_bundle

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "wait4"), reason="measures with wait4")]
TOLERANCE = 0.15


def peak_bytes(command: Sequence[object]) -> int:
    """Run a command and return the largest resident memory of its process."""
    process = subprocess.Popen(
        [str(word) for word in command], env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    text = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, text[-3000:]
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def volumes(root: Path, shape: tuple[int, ...], spacing: tuple[float, ...], num_labels: int, modality: str) -> Path:
    """Write four cases of blocks of labels, and return their manifest."""
    rng = np.random.default_rng(0)
    cases = [f"case_{number}" for number in range(4)]
    for case in cases:
        coarse = rng.integers(0, num_labels + 1, [max(1, n // 8) for n in shape])
        label = coarse
        for axis, size in enumerate(shape):
            label = np.repeat(label, 8, axis=axis)[(slice(None),) * axis + (slice(0, size),)]
        label = np.pad(label, [(0, n - m) for n, m in zip(shape, label.shape, strict=True)]).astype(np.uint8)
        image = (rng.normal(0, 20, shape) + 3 * label).astype(np.float32)
        write_case(root, case, image, label, spacing)
    names = {"background": 0, **{f"structure {number}": number for number in range(1, num_labels + 1)}}
    return write_manifest(root, cases, names, channels=[{"name": "image", "modality": modality}])


def pictures(root: Path, size: int, num_labels: int) -> Path:
    """Write four RGB pictures with label maps, and return their folder, whose layout is understood."""
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for number in range(4):
        values = ndimage.zoom(rng.integers(0, num_labels + 1, (8, 8)), size // 8, order=0).astype(np.uint8)
        values.ravel()[: num_labels + 1] = np.arange(num_labels + 1)
        noise = rng.integers(0, 40, (size, size, 3))
        Image.fromarray((values[..., None] * 15 + noise).astype(np.uint8)).save(root / "images" / f"p{number}.png")
        Image.fromarray(values).save(root / "labels" / f"p{number}.png")
    return root


PLANS = {
    "3D, one structure": (lambda root: volumes(root, (64, 72, 56), (1.0, 1.0, 1.0), 1, "MR"), {"hours": 10.0}),
    "2D, RGB, 12 classes, UNet++": (lambda root: pictures(root, 256, 11), {"hours": 1.0, "network": "unetplusplus"}),
}


@pytest.mark.parametrize("name", PLANS)
def test_the_estimates_are_close_to_the_measured_memory(name, tmp_path):
    write, options = PLANS[name]
    data, bundle, run = tmp_path / "data", tmp_path / "bundle", tmp_path / "run"
    found = write(data)
    manifest = found if found.suffix else None
    planned = plan_bundle(data, bundle, manifest=manifest, device="cpu", memory="6GB", flops_per_second=1e11, **options)
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", bundle / "configs" / "train.json"]
    command += ["--bundle_root", bundle, "--output_dir", run, "--max_epochs", 2, "--val_interval", 2]
    measured = {"training": peak_bytes(command)}
    promote(bundle, run, None, bundle / "configs" / "manifest.yaml")
    first = sorted((data / "images").iterdir())[0]
    predict = [sys.executable, "-m", "medseg", "predict", bundle, first, "--out", tmp_path / "predicted"]
    measured["predicting one scan"] = peak_bytes([*predict, "--device", "cpu", "--backend", "torch"])
    for work, found_bytes in measured.items():
        estimated = planned.estimates[work].memory_bytes
        line = f"{name}, {work}: {estimated / 1e6:.0f} MB estimated, {found_bytes / 1e6:.0f} MB measured"
        print(line, planned.planned.plan.patch, planned.planned.plan.network["arguments"]["channels"])
        assert estimated == pytest.approx(found_bytes, rel=TOLERANCE), line
