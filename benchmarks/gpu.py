"""Measure a GPU: the network, a training step, the whole prediction, memory, and a process group of one.

    python benchmarks/gpu.py [--minutes 8] [--tiny]

It needs the package and generated data only. Every part prints its table when it is done; parts that would begin after
`--minutes` are left out and named. `--tiny` runs the same code with small sizes, also on a CPU, where it measures
nothing of interest.

- Network and training step: medseg's 3D U-Net with 32 to 320 channels and 14 classes beside MONAI's DynUNet with the
  same stages, in fp32 with and without TF32, by bf16 autocast, channels last, compiled, and as a CUDA graph.
- Prediction: a CT-like volume from file to file, medseg in fp32 and bf16, MONAI's sliding window and nnU-Net's own
  predictor (if it is installed) by autocast; seconds, peak memory of the GPU, and the fraction of equal labels.
- Too little memory: the same prediction with a limit that merging on the GPU exceeds; labels must be equal.
- Estimate: the peak memory of a training step beside what `medseg plan` estimates, in fp32 and bf16.
- Process group: one step of DistributedDataParallel (NCCL, or gloo on a CPU) must change the weights as one without.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import nibabel as nib
import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.networks.nets import DynUNet
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from medseg import Plan
from medseg.inference import Predictor
from medseg.losses import WeightedDiceCELoss
from medseg.networks import create
from medseg.planning.estimate import CONTEXT, training_parts

sys.path.insert(0, str(Path(__file__).parent))
from timing import Row, interleaved_medians, print_table
from whole_command import CHANNELS, SPACING, ct_like

NORMALIZED: dict[str, Any] = {
    "norm": "instance", "norm_affine": True, "activation": "leaky_relu", "padding": "same", "conv_bias": False,
}  # fmt: skip
PRECISIONS: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16")
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Sizes:
    """Sizes of the measurements: those of a usual CT model, or tiny ones that only show that the code runs."""

    def __init__(self, is_tiny: bool) -> None:
        self.channels = [4, 8, 8] if is_tiny else CHANNELS
        self.tile = 16 if is_tiny else 96
        self.volume = 24 if is_tiny else 256
        self.classes = 3 if is_tiny else 14
        self.batches = (1, 2) if is_tiny else (1, 4)
        self.repeats = 1 if is_tiny else 7


def unet(sizes: Sizes, device: torch.device) -> nn.Module:
    """Return medseg's network with random weights."""
    torch.manual_seed(0)
    network = create(
        "unet3d_cicek2016", in_channels=1, out_channels=sizes.classes, channels=sizes.channels, **NORMALIZED
    )
    return network.to(device)


def dynunet(sizes: Sizes, device: torch.device) -> nn.Module:
    """Return MONAI's form of nnU-Net's network with the same stages."""
    torch.manual_seed(0)
    depth = len(sizes.channels)
    return DynUNet(
        3, 1, sizes.classes, [3] * depth, [1] + [2] * (depth - 1), [2] * (depth - 1), filters=sizes.channels,
        res_block=False, norm_name="instance",
    ).to(device)  # fmt: skip


@contextmanager
def arithmetic(device: torch.device, name: str) -> Iterator[None]:
    """Compute in "fp32", "tf32" or "bf16" inside the context."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name != "fp32"
    try:
        with torch.autocast(device.type, torch.bfloat16) if name == "bf16" else nullcontext():
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def wait(device: torch.device) -> None:
    """Wait until the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forward_ways(sizes: Sizes, batch: int, device: torch.device) -> dict[str, Callable[[], object]]:
    """Return the ways to compute one forward pass, by name."""
    tiles = torch.randn(batch, 1, *[sizes.tile] * 3, device=device)
    last = tiles.contiguous(memory_format=torch.channels_last_3d)
    network = unet(sizes, device).eval()
    network_last = unet(sizes, device).eval().to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    peer = dynunet(sizes, device).eval()

    def way(run: Callable[[torch.Tensor], object], given: torch.Tensor, precision: str) -> Callable[[], object]:
        def call() -> None:
            with torch.inference_mode(), arithmetic(device, precision):
                run(given)
            wait(device)

        return call

    ways = {
        "MONAI DynUNet, bf16": way(peer, tiles, "bf16"),
        "fp32": way(network, tiles, "fp32"),
        "TF32": way(network, tiles, "tf32"),
        "bf16": way(network, tiles, "bf16"),
        "bf16, channels last": way(network_last, last, "bf16"),
    }
    if device.type == "cuda":  # compiling for a CPU takes minutes
        ways["bf16, compiled"] = way(torch.compile(unet(sizes, device).eval()), tiles, "bf16")
        ways["bf16, CUDA graph"] = graph(network, tiles, device)
    return ways


def graph(network: nn.Module, tiles: torch.Tensor, device: torch.device) -> Callable[[], object]:
    """Record one forward pass as a CUDA graph and return what replays it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.inference_mode(), arithmetic(device, "bf16"):
        with torch.cuda.stream(stream):
            for _ in range(3):
                network(tiles)
        torch.cuda.current_stream().wait_stream(stream)
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded):
            network(tiles)

    def call() -> None:
        recorded.replay()
        wait(device)

    return call


def training_ways(sizes: Sizes, batch: int, device: torch.device) -> dict[str, Callable[[], object]]:
    """Return the ways to compute one training step, by name."""
    tiles = torch.randn(batch, 1, *[sizes.tile] * 3, device=device)
    labels = torch.randint(sizes.classes, (batch, 1, *[sizes.tile] * 3), device=device)
    loss = WeightedDiceCELoss()

    def way(network: nn.Module, precision: str, is_last: bool = False, is_fused: bool = False) -> Callable[[], object]:
        given = tiles.contiguous(memory_format=torch.channels_last_3d) if is_last else tiles
        if is_last:
            network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=is_fused)

        def call() -> None:
            with arithmetic(device, precision):
                logits = network(given)
            loss(logits.float(), labels).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            wait(device)

        return call

    ways = {
        "MONAI DynUNet, bf16": way(dynunet(sizes, device), "bf16"),
        "fp32": way(unet(sizes, device), "fp32"),
        "TF32": way(unet(sizes, device), "tf32"),
        "bf16": way(unet(sizes, device), "bf16"),
        "bf16, fused AdamW": way(unet(sizes, device), "bf16", is_fused=True),
        "bf16, channels last": way(unet(sizes, device), "bf16", is_last=True),
    }
    if device.type == "cuda":
        ways["bf16, compiled"] = way(torch.compile(unet(sizes, device)), "bf16")  # type: ignore[arg-type]
    return ways


def steps(sizes: Sizes, device: torch.device) -> list[Row]:
    """Measure forward passes and training steps, per tile."""
    rows = []
    for batch in sizes.batches:
        for topic, ways in (("forward", forward_ways), ("training step", training_ways)):
            seconds = interleaved_medians(ways(sizes, batch, device), sizes.repeats)
            first = next(iter(seconds))
            rows += [
                Row(f"{topic}, batch {batch} of {sizes.tile}³", name, time / batch, seconds[first] / time, first)
                for name, time in seconds.items()
            ]
    return rows


def bench_plan(sizes: Sizes) -> Plan:
    """Return the plan of the predictions."""
    return Plan(
        name="bench_segmentation", spatial_dims=3, channels=[{"name": "ct", "modality": "CT"}],
        labels={"background": 0, **{f"organ_{n}": n for n in range(1, sizes.classes)}}, orientation="RAS",
        spacing=[SPACING] * 3, normalization=[{"scheme": "z_score"}], patch=[sizes.tile] * 3, tile=[sizes.tile] * 3,
        overlap=0.5, network={"name": "unet3d_cicek2016"},
    )  # fmt: skip


def predictions(sizes: Sizes, device: torch.device) -> list[Row]:
    """Measure the prediction of one volume from file to file."""
    network, plan = unet(sizes, device).eval(), bench_plan(sizes)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        scan = Path(folder) / "scan.nii.gz"
        nib.save(nib.Nifti1Image(ct_like(sizes.volume), np.diag([SPACING] * 3 + [1.0])), scan)
        ways: dict[str, Callable[[], np.ndarray]] = {"MONAI, autocast": lambda: by_monai(scan, network, sizes, device)}
        for precision in ("fp32", "bf16"):
            model = Predictor(network, plan, device, backend="torch", precision=precision)
            ways[f"medseg, {precision}"] = lambda model=model: by_medseg(scan, model)  # type: ignore[misc]
        ways |= nnunet_ways(scan, sizes, device)
        labels, peaks = {}, {}
        for name, run in ways.items():  # the first run of each is its warm-up, and gives labels and memory
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            labels[name] = run()
            peaks[name] = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else float("nan")
        seconds = interleaved_medians(ways, max(1, sizes.repeats // 2))
        expected, first = labels["medseg, fp32"], next(iter(seconds))
        for name, time in seconds.items():
            equal = float((labels[name] == expected).mean()) if name.startswith("medseg") else float("nan")
            what = f"{name}; peak {peaks[name]:.0f} MiB; labels equal to medseg's fp32 {equal:.5f}"
            rows.append(
                Row(f"{sizes.volume}³ file to file", what, time, seconds[first] / time, f"speed-up over {first}")
            )
    return rows


def by_medseg(scan: Path, model: Predictor) -> np.ndarray:
    segmentation = model.predict(scan)
    segmentation.save(scan.parent / "medseg.nii.gz")
    return segmentation.array


def by_monai(scan: Path, network: nn.Module, sizes: Sizes, device: torch.device) -> np.ndarray:
    """Predict as MONAI's bundles do on a GPU: everything there, by autocast, four tiles at a time."""
    image = nib.load(scan)
    array = torch.from_numpy(np.asarray(image.dataobj, dtype=np.float32)).to(device)  # type: ignore[attr-defined]
    with torch.inference_mode(), arithmetic(device, "bf16"):
        given = ((array - array.mean()) / array.std())[None, None]
        logits = sliding_window_inference(given, (sizes.tile,) * 3, 4, network, 0.5, "gaussian")
        labels = logits.argmax(1)[0].to(torch.uint8).cpu().numpy()  # type: ignore[union-attr]
    nib.save(nib.Nifti1Image(labels, image.affine), scan.parent / "monai.nii.gz")  # type: ignore[attr-defined]
    return labels


def nnunet_ways(scan: Path, sizes: Sizes, device: torch.device) -> dict[str, Callable[[], np.ndarray]]:
    """Return nnU-Net's own predictor, if it is installed; it uses autocast on CUDA by itself."""
    from nnunet_peer import NNUNetPeer, is_installed

    if not is_installed() or device.type != "cuda":
        return {}
    peer = NNUNetPeer(dynunet(sizes, device).eval(), (sizes.tile,) * 3, sizes.classes, device)

    def run() -> np.ndarray:
        image = nib.load(scan)
        array = torch.from_numpy(np.asarray(image.dataobj, dtype=np.float32))[None]  # type: ignore[attr-defined]
        labels = peer.labels((array - array.mean()) / array.std(), array.shape[1:], [1.0] * 3)
        nib.save(nib.Nifti1Image(labels.astype(np.uint8), image.affine), scan.parent / "nnunet.nii.gz")  # type: ignore[attr-defined]
        return labels

    return {"nnU-Net's predictor, autocast": run}


def too_little_memory(sizes: Sizes, device: torch.device) -> list[str]:
    """Predict with half of the memory that merging on the GPU took, and compare the labels."""
    if device.type != "cuda":
        return ["out of memory: not run, because there is no GPU"]
    plan, network = bench_plan(sizes), unet(sizes, device).eval()
    scan = (ct_like(sizes.volume).astype(np.float32), np.diag([SPACING] * 3 + [1.0]))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    expected = Predictor(network, plan, device, precision="bf16").predict(scan)
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.5 * peak / torch.cuda.get_device_properties(device).total_memory)
    try:
        found = Predictor(network, plan, device, precision="bf16").predict(scan)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    equal = float((found.array == expected.array).mean())
    notes = "; ".join(found.provenance["warnings"]) or "no note"
    return [f"out of memory: {peak / 2**20:.0f} MiB needed, half of it given: labels equal {equal:.6f}; {notes}"]


def training_memory(sizes: Sizes, device: torch.device) -> list[str]:
    """Compare the memory of training steps with the estimate of `medseg plan`."""
    network = unet(sizes, device)
    plan = replace(bench_plan(sizes), network={"name": "unet3d_cicek2016", "arguments": NORMALIZED | {
        "channels": list(sizes.channels)}})  # fmt: skip
    lines = []
    for precision in PRECISIONS:
        estimated = sum(training_parts(plan, 2, precision, device="cuda").values())
        measured = "not measured, because there is no GPU"
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            averaged = copy.deepcopy(network)  # a training holds this copy as well
            step = training_ways(sizes, 2, device)[precision]
            step(), step()
            measured = f"measured {(torch.cuda.max_memory_reserved(device) + CONTEXT) / 2**20:.0f} MiB with its context"
            del averaged, step
        lines.append(f"memory of a training step, {precision}: estimated {estimated / 2**20:.0f} MiB, {measured}")
    return lines


def process_group(sizes: Sizes, device: torch.device) -> list[str]:
    """Compare one training step with and without DistributedDataParallel in a group of one process."""
    kind = "nccl" if device.type == "cuda" else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        distributed.init_process_group(kind, init_method=f"file://{folder}/group", rank=0, world_size=1)
        try:
            weights = [one_step(sizes, device, is_member) for is_member in (False, True)]
        finally:
            distributed.destroy_process_group()
    largest = max(float((one - two).abs().max()) for one, two in zip(*weights, strict=True))
    return [f"process group of one ({kind}): after one step weights differ by at most {largest:.3g}"]


def one_step(sizes: Sizes, device: torch.device, is_member: bool) -> list[torch.Tensor]:
    network = unet(sizes, device)
    trained = DistributedDataParallel(network) if is_member else network
    generator = torch.Generator().manual_seed(1)
    tiles = torch.randn(2, 1, *[sizes.tile // 2] * 3, generator=generator).to(device)
    labels = torch.randint(sizes.classes, (2, 1, *[sizes.tile // 2] * 3), generator=generator).to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    WeightedDiceCELoss()(trained(tiles), labels).backward()
    optimizer.step()
    return [parameter.detach().cpu() for parameter in network.parameters()]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all parts in order; return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--tiny", action="store_true", help="small sizes, also on a CPU")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    if not torch.cuda.is_available() and not options.tiny:
        parser.error("there is no CUDA GPU here; --tiny runs the same code on a CPU")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes, begin, failed = Sizes(options.tiny), perf_counter(), 0
    print(f"GPU: {torch.cuda.get_device_name(device) if device.type == 'cuda' else 'none'}", flush=True)
    for part in (process_group, too_little_memory, training_memory, predictions, steps):
        if perf_counter() - begin > 60 * options.minutes:
            print(f"{part.__name__}: left out, because {options.minutes:g} minutes are over")
            continue
        try:
            found = part(sizes, device)
        except Exception as error:  # a part that fails must not cost the others
            failed = 1
            print(f"{part.__name__}: failed: {type(error).__name__}: {error}", flush=True)
            continue
        if isinstance(found[0], Row):
            print_table(found)  # type: ignore[arg-type]
        else:
            print("\n".join(map(str, found)), flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
