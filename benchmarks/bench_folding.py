"""Compare upsampling, concatenation and convolution folded into one convolution with the same network layer by layer.

    python benchmarks/bench_folding.py [--size 64] [--repeats 5] [--threads 1]

The network is a padded `UNet3D` with 24 to 192 channels and instance normalisation. One forward pass is measured with
torch, and with OpenVINO if it is installed, in fp32, and in bf16 on processors that multiply it in hardware. Both
networks have the same weights and alternate.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch
from timing import Row, interleaved_medians, print_table
from torch import nn
from unfolded import unfolded

from medseg.inference.backends.torch_backend import TorchBackend
from medseg.networks import create
from medseg.networks.precision import has_fast_bf16


def runtimes() -> list[str]:
    return ["torch", "OpenVINO"] if find_spec("openvino") else ["torch"]


def compiled(runtime: str, network: nn.Module, size: int, precision: str) -> Callable[[torch.Tensor], torch.Tensor]:
    if runtime == "torch":
        return TorchBackend(network, torch.device("cpu"), precision=precision)  # type: ignore[arg-type]
    from medseg.inference.backends.openvino_backend import OpenVINOBackend

    # Use a new cache, because compiled models are cached by their weights, which are the same here.
    cache = tempfile.mkdtemp()
    return OpenVINOBackend(network, (1, 1, size, size, size), precision, False, cache)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, help="voxels per axis; a multiple of 8")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    folded = create(
        "unet3d_cicek2016", 1, 3, channels=[24, 48, 96, 192], norm="instance", norm_affine=True,
        activation="leaky_relu", padding="same", conv_bias=False,
    ).eval()  # fmt: skip
    x = torch.randn(1, 1, *[options.size] * 3)
    rows = []
    for runtime in runtimes():
        for precision in ["fp32", "bf16"] if has_fast_bf16(torch.device("cpu")) else ["fp32"]:
            work = {
                name: partial(compiled(runtime, network, options.size, precision), x)
                for name, network in (("layer by layer", unfolded(folded)), ("folded", folded))
            }
            with torch.inference_mode():
                seconds = interleaved_medians(work, options.repeats)
            for name, time in seconds.items():
                what = f"{options.size}³, {runtime} {precision}, {name}"
                rows.append(
                    Row("folding", what, time, seconds["layer by layer"] / time, "speed-up over layer by layer")
                )
    print_table(rows)


if __name__ == "__main__":
    main()
