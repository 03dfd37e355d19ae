"""Compare time and memory of medseg's networks with those of MONAI, and of a UNet++ pruned to each depth.

    python benchmarks/bench_networks.py                 # 96³, medians of 5, one thread
    python benchmarks/bench_networks.py --size 32 --repeats 2

Both networks of a pair have the same number of parameters, which is checked, and get the same input. They alternate in
one process, so that a slow moment of the machine affects both. A ratio below 1 means that medseg is faster or needs
less memory. Peak memory is the growth of the resident set of a new process that builds one network and runs it once.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from monai.networks.nets import UNETR as MonaiUNETR  # noqa: N811
from monai.networks.nets import BasicUNet, BasicUNetPlusPlus, DynUNet
from torch import nn

from medseg.networks import create

INSTANCE = {"norm": "instance", "norm_affine": True, "activation": "leaky_relu"}
BASIC = (32, 32, 64, 128, 256)
DYNAMIC = (32, 64, 128, 256)

# Networks of medseg and MONAI, and parameters that MONAI's network has and never uses.
PAIRS: dict[str, tuple[Callable[[int], nn.Module], Callable[[int], nn.Module], str]] = {
    "UNet / BasicUNet": (
        lambda size: create("unet_padded", 1, 3, spatial_dims=3, channels=BASIC, conv_bias=True, **INSTANCE),
        lambda size: BasicUNet(
            3, 1, 3, features=(*BASIC, 32), act=("LeakyReLU", {"negative_slope": 0.01, "inplace": True})
        ),
        "",
    ),
    "UNet, strided / DynUNet": (
        lambda size: create(
            "unet_padded",
            1,
            3,
            spatial_dims=3,
            channels=DYNAMIC,
            downsampling="strided",
            upsampling_bias=False,
            **INSTANCE,
        ),
        lambda size: DynUNet(3, 1, 3, (3,) * 4, (1, 2, 2, 2), (2, 2, 2), filters=DYNAMIC),
        "",
    ),
    "UNetPlusPlus / BasicUNetPlusPlus": (
        lambda size: create("unetplusplus_zhou2018", 1, 3, spatial_dims=3, channels=BASIC, heads="all", **INSTANCE),
        lambda size: _LastHead(
            BasicUNetPlusPlus(
                3, 1, 3, features=(*BASIC, 32), act=("LeakyReLU", {"negative_slope": 0.01, "inplace": True})
            )
        ),
        "",
    ),
    "UNETR / UNETR": (
        lambda size: create("unetr_monai", 1, 3, image_size=size),
        lambda size: MonaiUNETR(1, 3, (size,) * 3),
        "norm_cross_attn",
    ),
}


class _LastHead(nn.Module):
    """Return one tensor from MONAI's UNet++, which returns a list."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)[0]


def run_once(network: nn.Module, x: torch.Tensor, backward: bool, bf16: bool) -> float:
    """Return the seconds of one forward pass, or of one forward and backward pass."""
    network.zero_grad(set_to_none=True)
    precision = torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext()
    started = time.perf_counter()
    with torch.set_grad_enabled(backward), precision:
        logits = network(x)
    if backward:
        logits.float().square().mean().backward()
    return time.perf_counter() - started


def time_in_turns(networks: list[nn.Module], x: torch.Tensor, backward: bool, bf16: bool, repeats: int) -> list[float]:
    """Return the median seconds of each network. They alternate, and the first round is not measured."""
    seconds: list[list[float]] = [[] for _ in networks]
    for repeat in range(repeats + 1):
        for network, times in zip(networks, seconds, strict=True):
            elapsed = run_once(network, x, backward, bf16)
            if repeat:
                times.append(elapsed)
    return [statistics.median(times) for times in seconds]


def peak_mb(worker: dict[str, object]) -> float:
    """Return the peak memory of a new process that runs `worker` (see `work`)."""
    command = [sys.executable, str(Path(__file__)), "--worker", json.dumps(worker)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.strip().splitlines()[-1])


def work(task: dict[str, object]) -> None:
    """Build one network, run it once, and print the growth of the peak memory in MB."""
    torch.set_num_threads(int(str(task["threads"])))
    if "pair" in task:
        network = PAIRS[str(task["pair"])][int(str(task["which"]))](int(str(task["size"])))
    else:
        network = pruned_networks()[int(str(task["depth"])) - 1]
    x = torch.randn(*task["shape"])  # type: ignore[misc]
    if task["channels_last"]:
        network, x = channels_last(network), channels_last(x)
    network.train(bool(task["backward"]))
    before = memory_kb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak, which includes the imports until here
    run_once(network, x, bool(task["backward"]), bool(task["bf16"]))
    print((memory_kb("VmHWM") - before) / 1024)


def memory_kb(field: str) -> int:
    """Read a memory field of this process from Linux: VmRSS is the present resident memory, VmHWM its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def channels_last(volume_or_network):  # type: ignore[no-untyped-def]
    """Return a 3D network or a batch of volumes with channels last in memory."""
    return volume_or_network.to(memory_format=torch.channels_last_3d)


def pruned_networks() -> list[nn.Module]:
    """Return the published pre-activation UNet++, pruned to depth 1 to 4."""
    torch.manual_seed(0)
    network = create("unetplusplus_preactivation", 3, 3).eval()
    return [network.prune(depth) for depth in range(1, 5)]  # type: ignore[operator]


def compare_with_monai(options: argparse.Namespace) -> None:
    """Print the table of medseg's and MONAI's networks."""
    print("| networks | pass | medseg s | MONAI s | ratio | medseg MB | MONAI MB | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    shape = [1, 1, *[options.size] * 3]
    for name, (ours, theirs, unused) in PAIRS.items():
        torch.manual_seed(0)
        networks = [ours(options.size), theirs(options.size)]
        counts = [
            sum(p.numel() for n, p in network.named_parameters() if not unused or unused not in n)
            for network in networks
        ]
        if counts[0] != counts[1]:
            raise SystemExit(f"{name}: {counts[0]:,} and {counts[1]:,} parameters, expected equal numbers")
        x = torch.randn(*shape)
        if options.channels_last:
            networks = [channels_last(network) for network in networks]
            x = channels_last(x)
        for backward in (False, True):
            seconds = time_in_turns(networks, x, backward, options.bf16, options.repeats)
            task = vars(options) | {"pair": name, "shape": shape, "backward": backward, "worker": None}
            memory = [peak_mb(task | {"which": which}) for which in (0, 1)]
            label = "forward + backward" if backward else "forward"
            print(
                f"| {name} | {label} | {seconds[0]:.3f} | {seconds[1]:.3f} | {seconds[0] / seconds[1]:.3f} "
                f"| {memory[0]:.0f} | {memory[1]:.0f} | {memory[0] / memory[1]:.3f} |",
                flush=True,
            )


def compare_depths(options: argparse.Namespace) -> None:
    """Print the table of a pruned UNet++ in 2D."""
    networks = pruned_networks()
    shape = [1, 3, options.pruning_size, options.pruning_size]
    x = torch.randn(*shape)
    seconds = time_in_turns(networks, x, False, options.bf16, options.repeats)
    task = vars(options) | {"shape": shape, "backward": False, "worker": None, "channels_last": False}
    memory = [peak_mb(task | {"depth": depth}) for depth in range(1, 5)]
    print(f"\nUNet++ pruned, {options.pruning_size}²: \n")
    print("| depth | parameters | forward s | of the full | peak MB | of the full |\n|---|---|---|---|---|---|")
    for depth, network in enumerate(networks, start=1):
        parameters = sum(p.numel() for p in network.parameters())
        print(
            f"| L{depth} | {parameters:,} | {seconds[depth - 1]:.3f} | {seconds[depth - 1] / seconds[-1]:.0%} "
            f"| {memory[depth - 1]:.0f} | {memory[depth - 1] / memory[-1]:.0%} |"
        )


def main() -> None:
    """Read the options and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=96, help="voxels per axis; a multiple of 16")
    parser.add_argument("--pruning-size", type=int, default=512, help="pixels per axis in the table of UNet++")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="bf16 autocast")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(json.loads(options.worker))
        return
    torch.set_num_threads(options.threads)
    precision = "bf16" if options.bf16 else "fp32"
    layout = "channels last" if options.channels_last else "contiguous"
    print(f"{platform.node()}, {platform.processor() or platform.machine()}, torch {torch.__version__}, ", end="")
    print(f"{options.threads} thread(s), {options.size}³, {precision}, {layout}, median of {options.repeats}\n")
    compare_with_monai(options)
    compare_depths(options)


if __name__ == "__main__":
    main()
