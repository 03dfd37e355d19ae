"""Draw the pictures of the boundary weight map and of elastic deformation, from generated cells or from a slice given.

    python docs/pictures/draw_transforms.py [--out docs/pictures] [--image SLICE --label LABEL]

A label given is binary (0 is membrane); its cells are the connected components.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from medseg.figures.canvas import new_figure, save_png
from medseg.transforms import RandElasticDeformation, boundary_weight_map
from medseg.transforms.elastic_parameters import Deformation
from medseg.transforms.elastic_resampling import Padding


def generated_cells(size: int = 320, num_cells: int = 60, seed: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """A picture like electron microscopy, and its instance map: touching cells with wavy outlines, dark membranes."""
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


def show(axes: Any, picture: np.ndarray, title: str, **arguments: Any) -> Any:
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()
    return axes.imshow(picture, **{"cmap": "gray", "interpolation": "nearest"} | arguments)


def draw_weight_map(image: np.ndarray, label: np.ndarray, instances: np.ndarray | None) -> Any:
    weights, target = boundary_weight_map(label, instance_map=instances, class_weights="balanced")
    figure = new_figure(13.2, 4.4)
    figure.set_layout_engine("constrained")
    left, middle, right = figure.subplots(1, 3)
    show(left, image, "image")
    cells = ndimage.label(target)[0] if instances is None else np.where(target, instances, 0)
    colored = np.ma.masked_equal(cells * 7919 % 19, -1)
    show(middle, np.ma.masked_where(~target.astype(bool), colored), "target: cells, separated by ridges", cmap="tab20")
    middle.set_facecolor("black")
    drawn = show(right, weights, "weight: classes balanced, w0 = 10, σ = 5 pixels", cmap="magma", vmin=0)
    figure.colorbar(drawn, ax=right, fraction=0.046, pad=0.03)
    return figure


def draw_deformation(
    image: np.ndarray, label: np.ndarray, params: Deformation, title: str, padding: Padding = "border"
) -> Any:
    """Image and label outlines with a grid, before and after; the grid is deformed like the image."""
    deform = RandElasticDeformation(padding=padding)
    figure = new_figure(10.0, 5.2)
    figure.set_layout_engine("constrained")
    before, after = figure.subplots(1, 2)
    moved = deform.apply(params, image[None].astype(np.float32))[0]
    moved_label = deform.apply(params, label[None], mode="nearest")[0]
    rows, columns = np.indices(image.shape).astype(float)
    sources = np.moveaxis(params.source_coordinates(), -1, 0)
    pairs = ((before, image, label, (rows, columns)), (after, moved, moved_label, sources))
    for axes, picture, labels, (row, column) in pairs:
        show(axes, picture, "before" if axes is before else title, vmin=0, vmax=float(image.max()))
        spacing = image.shape[0] / 12
        for coordinate in (row, column):
            lines = np.arange(1, 12) * spacing
            axes.contour(coordinate, levels=lines, colors="#ffd54a", linewidths=0.9)
        edges = np.zeros(labels.shape, bool)
        for axis in (0, 1):
            edges |= np.diff(labels, axis=axis, append=np.take(labels, [-1], axis=axis)) != 0
        axes.imshow(np.ma.masked_where(~edges, edges), cmap="cool", interpolation="nearest", alpha=0.9)
    return figure


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
    save_png(draw_weight_map(image, label, instances), arguments.out / "boundary_weight_map.png", dpi=80)
    outlines = label if instances is None else instances
    unet = RandElasticDeformation(prob=1.0, form="unet_ronneberger2015").set_random_state(5)
    params = unet.randomize(image.shape)
    assert params is not None
    save_png(
        draw_deformation(image, outlines, params, "deformed: 3×3 grid, N(0, 10 px), bicubic"),
        arguments.out / "elastic_deformation.png",
        dpi=80,
    )
    fused = RandElasticDeformation(prob=1.0, rotation_range=0.4, scale_range=0.2, flip=(0, 1))
    params = fused.set_random_state(3).randomize(image.shape)
    assert params is not None
    save_png(
        draw_deformation(image, outlines, params, "the same resampling with rotation, scaling and flips", 0.0),
        arguments.out / "elastic_deformation_fused.png",
        dpi=80,
    )


if __name__ == "__main__":
    main()
