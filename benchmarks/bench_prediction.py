"""Compare prediction with MONAI and nnU-Net: the whole command, merging tiles, and restoring labels.

    python benchmarks/bench_prediction.py [--size 256] [--tile 96] [--repeats N] [--only command|merge|restore]
                                          [--restore-scale 1.0]

command: from a scan's file to a segmentation's file, on a generated CT-like volume. Models are built beforehand. All
methods use the same network (stages of 32 to 320 channels), weights and tiles; see `whole_command.py`.

merge: all methods use the same network, tiles and overlap in fp32. "network alone" is the number of tiles × the time of
one forward pass, which is the lower bound of any method.

restore: from logits of 14 classes on 256×256×100 voxels to labels on 512×512×300 (both × --restore-scale). nnU-Net's
method is reproduced with `scipy.ndimage.zoom`, which its `skimage.transform.resize` calls, per class in float64 and
with an argmax at the end. MONAI's method is `SpatialResample` of all classes and an argmax.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import sliding_window_inference
from monai.networks.nets import DynUNet
from monai.transforms import SpatialResample
from nnunet_peer import NNUNetPeer, is_installed
from scipy.ndimage import zoom
from timing import Row, interleaved_medians, print_table
from whole_command import bench_command

from medseg.inference import SlidingWindowInferer
from medseg.inference.backends.torch_backend import TorchBackend
from medseg.inference.tiling.streaming import Window, predict_labels
from medseg.inference.tiling.tiles import lay_tiles
from medseg.transforms.restore.label_decision import LabelDecision
from medseg.transforms.restore.restore_labels import restore_labels


def bench_merging(size: int, tile: int, classes: int, repeats: int) -> list[Row]:
    """Measure the seconds from the image on the model grid to labels."""
    torch.manual_seed(0)
    network = DynUNet(
        3, 1, classes, [3] * 5, [1, 2, 2, 2, 2], [2] * 4, filters=[32, 64, 128, 256, 320], res_block=False
    ).eval()
    image = torch.randn(1, size, size, size)
    shape, tiles = (size,) * 3, (tile,) * 3
    native = (int(size * 1.25),) * 3
    affine = np.diag([0.8, 0.8, 0.8, 1.0])
    affine[:3, 3] = 0.5 * 0.8 - 0.5  # aligns the outer edges, as nnU-Net does
    grid = lay_tiles(shape, tiles, 0.5)
    backend = TorchBackend(network, torch.device("cpu"))
    decision = LabelDecision(range(classes))
    one = torch.randn(1, 1, *tiles)
    labels: dict[str, torch.Tensor] = {}

    def monai() -> None:
        with torch.inference_mode():
            logits = sliding_window_inference(image[None], tiles, 1, network, 0.5, "gaussian")
            resampled = SpatialResample()(MetaTensor(logits[0], affine=np.eye(4)), affine, native)  # type: ignore[index]
            labels["MONAI"] = resampled.argmax(0)

    def logits_only() -> torch.Tensor:
        with torch.inference_mode():
            return SlidingWindowInferer(tiles, 1, 0.5, "gaussian")(image[None], network)

    def streaming() -> None:
        labels["Predictor"] = predict_labels(
            image, np.eye(4), affine, native, backend, decision, Window(tiles), backend.head_weight, backend.head_bias
        )

    def nnunet() -> None:
        labels["nnU-Net"] = torch.from_numpy(NNUNetPeer(network, tiles, classes).labels(image, native, [0.8] * 3))

    seconds = interleaved_medians(
        {
            "network, one tile": lambda: backend(one),
            "MONAI": monai,
            "nnU-Net": nnunet if is_installed() else None,
            "SlidingWindow": logits_only,
            "Predictor": streaming,
        },
        repeats,
    )
    alone = seconds["network, one tile"] * grid.num_tiles
    topic = f"{size}³ → {native[0]}³, {grid.num_tiles} tiles of {tile}³, {classes} classes"
    rows = [Row(topic, "network alone (tiles × one pass)", alone, 1.0, "network alone")]
    named = {
        "MONAI": "MONAI sliding window + SpatialResample + argmax",
        "nnU-Net": "nnU-Net's predictor + its resampling + argmax",
        "SlidingWindow": "SlidingWindowInferer, logits only",
        "Predictor": "streaming to native labels",
    }
    rows += [
        Row(topic, named[name], seconds[name], seconds[name] / alone, "network alone")
        for name in named
        if name in seconds
    ]
    for peer in sorted(labels.keys() - {"Predictor"}):
        agreement = (labels["Predictor"] == labels[peer]).float().mean().item()
        faster = seconds[peer] / seconds["Predictor"]
        rows.append(Row(topic, f"{peer}, labels agree {agreement:.5f}", seconds[peer], faster, "streaming"))
    return rows


def bench_restoring(scale: float, classes: int, repeats: int) -> list[Row]:
    """Measure the seconds from logits to labels on the native grid."""
    model = tuple(max(8, int(n * scale)) for n in (256, 256, 100))
    native = tuple(max(8, int(n * scale)) for n in (512, 512, 300))
    coarse = torch.randn(1, classes, *(max(2, n // 12) for n in model), generator=torch.manual_seed(0))
    logits = torch.nn.functional.interpolate(coarse, model, mode="trilinear")[0].contiguous()
    # Align the outer edges of the grids, as resize and zoom do, so that all methods compute the same positions.
    factor = np.asarray(model) / np.asarray(native)
    affine = np.eye(4)
    affine[[0, 1, 2], [0, 1, 2]] = factor
    affine[:3, 3] = 0.5 * factor - 0.5
    array = logits.numpy()

    def nnunet(order: int) -> np.ndarray:
        resized = np.empty((classes, *native), dtype=np.float32)
        for c in range(classes):
            resized[c] = zoom(array[c].astype(np.float64), 1 / factor, order=order, mode="nearest", grid_mode=True)
        return resized.argmax(0).astype(np.uint8)

    def monai() -> torch.Tensor:
        resampled = SpatialResample()(MetaTensor(logits, affine=np.eye(4)), affine, native)
        return resampled.argmax(0)

    def ours(interpolation: str) -> torch.Tensor:
        return restore_labels(logits, np.eye(4), affine, native, LabelDecision(range(classes)), interpolation)  # type: ignore[arg-type]

    work = {
        "linear": lambda: ours("linear"),
        "cubic": lambda: ours("cubic"),
        "nnU-Net's method, order 1": lambda: nnunet(1),
        "nnU-Net's method, order 3": lambda: nnunet(3),
        "MONAI": monai,
    }
    seconds = interleaved_medians(work, repeats)
    labels = ours("linear").numpy()
    same = {1: (nnunet(1) == labels).mean(), 3: (nnunet(3) == labels).mean()}
    topic = f"restore {classes} classes {'×'.join(map(str, model))} → {'×'.join(map(str, native))}"
    rows = [Row(topic, "separable linear", seconds["linear"], 1.0, "separable linear")]
    for name in ("cubic", "MONAI", "nnU-Net's method, order 1", "nnU-Net's method, order 3"):
        note = "".join(f", labels agree {same[o]:.5f}" for o in (1, 3) if name.endswith(f"order {o}"))
        rows.append(Row(topic, name + note, seconds[name], seconds[name] / seconds["linear"], "separable linear"))
    return rows


def main() -> None:
    """Run the benchmarks and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, help="voxels per axis; default 256 for command, 192 for merge")
    parser.add_argument("--tile", type=int, default=96)
    parser.add_argument("--classes", type=int, default=14)
    parser.add_argument("--repeats", type=int, help="default 1 for command, 3 for the others")
    parser.add_argument("--restore-scale", type=float, default=1.0)
    parser.add_argument("--only", choices=["command", "merge", "restore"])
    arguments = parser.parse_args()
    rows: list[Row] = []
    if arguments.only in (None, "command"):
        rows += bench_command(arguments.size or 256, arguments.tile, arguments.classes, arguments.repeats or 1)
    if arguments.only in (None, "merge"):
        rows += bench_merging(arguments.size or 192, arguments.tile, arguments.classes, arguments.repeats or 3)
    if arguments.only in (None, "restore"):
        rows += bench_restoring(arguments.restore_scale, arguments.classes, arguments.repeats or 3)
    print_table(rows)


if __name__ == "__main__":
    main()
