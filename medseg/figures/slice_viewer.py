"""A small page that leafs through a volume with its labels, for an iframe: no network, no libraries."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

from medseg.figures.label_colors import OKABE_ITO
from medseg.figures.planes import labelled_center
from medseg.figures.three_planes import intensity_window

# The worst image, noise, then takes 1.3 MB of a notebook.
MAX_VOXELS = 1_000_000

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<style>body{margin:0;background:#000;color:#eee;font:13px sans-serif}main{display:flex;flex-wrap:wrap;gap:8px}
figure{margin:0;position:relative;flex:1 1 150px}canvas{width:100%;image-rendering:pixelated;display:block}
input[type=range]{width:96%}b{position:absolute;text-shadow:0 0 3px #000}</style>
<main></main><label><input type="checkbox" checked id="labels"> labels</label> <span id="note"></span>
<script type="application/json" id="data">DATA</script>
<script>"use strict";
const data = JSON.parse(document.getElementById("data").textContent), [nx, ny, nz] = data.shape;
const colors = data.colors.map(c => [1, 3, 5].map(i => parseInt(c.slice(i, i + 2), 16)));
const unpack = async text => {
  const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
};
// name, number of slices, columns, rows, mm of a pixel, voxel at (slice, column, row), letters: left right top bottom
const planes = [
  ["axial", nz, nx, ny, [0, 1], (s, c, r) => [c, r, s], "RLAP"],
  ["coronal", ny, nx, nz, [0, 2], (s, c, r) => [c, s, nz - 1 - r], "RLSI"],
  ["sagittal", nx, ny, nz, [1, 2], (s, c, r) => [s, c, nz - 1 - r], "APSI"],
];
(async () => {
  const [image, labels] = await Promise.all([unpack(data.image), unpack(data.labels)]);
  const box = document.getElementById("labels"), draws = [];
  for (const [name, count, columns, rows, mm, voxel, letters] of planes) {
    const figure = document.createElement("figure"), canvas = document.createElement("canvas");
    const slider = document.createElement("input"), text = document.createElement("figcaption");
    canvas.width = columns; canvas.height = rows;
    canvas.style.aspectRatio = `${columns * data.spacing[mm[0]]} / ${rows * data.spacing[mm[1]]}`;
    Object.assign(slider, { type: "range", min: 0, max: count - 1 });
    slider.value = data.center[{ axial: 2, coronal: 1, sagittal: 0 }[name]];
    slider.setAttribute("aria-label", `${name} slice`);
    const places = ["left:2px;top:45%", "right:2px;top:45%", "left:48%;top:0", "left:48%;bottom:42px"];
    [...letters].forEach((letter, i) => {
      const mark = document.createElement("b"); mark.textContent = letter; mark.style = places[i]; figure.append(mark);
    });
    figure.append(canvas, slider, text);
    document.querySelector("main").append(figure);
    const draw = () => {
      const pixels = new ImageData(columns, rows), out = pixels.data;
      for (let r = 0, o = 0; r < rows; r++) for (let c = 0; c < columns; c++, o += 4) {
        const [x, y, z] = voxel(+slider.value, c, r), i = x + nx * (y + ny * z), grey = image[i];
        const color = box.checked && labels[i] ? colors[(labels[i] - 1) % colors.length] : null;
        for (let k = 0; k < 3; k++) out[o + k] = color ? 0.6 * grey + 0.4 * color[k] : grey;
        out[o + 3] = 255;
      }
      canvas.getContext("2d").putImageData(pixels, 0, 0);
      text.textContent = `${name} ${+slider.value + 1}/${count}`;
    };
    slider.addEventListener("input", draw); draws.push(draw); draw();
  }
  box.addEventListener("change", () => draws.forEach(draw => draw()));
  document.getElementById("note").textContent = data.note;
  document.body.dataset.ready = "yes";
})();
</script></html>"""


def slice_viewer(image: np.ndarray, label_map: np.ndarray, affine: np.ndarray, labels: Mapping[str, int]) -> str:
    """An iframe in which sliders leaf through the three planes, in the orientation of `three_planes`.

    Args:
        image: (i, j, k), shown between its 1st and 99th percentile.
        label_map: integers of the same shape.
        affine: 4×4, voxel index to mm (RAS+).
        labels: value by name; 0 is background. Colours are those of `three_planes`.
    """
    page = _PAGE.replace("DATA", json.dumps(viewer_data(image, label_map, affine, labels)))
    style = "width:100%;height:420px;border:0"
    return f'<iframe sandbox="allow-scripts" title="slices" style="{style}" srcdoc="{escape(page)}"></iframe>'


def viewer_data(
    image: np.ndarray, label_map: np.ndarray, affine: np.ndarray, labels: Mapping[str, int]
) -> dict[str, Any]:
    """What the page is given: bytes along (left, posterior, superior), the first axis fastest; every n-th voxel."""
    step = int(np.ceil((image.size / MAX_VOXELS) ** (1 / 3)))
    to_lps = ornt_transform(io_orientation(affine), axcodes2ornt("LPS"))
    positions = np.zeros(label_map.shape, np.uint8)
    for position, value in enumerate(value for value in labels.values() if value != 0):
        positions[label_map == value] = position % len(OKABE_ITO) + 1
    low, high = intensity_window(image)
    thin = (slice(None, None, step),) * 3
    grey = np.nan_to_num(np.clip((image[thin].astype(np.float32) - low) / (high - low), 0, 1))
    shown = apply_orientation(np.rint(255 * grey).astype(np.uint8), to_lps)
    shown_labels = apply_orientation(positions[thin], to_lps)
    middle = labelled_center(label_map)
    natives = [list(to_lps[:, 0]).index(axis) for axis in range(3)]
    center = [middle[native] // step for native in natives]
    spacing = step * np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)
    return {
        "image": _packed(shown),
        "labels": _packed(shown_labels),
        "shape": list(shown.shape),
        "spacing": [float(spacing[native]) for native in natives],
        "center": [
            shown.shape[axis] - 1 - center[axis] if to_lps[native, 1] < 0 else center[axis]
            for axis, native in enumerate(natives)
        ],
        "colors": list(OKABE_ITO),
        "note": f"every {step}. voxel along each axis is shown" if step > 1 else "",
    }


def _packed(volume: np.ndarray) -> str:
    return base64.b64encode(gzip.compress(volume.tobytes(order="F"), 6, mtime=0)).decode("ascii")
