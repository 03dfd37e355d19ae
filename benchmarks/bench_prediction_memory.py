"""Measure the peak memory of merging 105 classes, in MONAI, nnU-Net and medseg.

Each run is a separate process. Reported are its largest resident size, and how much that is above its size just before
the prediction. The network is thin (two 3³ convolutions to 32 features and a 1×1×1 head), so that merging dominates.

    python benchmarks/bench_prediction_memory.py [--shape 160 160 480] [--tile 96] [--classes 105] [--repeats 1]
                                                 [--large] [--only-large] [--large-shape 512 512 400] [--out FILE]

Long runs print their progress and the remaining time. With --out, the figures so far are written to that file every
few seconds, and the next call does not repeat finished runs.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nnunet_peer import NNUNetPeer, is_installed
from timing import machine

MIB = 1024**2
SECONDS_BETWEEN_FIGURES = 5.0


def resident_bytes() -> int:
    """Return the resident size of this process."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def peak_bytes() -> int:
    """Return the largest resident size of this process. getrusage would include what its parent held at the start."""
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


class Progress:
    """Report the figures of a run every few seconds.

    Args:
        before: resident bytes just before the work.
        report: receives the figures so far.
    """

    def __init__(self, before: int, report: Callable[[dict[str, Any]], None]) -> None:
        self.before, self.report = before, report
        self.started = self.reported = time.perf_counter()

    def figures(self) -> dict[str, Any]:
        """Return the seconds since the start, and the peak so far."""
        peak = peak_bytes()
        seconds = time.perf_counter() - self.started
        return {"seconds": seconds, "peak_mib": peak / MIB, "above_mib": (peak - self.before) / MIB}

    def __call__(self, done: int, total: int) -> None:
        """Report the progress; called after each batch of tiles."""
        now = time.perf_counter()
        if now - self.reported >= SECONDS_BETWEEN_FIGURES:
            self.reported = now
            self.report({**self.figures(), "tiles": done, "of_tiles": total})


def print_json(figures: dict[str, Any]) -> None:
    """Print one line of JSON for the parent process."""
    print(json.dumps(figures), flush=True)


def measure(method: str, shape: list[int], tile: int, classes: int, kernel: int) -> dict[str, Any]:
    """Measure one method in this process."""
    import numpy as np
    import torch
    from monai.inferers import sliding_window_inference

    from medseg.inference.backends.torch_backend import TorchBackend
    from medseg.inference.tiling.streaming import Window, predict_labels
    from medseg.transforms.restore.label_decision import LabelDecision

    network = build_network(classes, kernel)
    if method == "nnU-Net":
        import nnunetv2.inference.predict_from_raw_data  # noqa: F401  its imports are not counted as memory of the prediction
    image = torch.randn(1, *shape)
    size = (tile,) * 3
    backend = TorchBackend(network, torch.device("cpu"), blend_features=method != "medseg logits")
    progress = Progress(resident_bytes(), print_json)
    if method == "monai":
        with torch.inference_mode():
            logits = sliding_window_inference(image[None], size, 1, network, 0.5, "gaussian")
            labels = logits.argmax(1)[0].to(torch.uint8)
    elif method == "nnU-Net":
        labels = torch.from_numpy(NNUNetPeer(network, size, classes).labels(image, shape, [1.0] * 3))
    else:
        labels = predict_labels(
            image, np.eye(4), np.eye(4), shape, backend, LabelDecision(range(classes)), Window(size),
            backend.head_weight, backend.head_bias, on_tiles=progress,
        )  # fmt: skip
    return {**progress.figures(), "is_finished": True, "checksum": int(labels.to(torch.int64).sum())}


class Figures:
    """Figures of all runs, kept in a file that is written atomically, or in memory if there is no file."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.runs: dict[str, dict[str, Any]] = {}
        if path is not None and path.is_file():
            self.runs = json.loads(path.read_text(encoding="utf-8"))["runs"]

    def finished(self, name: str) -> dict[str, Any] | None:
        """Return the figures of a run that an earlier call has finished."""
        found = self.runs.get(name)
        return found if found and found.get("is_finished") else None

    def note(self, name: str, figures: dict[str, Any]) -> None:
        """Keep the figures of a run so far."""
        self.runs[name] = figures
        if self.path is not None:
            temporary = self.path.with_suffix(".part")
            temporary.write_text(json.dumps({"machine": machine(), "runs": self.runs}, indent=1), encoding="utf-8")
            temporary.replace(self.path)


def run(method: str, arguments: argparse.Namespace, shape: list[int], name: str, figures: Figures) -> dict[str, Any]:
    """Measure in a new process and follow its progress. If it is killed, return its last figures."""
    request = json.dumps([method, shape, arguments.tile, arguments.classes, arguments.kernel])
    command = [sys.executable, "-W", "ignore", __file__, "--one", request]
    last: dict[str, Any] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            for line in child.stdout or ():
                last = json.loads(line)
                figures.note(name, last)
                if "tiles" in last:
                    left = last["seconds"] * (last["of_tiles"] / last["tiles"] - 1)
                    print(
                        f"{name}: {last['tiles']} of {last['of_tiles']} tiles, peak {last['peak_mib']:.0f} MiB, "
                        f"{left / 60:.1f} min left", file=sys.stderr, flush=True,
                    )  # fmt: skip
        except KeyboardInterrupt:
            child.terminate()
    if not last:
        raise SystemExit(f"{name}: ended with status {child.returncode} before anything was measured")
    return last


def main() -> None:
    """Compare the methods, or measure one of them (`--one`, used for the child processes)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=[160, 160, 480])
    parser.add_argument("--tile", type=int, default=96)
    parser.add_argument("--classes", type=int, default=105)
    parser.add_argument("--kernel", type=int, default=3, help="1 makes the network fast if only the memory matters")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each method on --shape")
    parser.add_argument("--large", action="store_true", help="also measure --large-shape (without MONAI)")
    parser.add_argument("--only-large", action="store_true", help="measure only --large-shape")
    parser.add_argument("--large-shape", type=int, nargs=3, default=[512, 512, 400])
    parser.add_argument("--out", type=Path, help="JSON file for the figures; finished runs in it are not repeated")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print_json(measure(*json.loads(arguments.one)))
        return
    figures = Figures(arguments.out)
    print(f"Machine: {machine()}\n\n{arguments.classes} classes, tile {arguments.tile}, fp32\n")
    print("| shape | method | peak MiB | above MiB | MONAI / it | s |\n|---|---|---:|---:|---:|---:|")
    methods = [] if arguments.only_large else ["monai", "medseg logits", "medseg features"]
    if methods and is_installed():
        methods.insert(1, "nnU-Net")
    runs = [(arguments.shape, method, arguments.repeats) for method in methods]
    runs += [(arguments.large_shape, "medseg features", 1)] if arguments.large or arguments.only_large else []
    reference: float | None = None
    for shape, method, repeats in runs:
        size = "×".join(map(str, shape))
        found = []
        for number in range(repeats):
            setting = f"{arguments.classes} classes, tile {arguments.tile}, kernel {arguments.kernel}"
            name = f"{size}, {method}, {setting}, run {number + 1}"
            found.append(figures.finished(name) or run(method, arguments, shape, name, figures))
        peak, above, seconds = (
            statistics.median(r[key] for r in found) for key in ("peak_mib", "above_mib", "seconds")
        )
        reference = above if method == "monai" else reference
        ratio = f"{reference / above:.1f}" if reference and shape == arguments.shape else "–"
        cut = [
            f" (ended after {r.get('tiles', 0)} of {r.get('of_tiles', '?')} tiles)"
            for r in found
            if not r.get("is_finished")
        ]
        print(f"| {size} | {method}{''.join(cut)} | {peak:.0f} | {above:.0f} | {ratio} | {seconds:.1f} |", flush=True)
        if cut:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
