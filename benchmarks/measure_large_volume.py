"""Segment a generated volume that is larger than memory, and report the peak memory of the process.

The volume is an OME-Zarr image of noise with bright balls, stored without compression. The network is a threshold, so
that reading, normalising, blending and writing dominate, and every label can be checked: a voxel has label 1 if its
intensity is above the mean. The labels of random boxes are compared with that.

    python benchmarks/measure_large_volume.py FOLDER [--shape 4096 1024 1024] [--max-ram 4GB] [--keep]

FOLDER needs the size of the volume (2 bytes per voxel) and a tenth more. It is emptied at the end.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

CHUNK = 128
BOXES = 20


def generate(folder: Path, shape: tuple[int, ...]) -> Path:
    """Write the volume layer by layer, and return its path."""
    import zarr

    path = folder / "volume.ome.zarr"
    group = zarr.create_group(str(path), zarr_format=3)
    stored = group.create_array("0", shape=shape, chunks=(CHUNK,) * 3, dtype="uint16", compressors=None, fill_value=0)
    random = np.random.default_rng(0)
    noise = random.integers(800, 1200, (CHUNK, *shape[1:]), dtype=np.uint16)
    y, x = np.ogrid[: shape[1], : shape[2]]
    for start in range(0, shape[0], CHUNK):
        layer = np.roll(noise, start * 7919, axis=2)[: min(CHUNK, shape[0] - start)]
        centre = random.integers(0, shape[1:])
        layer[:, (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < (CHUNK // 2) ** 2] += 1000
        stored[start : start + len(layer)] = layer
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    steps = [{"type": "scale", "scale": [1.0, 0.5, 0.5]}]
    image = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": steps}]}
    group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    return path


def predict(path: Path, out: Path, max_ram: str) -> dict[str, Any]:
    """Segment the volume in this process, and return its figures."""
    import torch

    from medseg.inference import Predictor, predict_files
    from medseg.plan import Plan

    class Threshold(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([-x, x], 1)

    plan = Plan(
        name="threshold_segmentation", spatial_dims=3, channels=[{"name": "light", "modality": "light-sheet"}],
        labels={"background": 0, "bright": 1}, orientation="RAS", spacing=None, normalization=[{"scheme": "z_score"}],
        patch=[96, 96, 96], tile=[96, 96, 96], network={"name": "unet3d_cicek2016"}, overlap=0.25,
    )  # fmt: skip
    torch.set_num_threads(1)
    predictor = Predictor(Threshold(), plan, "cpu", backend="torch", max_ram=max_ram)
    reported = 0.0

    def report(done: int, total: int) -> None:
        nonlocal reported
        if time.monotonic() - reported > 30:
            reported = time.monotonic()
            print(f"{done} of {total} tiles", file=sys.stderr, flush=True)

    predictor.on_tiles = report
    started = time.perf_counter()
    (result,) = predict_files(predictor, [path], out)
    if result.status != "done":
        raise SystemExit(result.message)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    record = json.loads((out / "volume.json").read_text(encoding="utf-8"))
    return {
        "peak_bytes": 1024 * int(status.split("VmHWM:")[1].split()[0]),
        "cpu_seconds": time.process_time(),
        "seconds": time.perf_counter() - started,
        "stages": record["seconds"],
        "strips": record["strips"],
        "layers_of_earlier_run": record["layers_of_earlier_run"],
    }


def check(path: Path, out: Path) -> tuple[int, int]:
    """Return how many voxels of random boxes were compared, and how many have another label than the threshold."""
    import zarr

    image, labels = (zarr.open_group(str(p), mode="r")["0"] for p in (path, out / "volume.ome.zarr"))
    total = squares = 0
    for start in range(0, image.shape[0], CHUNK):
        layer = image[start : start + CHUNK]
        total += int(layer.sum(dtype=np.int64))
        squares += layer.size
    mean = total / squares
    random = np.random.default_rng(1)
    compared = wrong = 0
    for _ in range(BOXES):
        begin = [int(random.integers(0, max(1, n - CHUNK))) for n in image.shape]
        box = tuple(slice(b, b + CHUNK) for b in begin)
        values, found = image[box], labels[box]
        compared += values.size
        wrong += int(((values > mean) != (found == 1)).sum())
    return compared, wrong


def main() -> None:
    """Generate, segment in a new process, check, and remove everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", type=int, nargs=3, default=[4096, 1024, 1024])
    parser.add_argument("--max-ram", default="4GB")
    parser.add_argument("--keep", action="store_true", help="keep the volume and the labels")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    path, out = arguments.folder / "volume.ome.zarr", arguments.folder / "out"
    if arguments.one:
        print(json.dumps(predict(path, out, arguments.max_ram)))
        return
    size = 2 * int(np.prod(arguments.shape))
    arguments.folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(arguments.folder).free
    if not path.is_dir() and free < 1.2 * size:
        raise SystemExit(f"{arguments.folder}: {free / 1e9:.1f} GB are free, {1.2 * size / 1e9:.1f} GB are needed")
    if not path.is_dir():
        generate(arguments.folder, tuple(arguments.shape))
    command = [sys.executable, "-W", "ignore", __file__, str(arguments.folder), "--one", "--max-ram", arguments.max_ram]
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures = json.loads(child.stdout)
    compared, wrong = check(path, out)
    print(f"volume: {size / 1e9:.2f} GB, {arguments.shape} voxels of uint16; limit {arguments.max_ram}")
    print(f"peak memory of the process: {figures['peak_bytes'] / 1e9:.2f} GB")
    print(f"CPU time: {figures['cpu_seconds']:.0f} s, strips: {figures['strips']}")
    print(f"labels: {wrong} of {compared} compared voxels differ from the threshold")
    print(json.dumps({**figures, "own_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
    if not arguments.keep:
        shutil.rmtree(path)
        shutil.rmtree(out)


if __name__ == "__main__":
    main()
