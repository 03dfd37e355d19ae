"""Time the elastic deformation of an image and its label map against the peers that are installed.

    python benchmarks/bench_elastic.py [--size 128] [--repeats 11]

The image (float32) and label map (uint8) have size³ voxels. Every peer deforms at every call, with linear
interpolation of the image and nearest for the labels, without rotation or scaling unless the row names them.
"Dense field" is the simple implementation: separable upsampling of a 3³ grid to a dense field, and one `grid_sample`
per array. The table shows medians of interleaved repeats; torch's number of threads is printed.
"""

import argparse
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from monai.transforms import Rand3DElasticd

from medseg.transforms import RandElasticDeformation, RandElasticDeformationd

sys.path.insert(0, str(Path(__file__).parent))
from timing import Row, interleaved_medians, print_table

KEYS = ("image", "label")
MODES = ("bilinear", "nearest")


def sample(size: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.rand(1, size, size, size, generator=generator),
        "label": torch.randint(0, 4, (1, size, size, size), generator=generator, dtype=torch.uint8),
    }


def ours(data: dict[str, torch.Tensor], **arguments: object) -> Callable[[], object]:
    deform = RandElasticDeformationd(KEYS, MODES, **{"prob": 1.0, **arguments}).set_random_state(0)
    return lambda: deform(data)


def dense_field(data: dict[str, torch.Tensor]) -> Callable[[], object]:
    draw = RandElasticDeformation(prob=1.0).set_random_state(0)
    size = torch.tensor(data["image"].shape[1:])

    def call() -> list[torch.Tensor]:
        params = draw.randomize(data["image"].shape[1:])
        assert params is not None
        dense = torch.from_numpy(params.source_controls().astype(np.float32))
        dense = (2 * dense - (size - 1)) / (size - 1)
        for axis, weights in enumerate(params.weights):
            dense = torch.tensordot(torch.from_numpy(weights.astype(np.float32)), dense, dims=([1], [axis]))
            dense = dense.movedim(0, axis)
        grid = dense.flip(-1)[None]
        return [
            F.grid_sample(data[key][None].float(), grid, mode, "border", align_corners=True).to(data[key].dtype)
            for key, mode in zip(KEYS, MODES, strict=True)
        ]

    return call


def monai(data: dict[str, torch.Tensor], prob: float = 1.0) -> Callable[[], object]:
    deform = Rand3DElasticd(KEYS, (5, 8), (100, 200), prob=prob, mode=MODES, padding_mode="border").set_random_state(0)
    return lambda: deform(data)


def torchio(data: dict[str, torch.Tensor]) -> Callable[[], object] | None:
    try:
        import torchio as tio
    except ImportError:
        return None
    subject = tio.Subject(image=tio.ScalarImage(tensor=data["image"]), label=tio.LabelMap(tensor=data["label"]))
    deform = tio.RandomElasticDeformation()
    return lambda: deform(subject)


def batchgenerators(data: dict[str, torch.Tensor], elastic: bool = True) -> Callable[[], object] | None:
    try:
        from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
    except ImportError:
        return None
    shape = tuple(data["image"].shape[1:])
    deform = SpatialTransform(
        shape, 0, False, p_elastic_deform=float(elastic), p_rotation=0, p_scaling=0, mode_seg="nearest"
    )
    arguments = {"image": data["image"], "segmentation": data["label"].to(torch.int16)}
    return lambda: deform(**arguments)


def rows(size: int, repeats: int) -> list[Row]:
    warnings.simplefilter("ignore")
    data = sample(size)
    deforming = {
        "medseg": ours(data),
        "medseg, with rotation, scaling, flips": ours(data, rotation_range=0.3, scale_range=0.2, flip=(0, 1, 2)),
        "medseg, 32-voxel B-spline form": ours(data, form="unet3d_cicek2016"),
        "dense field": dense_field(data),
        "MONAI Rand3DElasticd": monai(data),
        "TorchIO RandomElasticDeformation": torchio(data),
        "batchgeneratorsv2 SpatialTransform": batchgenerators(data),
    }
    skipping = {"medseg, skipped": ours(data, prob=0.0), "MONAI Rand3DElasticd, skipped": monai(data, prob=0.0)}
    topic = f"elastic deformation, image + label {size}³"
    return [
        Row(topic, name, value, value / times[reference], reference)
        for times, reference in (
            (interleaved_medians(deforming, repeats), "medseg"),
            (interleaved_medians(skipping, repeats), "medseg, skipped"),
        )
        for name, value in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=11)
    arguments = parser.parse_args()
    print_table(rows(arguments.size, arguments.repeats))


if __name__ == "__main__":
    main()
