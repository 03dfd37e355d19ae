"""Segment a generated volume that is larger than memory, and report the peak memory of the process.

The volume is an OME-Zarr image of noise with bright cylinders, stored without compression. The first process is killed
with SIGKILL as soon as it has written half of the layers; a second one goes on. The network smooths over 3×3×3 voxels
and compares with zero, so that reading, normalising, blending and writing dominate. Some sub-volumes are then segmented
in memory, from the same tiles and with the mean and the standard deviation of the whole volume. Their labels are
compared voxel by voxel, except near the faces, which tiles outside the sub-volume cover, too.

    python benchmarks/measure_large_volume.py FOLDER [--shape 2048 1024 1024] [--max-ram 4GB] [--keep]

FOLDER needs the size of the volume (4 bytes per voxel) and a fifth more. It is emptied at the end.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

CHUNK, TILE, SHARED = 64, 128, 16  # SHARED voxels of neighbouring tiles overlap
STEP = TILE - SHARED
SUB_VOLUMES = 5


def generate(folder: Path, shape: tuple[int, ...]) -> Path:
    """Write the volume layer by layer, and return its path."""
    import zarr

    path = folder / "volume.ome.zarr"
    group = zarr.create_group(str(path), zarr_format=3)
    stored = group.create_array("0", shape=shape, chunks=(CHUNK,) * 3, dtype="float32", compressors=None, fill_value=0)
    random = np.random.default_rng(0)
    noise = random.normal(1000, 100, (CHUNK, *shape[1:])).astype(np.float32)
    y, x = np.ogrid[: shape[1], : shape[2]]
    for start in range(0, shape[0], CHUNK):
        layer = np.roll(noise, start * 7919, axis=2)[: min(CHUNK, shape[0] - start)]
        centre = random.integers(0, shape[1:])
        layer[:, (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < CHUNK**2] += 1000
        stored[start : start + len(layer)] = layer
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    steps = [{"type": "scale", "scale": [1.0, 0.5, 0.5]}]
    image = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": steps}]}
    group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    return path


def predictor(normalization: dict[str, Any], max_ram: str | None) -> Any:
    """Return a predictor with the smoothing network and the normalisation."""
    import torch

    from medseg.inference import Predictor
    from medseg.plan import Plan

    class SmoothThreshold(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for axis in (2, 3, 4):
                smooth, length = x.clone(), x.shape[axis] - 1
                smooth.narrow(axis, 1, length).add_(x.narrow(axis, 0, length))
                smooth.narrow(axis, 0, length).add_(x.narrow(axis, 1, length))
                x = smooth
            return torch.cat([-x, x], 1)

    plan = Plan(
        name="threshold_segmentation", spatial_dims=3, channels=[{"name": "light", "modality": "light-sheet"}],
        labels={"background": 0, "bright": 1}, orientation="RAS", spacing=None, normalization=[normalization],
        patch=[TILE] * 3, tile=[TILE] * 3, network={"name": "unet3d_cicek2016"}, overlap=SHARED / TILE,
    )  # fmt: skip
    torch.set_num_threads(1)
    return Predictor(SmoothThreshold(), plan, "cpu", backend="torch", max_ram=max_ram)


def predict(path: Path, out: Path, max_ram: str) -> dict[str, Any]:
    """Segment the volume in this process, and return its figures."""
    from medseg.inference import predict_files

    model, reported = predictor({"scheme": "z_score"}, max_ram), 0.0

    def report(done: int, total: int) -> None:
        nonlocal reported
        if time.monotonic() - reported > 30:
            reported = time.monotonic()
            print(f"{done} of {total} tiles", file=sys.stderr, flush=True)

    model.on_tiles = report
    (result,) = predict_files(model, [path], out)
    if result.status != "done":
        raise SystemExit(result.message)
    record = json.loads((out / "volume.json").read_text(encoding="utf-8"))
    return {"cpu_seconds": time.process_time(), "strips": record["strips"], "resumed": record["layers_of_earlier_run"]}


def run(arguments: argparse.Namespace, kill_after: int | None) -> tuple[dict[str, Any], int]:
    """Segment the volume in a new process, which is killed after so many layers; return its figures and peak memory."""
    command = [sys.executable, "-W", "ignore", __file__, str(arguments.folder), "--one", "--max-ram", arguments.max_ram]
    progress = arguments.folder / "out" / ".volume.ome.zarr.unfinished" / "progress.json"
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        while kill_after is not None and child.poll() is None:
            if progress.is_file() and sum(map(len, json.loads(progress.read_bytes())["done"])) >= kill_after:
                status = Path(f"/proc/{child.pid}/status").read_text(encoding="ascii")
                os.kill(child.pid, signal.SIGKILL)
                return {}, 1024 * int(status.split("VmHWM:")[1].split()[0])
            time.sleep(0.5)
        text = child.stdout.read() if child.stdout else ""
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"the process ended with status {child.returncode}")
    return json.loads(text), 1024 * usage.ru_maxrss


def moments(image: Any) -> tuple[float, float]:
    """Return the mean and the standard deviation of an array, rounded as those of a volume in memory."""
    size = math.prod(image.shape)
    layers = [slice(start, start + CHUNK) for start in range(0, image.shape[0], CHUNK)]
    mean = sum(float(image[layer].sum(dtype=np.float64)) for layer in layers) / size
    squares = sum(float(np.square(image[layer] - mean, dtype=np.float64).sum()) for layer in layers)
    return float(np.float32(mean)), math.sqrt(float(np.float32(squares / size)))


def check(path: Path, out: Path) -> tuple[int, int, float]:
    """Return the compared voxels of sub-volumes, those with other labels in memory, and the share of label 1."""
    import zarr

    image, labels = (zarr.open_group(str(p), mode="r")["0"] for p in (path, out / "volume.ome.zarr"))
    mean, std = moments(image)
    model = predictor({"scheme": "z_score", "mean": mean, "std": std}, None)
    random = np.random.default_rng(1)
    compared = wrong = bright = 0
    # The first axis is the longest as in the whole volume, so that the values of tiles are added in the same order.
    sizes = (TILE + 2 * STEP, TILE + STEP, TILE + STEP)
    for _ in range(SUB_VOLUMES):
        # The tiles of a sub-volume are tiles of the whole volume if it begins with one. The last tile of the volume,
        # which ends at its face, may overlap more than its share and must not reach into the compared voxels.
        begin = [
            STEP * int(random.integers(0, (n - TILE - size + SHARED) // STEP + 1))
            for n, size in zip(image.shape, sizes, strict=True)
        ]
        box = tuple(slice(b, b + size) for b, size in zip(begin, sizes, strict=True))
        in_memory = model.predict((image[box], np.diag([1e-3, 5e-4, 5e-4, 1.0]))).array
        inner = (slice(SHARED, -SHARED),) * 3
        expected, found = np.asarray(in_memory)[inner], labels[box][inner]
        compared += expected.size
        wrong += int((expected != found).sum())
        bright += int(expected.sum())
    return compared, wrong, bright / compared


def main() -> None:
    """Generate, segment in two processes, compare, and remove everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", type=int, nargs=3, default=[2048, 1024, 1024])
    parser.add_argument("--max-ram", default="4GB")
    parser.add_argument("--keep", action="store_true", help="keep the volume and the labels")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    path, out = arguments.folder / "volume.ome.zarr", arguments.folder / "out"
    if arguments.one:
        print(json.dumps(predict(path, out, arguments.max_ram)))
        return
    if min(arguments.shape) < 2 * TILE + 2 * STEP or arguments.shape[0] < max(arguments.shape):
        parser.error(f"--shape: needs at least {2 * TILE + 2 * STEP} voxels per axis and the longest axis first")
    size = 4 * math.prod(arguments.shape)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(arguments.folder).free
    if not path.is_dir() and free < 1.2 * size:
        raise SystemExit(f"{arguments.folder}: {free / 1e9:.1f} GB are free, {1.2 * size / 1e9:.1f} GB are needed")
    if not path.is_dir():
        generate(arguments.folder, tuple(arguments.shape))
    layers = math.ceil(arguments.shape[0] / CHUNK)
    _, killed_peak = run(arguments, layers // 2)
    figures, peak = run(arguments, None)
    compared, wrong, bright = check(path, out)
    print(f"volume: {size / 1e9:.2f} GB, {arguments.shape} voxels of float32; limit {arguments.max_ram}")
    print(f"peak memory: {killed_peak / 1e9:.2f} GB until the kill, {peak / 1e9:.2f} GB afterwards")
    print(f"strips: {figures['strips']}, layers of each: {layers}, of them before the kill: {figures['resumed']}")
    print(f"CPU time of the second process: {figures['cpu_seconds']:.0f} s")
    print(f"labels: {wrong} of {compared:,} compared voxels differ from those in memory; {bright:.0%} are label 1")
    if not arguments.keep:
        shutil.rmtree(path)
        shutil.rmtree(out)


if __name__ == "__main__":
    main()
