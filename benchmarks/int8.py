"""Measure what int8 costs and saves: the time of a tile in fp32, bf16 and int8, per layer, and the Dice of a fold.

    python benchmarks/int8.py --data-root FOLDER [--fold 1] [--bundle NAME]... [--threads 1] [--repeats 15] [--layers]

The folder holds one data set per folder, `hippocampus` and `em_membrane`. Every bundle is copied and quantized anew by
`medseg bundle quantize`, which measures the Dice of the fold in fp32 and int8 with its paired interval over patients.
The time of a tile is the minimum of the repeats, in which the precisions alternate. `--layers` prints the layers in
int8 and their time in bf16 and int8, as OpenVINO's profile reports them.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from timing import machine

from medseg.bundle import BundleFolder, load_network, quantize
from medseg.bundle.int8_file import read_int8_model
from medseg.inference.backends.openvino_backend import OpenVINOBackend, _convert, _hints
from medseg.networks.precision import Precision, has_fast_bf16

BUNDLES = {
    "hippocampus_unet3d_segmentation": "hippocampus",
    "hippocampus_unetplusplus_segmentation": "hippocampus",
    "hippocampus_unetr_segmentation": "hippocampus",
    "em_membrane_unet_segmentation": "em_membrane",
}


def tile_seconds(
    backends: dict[Precision, OpenVINOBackend], tile: torch.Tensor, repeats: int
) -> dict[Precision, float]:
    seconds: dict[Precision, list[float]] = {precision: [] for precision in backends}
    for repeat in range(repeats + 1):
        for precision, backend in backends.items():
            begin = time.perf_counter()
            backend(tile)
            if repeat:
                seconds[precision].append(time.perf_counter() - begin)
    return {precision: min(values) for precision, values in seconds.items()}


def layer_times(
    backend: OpenVINOBackend, ranges: Any, tile: torch.Tensor, repeats: int
) -> dict[str, tuple[str, float]]:
    """Return the kernel and the least milliseconds of each executed layer."""
    hints = {**_hints("bf16" if has_fast_bf16() else "f32"), "PERF_COUNT": True}
    program = openvino.Core().compile_model(_convert(backend.module, backend.shape, ranges), "CPU", hints)
    request, found = program.create_infer_request(), {}
    for _ in range(repeats):
        request.infer([np.ascontiguousarray(tile.numpy())])
        for layer in request.get_profiling_info():
            milliseconds = layer.real_time.total_seconds() * 1e3
            if milliseconds:
                kernel, least = found.get(layer.node_name, (layer.exec_type, np.inf))
                found[layer.node_name] = kernel, min(least, milliseconds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--fold", default="1")
    parser.add_argument("--bundle", action="append", choices=sorted(BUNDLES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--layers", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"Machine: {machine()}\n")
    print(
        "| bundle | fp32, ms | bf16, ms | int8, ms | bf16 / int8 | cases | Dice, fp32 | Dice, int8 | lost "
        "| 95 % interval | seen |\n"
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|"
    )
    tables = []
    for name in options.bundle or BUNDLES:
        with tempfile.TemporaryDirectory() as work:
            folder = BundleFolder(shutil.copytree(Path("bundles") / name, Path(work) / name))
            found = quantize(folder.path, options.data_root / BUNDLES[name], fold=options.fold)
            quantized = read_int8_model(folder)
            network = load_network(folder.path)
        assert quantized is not None
        ranges, shape = quantized.ranges[0], (1, folder.plan.in_channels, *folder.plan.tile)
        tile = torch.randn(shape)
        precisions: list[Precision] = ["fp32", "bf16", "int8"] if has_fast_bf16() else ["fp32", "int8"]
        backends = {precision: OpenVINOBackend(network, shape, precision, ranges=ranges) for precision in precisions}
        seconds = tile_seconds(backends, tile, options.repeats)
        ms = {precision: f"{1e3 * value:.1f}" for precision, value in seconds.items()}
        ratio = seconds.get("bf16", seconds["fp32"]) / seconds["int8"]
        lost = found.lost
        times = f"{ms['fp32']} | {ms.get('bf16', '')} | {ms['int8']} | {ratio:.2f}"
        dice = f"{found.dice['fp32']:.4f} | {found.dice['int8']:.4f} | {lost.value:+.5f}"
        print(
            f"| {name} | {times} | {lost.n} | {dice} | {lost.low:+.5f} to {lost.high:+.5f} | {found.is_seen} |",
            flush=True,
        )
        if options.layers:
            pair = [layer_times(backends["int8"], r, tile, options.repeats) for r in (None, ranges)]
            lines = [
                f"| {layer} | {pair[0].get(layer, ('', np.nan))[1]:.2f} | {least:.2f} | {kernel} |"
                for layer, (kernel, least) in pair[1].items()
                if least > 0.05
            ]
            tables.append(
                f"\n{name}\n\n| layer | bf16, ms | int8, ms | kernel |\n|---|---:|---:|---|\n" + "\n".join(lines)
            )
    print("\n".join(tables))


if __name__ == "__main__":
    main()
