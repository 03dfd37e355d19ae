"""Compare a network with the largest number of operations per second that the CPU reaches.

    python benchmarks/cpu_limit.py [--bundle FOLDER] [--threads 1] [--repeats 20]

The limit is measured by large matrix products, and by one 3×3×3 convolution of 64 channels, in fp32, bf16 and int8, as
OpenVINO runs them, like the network. The times are CPU time with one thread (other programs on the machine then change
little) and the minimum of the repeats. Operations of a network are two per product of its convolutions as they are
computed, that is with folded upsampling.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino
import torch
from openvino import opset13
from timing import machine

from medseg.bundle import BundleFolder, load_network
from medseg.bundle.int8_file import read_int8_model
from medseg.inference.backends.openvino_backend import OpenVINOBackend
from medseg.inference.backends.quantization import insert_quantizers, measure_ranges
from medseg.networks.precision import Precision

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8")


def compiled(model: openvino.Model, precision: Precision) -> openvino.CompiledModel:
    hint = "f32" if precision == "fp32" else "bf16"
    hints = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    return openvino.Core().compile_model(model, "CPU", {**hints, "PERFORMANCE_HINT": "LATENCY"})


def convolution(channels: int, size: int, depth: int) -> tuple[openvino.Model, float]:
    """Return `depth` convolutions in a row, and the number of operations of the inner ones."""
    random = np.random.default_rng(0)
    image = opset13.parameter([1, channels, size, size, size], np.float32)
    x = image
    for _ in range(depth):
        kernel = random.normal(size=(channels, channels, 3, 3, 3)).astype(np.float32) / (27 * channels) ** 0.5
        x = opset13.relu(opset13.convolution(x, opset13.constant(kernel), [1] * 3, [1] * 3, [1] * 3, [1] * 3))
    return openvino.Model([x], [image]), 2.0 * 27 * channels**2 * size**3


def matrix_product(size: int) -> tuple[openvino.Model, float]:
    left = opset13.parameter([size, size], np.float32)
    right = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
    return openvino.Model([opset13.matmul(left, opset13.constant(right), False, True)], [left]), 2.0 * size**3


def cpu_seconds(run: Callable[[], object], repeats: int) -> float:
    run()
    seconds = []
    for _ in range(repeats):
        begin = time.process_time()
        run()
        seconds.append(time.process_time() - begin)
    return min(seconds)


def convolution_seconds(channels: int, size: int, precision: Precision, repeats: int) -> tuple[float, float]:
    """Return the seconds and the operations of one inner convolution: the difference of five and two in a row."""
    seconds = []
    for depth in (5, 2):
        model, operations = convolution(channels, size, depth)
        tile = np.random.default_rng(1).normal(size=(1, channels, size, size, size)).astype(np.float32)
        if precision == "int8":
            insert_quantizers(model, measure_ranges(model, [tile], lambda probed: compiled(probed, "fp32")))
        program = compiled(model, precision)
        seconds.append(cpu_seconds(lambda p=program, t=tile: p([t]), repeats))  # type: ignore[misc]
    return (seconds[0] - seconds[1]) / 3, operations


def network_operations(backend: OpenVINOBackend) -> float:
    """Count the operations of a compiled network's convolutions and matrix products, from its graph."""
    from medseg.inference.backends.openvino_backend import _convert

    total = 0.0
    for op in _convert(backend.module, backend.shape).get_ordered_ops():
        out, kind = op.get_output_partial_shape(0), op.get_type_name()
        if kind in ("Convolution", "ConvolutionBackpropData"):
            kernel = op.input_value(1).get_partial_shape()
            maps = out if kind == "Convolution" else op.get_input_partial_shape(0)
            voxels = np.prod([int(n.get_length()) for n in list(maps)[2:]])
            total += 2.0 * voxels * np.prod([int(n.get_length()) for n in kernel])
        elif kind == "MatMul":
            inner = op.get_input_partial_shape(0)
            total += 2.0 * np.prod([int(n.get_length()) for n in out]) * int(list(inner)[-1].get_length())
    return float(total)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("bundles/hippocampus_unet3d_segmentation"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = BundleFolder(options.bundle)
    quantized = read_int8_model(folder)
    network, shape = load_network(folder.path), (1, folder.plan.in_channels, *folder.plan.tile)
    image = torch.randn(shape)
    print(f"Machine: {machine()}\n\n{folder.name}, tile {shape[2:]}\n")
    print(
        "| precision | matrix product, GFLOP/s | convolution, GFLOP/s | network, GFLOP/s | share of the convolution |"
    )
    print("|---|---:|---:|---:|---:|")
    for precision in PRECISIONS:
        if precision == "int8" and quantized is None:
            print("| int8 | | | | the bundle is not quantized |")
            continue
        product = "" if precision == "int8" else f"{_rate_of_product(precision, options.repeats):.0f}"
        seconds, operations = convolution_seconds(64, 32, precision, options.repeats)
        backend = OpenVINOBackend(network, shape, precision, ranges=quantized.ranges[0] if quantized else None)
        tile = cpu_seconds(lambda b=backend: b(image), options.repeats)  # type: ignore[misc]
        rate = network_operations(backend) / tile / 1e9
        limit = operations / seconds / 1e9
        print(f"| {precision} | {product} | {limit:.0f} | {rate:.0f} | {rate / limit:.0%} |", flush=True)


def _rate_of_product(precision: Precision, repeats: int) -> float:
    model, operations = matrix_product(1024)
    program, left = compiled(model, precision), np.random.default_rng(1).normal(size=(1024, 1024)).astype(np.float32)
    return operations / cpu_seconds(lambda: program([left]), repeats) / 1e9


if __name__ == "__main__":
    main()
