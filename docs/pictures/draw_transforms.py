"""Draw the pictures of the boundary weight map and of elastic deformation, from generated cells or from a given slice.

    python docs/pictures/draw_transforms.py [--out docs/pictures] [--image SLICE --label LABEL]

A given label map is binary (0 is membrane); its connected components are the cells.
"""

import argparse
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from medseg.figures import deformation_grid, weight_map
from medseg.transforms import RandElasticDeformation, boundary_weight_map
from medseg.transforms.elastic.deformation import Deformation
from medseg.transforms.elastic.resampling import Padding


def generated_cells(size: int = 320, num_cells: int = 60, seed: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Make a picture like electron microscopy and its instance map: touching, irregular cells with dark membranes."""
    random = np.random.default_rng(seed)
    voxels = np.moveaxis(np.indices((size, size)), 0, -1).astype(float)
    voxels += np.stack([ndimage.gaussian_filter(random.normal(size=(size, size)), 9) * 130 for _ in range(2)], -1)
    points = random.uniform(0, size, (num_cells, 2))
    distances, nearest = cKDTree(points).query(voxels, k=2)
    instances = nearest[..., 0].astype(np.int32) + 1
    gap = distances[..., 1] - distances[..., 0]
    membrane = np.exp(-((gap / 3.5) ** 2))
    brightness = random.uniform(0.62, 0.8, num_cells)[instances - 1]
    texture = ndimage.gaussian_filter(random.normal(size=(size, size)), 1.2) * 0.16
    organelles = ndimage.gaussian_filter(random.random((size, size)) > 0.9985, 3.0) * 9
    image = brightness * (1 - 0.75 * membrane) - 0.35 * np.clip(organelles, 0, 1) * (gap > 12) + texture
    space = distances[..., 0] > 36  # between the cells
    instances[space], image[space] = 0, 0.93 + texture[space]
    return np.clip(image, 0, 1), instances


def draw_weight_map(image: np.ndarray, label: np.ndarray, instances: np.ndarray | None, path: Path) -> None:
    weights, target = boundary_weight_map(label, instance_map=instances, class_weights="balanced")
    cells = ndimage.label(target)[0] if instances is None else np.where(target, instances, 0)
    weight_map(image, cells, weights, path, "weight: classes balanced, w0 = 10, σ = 5 pixels")


def draw_deformation(
    image: np.ndarray, label: np.ndarray, params: Deformation, title: str, path: Path, padding: Padding = "border"
) -> None:
    deform = RandElasticDeformation(padding=padding)
    moved = deform.apply(params, image[None].astype(np.float32))[0]
    moved_label = deform.apply(params, label[None], mode="nearest")[0]
    deformation_grid(image, moved, params.source_coordinates(), path, title, label, moved_label)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--image", type=Path)
    parser.add_argument("--label", type=Path)
    arguments = parser.parse_args()
    instances: np.ndarray | None
    if arguments.image is None:
        image, instances = generated_cells()
        label = (instances > 0).astype(np.uint8)
    else:
        from PIL import Image

        image = np.asarray(Image.open(arguments.image), dtype=float) / 255
        label, instances = (np.asarray(Image.open(arguments.label)) > 0).astype(np.uint8), None
    draw_weight_map(image, label, instances, arguments.out / "boundary_weight_map.png")
    outlines = label if instances is None else instances
    unet = RandElasticDeformation(prob=1.0, form="unet_ronneberger2015").set_random_state(5)
    fused = RandElasticDeformation(prob=1.0, rotation_range=0.4, scale_range=0.2, flip=(0, 1)).set_random_state(3)
    for deform, name, title, padding in (
        (unet, "elastic_deformation", "deformed: 3×3 grid, N(0, 10 px), bicubic", "border"),
        (fused, "elastic_deformation_fused", "the same resampling with rotation, scaling and flips", 0.0),
    ):
        params = deform.randomize(image.shape)
        if params is None:
            raise RuntimeError(f"{name}: prob=1.0 must deform")
        draw_deformation(image, outlines, params, title, arguments.out / f"{name}.png", padding)


if __name__ == "__main__":
    main()
