"""Time one draw of patches centred on labels against MONAI, TorchIO and a bare copy of the patch.

    python benchmarks/bench_crop_by_label.py [--size 256] [--patch 96] [--repeats 21]

The image (float32) and label map (uint8) have size³ voxels and three classes, two of them rare. Each draw crops one
patch³ from both. The bare copy crops the same two patches at a random position and does nothing else. The table shows
medians of interleaved repeats.
"""

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import ClassesToIndicesd, RandCropByLabelClassesd

from medseg.transforms import LabelVoxelIndexd, RandCropByLabeld

sys.path.insert(0, str(Path(__file__).parent))
from timing import Row, interleaved_medians, print_table

RATIOS = [1.0, 1.0, 1.0]


def volumes(size: int) -> dict[str, MetaTensor]:
    """Make noise, and a label map with a ball of radius size/16 and one of radius size/40."""
    generator = np.random.default_rng(0)
    label = np.zeros((1, size, size, size), np.uint8)
    axes = np.ogrid[:size, :size, :size]
    for value, centre, radius in ((1, 0.3, size / 16), (2, 0.7, size / 40)):
        label[0][sum((axis - centre * size) ** 2 for axis in axes) <= radius**2] = value
    image = generator.standard_normal((1, size, size, size), dtype=np.float32)
    return {"image": MetaTensor(torch.from_numpy(image)), "label": MetaTensor(torch.from_numpy(label))}


def bare_copy(volumes: list[Any], patch: int, copy: Callable[[Any], Any]) -> Callable[[], object]:
    """Return a draw that copies the same random patch of every volume by `copy`."""
    state = np.random.RandomState(0)

    def draw() -> list[Any]:
        i, j, k = state.randint(0, volumes[0].shape[-1] - patch + 1, 3)
        return [copy(v[:, i : i + patch, j : j + patch, k : k + patch]) for v in volumes]

    return draw


def torchio_sampler(data: dict[str, MetaTensor], patch: int) -> Callable[[], object] | None:
    """Return a draw of one patch by TorchIO's LabelSampler, or None if TorchIO is not installed."""
    try:
        import torchio
    except ImportError:
        return None
    subject = torchio.Subject(
        image=torchio.ScalarImage(tensor=data["image"].as_tensor()),
        label=torchio.LabelMap(tensor=data["label"].as_tensor()),
    )
    sampler = torchio.LabelSampler(patch, "label", {0: 1, 1: 1, 2: 1})
    return lambda: next(sampler(subject, 1))


def rows(size: int, patch: int, repeats: int) -> list[Row]:
    warnings.simplefilter("ignore")
    data = volumes(size)
    keys, arguments = ["image", "label"], {"spatial_size": [patch] * 3, "num_samples": 1}
    indexed = LabelVoxelIndexd("label")(data)
    print(f"voxel index: {indexed['label_voxel_index']}")
    classes = ClassesToIndicesd("label", num_classes=3)(data)
    print(f"MONAI's own indices: {sum(t.nbytes for t in classes['label_cls_indices'])} bytes")
    ours = RandCropByLabeld(keys, "label", ratios=RATIOS, **arguments)
    theirs = RandCropByLabelClassesd(keys, "label", ratios=RATIOS, num_classes=3, **arguments)
    theirs_indexed = RandCropByLabelClassesd(
        keys, "label", ratios=RATIOS, num_classes=3, indices_key="label_cls_indices", **arguments
    )
    slow: dict[str, Callable[[], object] | None] = {
        "medseg, no index": lambda: ours(data),
        "MONAI": lambda: theirs(data),
        "TorchIO LabelSampler": torchio_sampler(data, patch),
    }
    with tempfile.TemporaryDirectory() as folder:
        mapped = {"label_voxel_index": indexed["label_voxel_index"]}
        for key in keys:
            np.save(Path(folder) / f"{key}.npy", data[key].numpy())
            mapped[key] = np.load(Path(folder) / f"{key}.npy", mmap_mode="r")
        in_memory: dict[str, Callable[[], object] | None] = {
            "bare copy": bare_copy([data[key].as_tensor() for key in keys], patch, torch.clone),
            "medseg, indexed": lambda: ours(indexed),
            "MONAI, own indices": lambda: theirs_indexed(classes),
        }
        memory_mapped: dict[str, Callable[[], object] | None] = {
            "bare copy, memory-mapped": bare_copy([mapped[key] for key in keys], patch, np.array),
            "medseg, memory-mapped": lambda: ours(mapped),
        }
        seconds = interleaved_medians(in_memory, repeats, inner=10) | interleaved_medians(slow, max(3, repeats // 7))
        seconds_mapped = interleaved_medians(memory_mapped, repeats, inner=10)
    return [
        Row("crop by label", name, value, value / times[reference], reference)
        for times, reference in ((seconds, "bare copy"), (seconds_mapped, "bare copy, memory-mapped"))
        for name, value in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--patch", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=21)
    arguments = parser.parse_args()
    print_table(rows(arguments.size, arguments.patch, arguments.repeats))


if __name__ == "__main__":
    main()
