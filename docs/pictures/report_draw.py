"""Take the screenshots of the report: generated cells, imperfect predictions, a headless Chromium.

python docs/pictures/report_draw.py
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from medseg.datasets import generate_phantoms, read_manifest
from medseg.evaluation import evaluate
from medseg.reporting import write_report
from medseg.volumes import Volume, read_label_map, write_volume

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))

from reporting.browser import Browser  # noqa: E402

NUM_CASES = 20
DESKTOP, PHONE = (1280, 860), (390, 844)
# name → window size, colour scheme, element to scroll to, case to open
PICTURES = {
    "report_desktop_light": (DESKTOP, "light", "body", None),
    "report_viewer_dark": (DESKTOP, "dark", ".viewer", 3),
    "report_cases_light": (DESKTOP, "light", "#distributions", None),
    "report_phone_light": (PHONE, "light", "body", None),
    "report_phone_dark": (PHONE, "dark", ".viewer", 3),
}


def imperfect(labels: np.ndarray, cells: np.ndarray, number: int) -> np.ndarray:
    """Make a prediction with wrong borders, lost cells, swapped classes and, in case 7, a missed class."""
    rng = np.random.default_rng(number)
    noise = ndimage.gaussian_filter(rng.normal(size=labels.shape), 3)
    noise /= noise.std()
    away = ndimage.distance_transform_edt(labels == 0) - ndimage.distance_transform_edt(labels > 0)
    grown = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    prediction = np.where(away < 0.4 + (0.4 + 0.05 * (number % 8)) * noise, labels[tuple(grown)], 0)
    for cell in rng.choice(np.arange(1, cells.max() + 1), size=1 + number % 4, replace=False):
        prediction[cells == cell] = rng.choice([0, 1, 2])
    if number == 7:
        prediction[prediction == 2] = 0
    return prediction.astype(np.uint8)


def make_page(folder: Path) -> Path:
    """Write the report of 20 generated cases."""
    cases = generate_phantoms(folder, NUM_CASES)
    for number, case in enumerate(cases):
        labels = read_label_map(folder / "labels" / f"{case}.nii.gz")
        cells = read_label_map(folder / "instances" / f"{case}.nii.gz").array
        like = Volume(labels.array, labels.grid)
        write_volume(folder / "predictions" / f"{case}.nii.gz", imperfect(labels.array, cells, number), like)
    manifest = read_manifest("phantom_cells")
    evaluation = evaluate(folder / "predictions", folder / "labels", labels=manifest, instances="components")
    return write_report(evaluation, folder / "report.html", labels=manifest, title="Generated cells").path


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        page = make_page(Path(folder))
        browser = Browser(Path(folder) / "chromium")
        try:
            for name, ((width, height), colours, top, case) in PICTURES.items():
                browser.devtools(
                    "Emulation.setDeviceMetricsOverride",
                    width=width,
                    height=height,
                    deviceScaleFactor=1,
                    mobile=width < 600,
                )
                browser.devtools(
                    "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": colours}]
                )
                browser.open(page)
                if case is not None:
                    browser.js("medseg.open(arguments[0])", case)
                    browser.wait("return document.querySelector('.viewer').dataset.ready !== 'no'")
                    browser.js("document.querySelector('[data-toggle=errors]').click()")
                browser.js("document.querySelector(arguments[0]).scrollIntoView()", top)
                browser.wait_until_drawn()
                screen = Image.fromarray(browser.screenshot())
                picture = screen.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
                data = io.BytesIO()
                picture.save(data, "PNG", optimize=True)
                (HERE / f"{name}.png").write_bytes(data.getvalue())
                print(f"{name}.png {len(data.getvalue()) / 1000:.0f} kB")
        finally:
            browser.close()


if __name__ == "__main__":
    main()
