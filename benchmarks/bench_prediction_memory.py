"""Peak memory of merging 105 classes: MONAI's sliding window and medseg's streaming prediction.

Each run is a process of its own; the figure is its highest resident size, and that above its size just before the
prediction. The network is thin (two 3³ convolutions to 32 features and a 1×1×1 head), so merging is what is measured.

    python benchmarks/bench_prediction_memory.py [--shape 160 160 480] [--tile 96] [--classes 105] [--large]
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

MIB = 1024**2


def resident_bytes() -> int:
    """Resident size of this process now."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def peak_bytes() -> int:
    """Highest resident size of this process (getrusage would count what the parent held when it started this one)."""
    return 1024 * int(Path("/proc/self/status").read_text(encoding="ascii").split("VmHWM:")[1].split()[0])


def build_network(classes: int, kernel: int):
    import torch

    class Thin(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            conv = torch.nn.Conv3d
            self.body = torch.nn.Sequential(
                conv(1, 32, kernel, padding=kernel // 2), torch.nn.ReLU(), conv(32, 32, kernel, padding=kernel // 2)
            )
            self.head = conv(32, classes, 1)

        def features(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.features(x))

    torch.manual_seed(0)
    return Thin().eval()


def measure(method: str, shape: list[int], tile: int, classes: int, kernel: int) -> dict[str, float]:
    """Run one method in this process."""
    import numpy as np
    import torch
    from monai.inferers import sliding_window_inference

    from medseg.inference.backend import TorchBackend
    from medseg.inference.streaming import Window, predict_labels
    from medseg.transforms.label_decision import LabelDecision

    network = build_network(classes, kernel)
    image = torch.randn(1, *shape)
    size = (tile,) * 3
    backend = TorchBackend(network, torch.device("cpu"), blend_features=method != "medseg logits")
    before = resident_bytes()
    started = time.perf_counter()
    if method == "monai":
        with torch.inference_mode():
            logits = sliding_window_inference(image[None], size, 1, network, 0.5, "gaussian")
            labels = logits.argmax(1)[0].to(torch.uint8)
    else:
        labels = predict_labels(
            image, np.eye(4), np.eye(4), shape, backend, LabelDecision(range(classes)), Window(size),
            backend.head_weight, backend.head_bias,
        )  # fmt: skip
    peak = peak_bytes()
    return {
        "seconds": time.perf_counter() - started,
        "peak_mib": peak / MIB,
        "above_mib": (peak - before) / MIB,
        "checksum": int(labels.to(torch.int64).sum()),
    }


def run(method: str, arguments: argparse.Namespace, shape: list[int], kernel: int) -> dict[str, float]:
    """Measure in a fresh process."""
    request = json.dumps([method, shape, arguments.tile, arguments.classes, kernel])
    done = subprocess.run([sys.executable, __file__, "--one", request], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"]
        raise SystemExit(f"{method}: {reason[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Compare the methods, or measure one (`--one`, for the child processes)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=[160, 160, 480])
    parser.add_argument("--tile", type=int, default=96)
    parser.add_argument("--classes", type=int, default=105)
    parser.add_argument("--kernel", type=int, default=3, help="1 makes the network cheap where only memory matters")
    parser.add_argument("--large", action="store_true", help="also 512×512×400 (MONAI's way would not fit)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*json.loads(arguments.one))))
        return
    print(f"{platform.processor() or platform.machine()}, {arguments.classes} classes, tile {arguments.tile}, fp32\n")
    print("| shape | method | peak MiB | above MiB | MONAI / it | s |\n|---|---|---:|---:|---:|---:|")
    runs = [(arguments.shape, method) for method in ("monai", "medseg logits", "medseg features")]
    runs += [([512, 512, 400], "medseg features")] if arguments.large else []
    reference: float | None = None
    for shape, method in runs:
        result = run(method, arguments, shape, arguments.kernel)
        reference = result["above_mib"] if method == "monai" else reference
        ratio = f"{reference / result['above_mib']:.1f}" if reference and shape == arguments.shape else "–"
        print(
            f"| {'×'.join(map(str, shape))} | {method} | {result['peak_mib']:.0f} | {result['above_mib']:.0f} "
            f"| {ratio} | {result['seconds']:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
