"""The HTML of a notebook cell."""

from __future__ import annotations

import base64
import io
import sys
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from medseg.errors import OptionError
from medseg.figures.canvas import OKABE_ITO
from medseg.figures.notebook import segmentation_html
from medseg.inference.segmentation import Segmentation
from medseg.volumes import Grid, Volume

LABELS = {"background": 0, "front": 1, "<b>back & side</b>": 4}


class Page(HTMLParser):
    """Collect texts and attributes of all elements, and check that tags are nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def segmentation() -> Segmentation:
    array = np.zeros((20, 24, 16), np.uint8)
    array[5:15, 4:12, 4:12] = 1
    array[5:15, 12:20, 4:12] = 4
    image = np.random.default_rng(0).normal(size=array.shape).astype(np.float32)
    grid = Grid(array.shape, np.diag([1.0, 2, 0.5, 1]))
    return Segmentation(array, LABELS, Volume(image, grid, path=Path("private/a&b.nii.gz")))


def test_a_notebook_gets_the_picture_and_the_volumes() -> None:
    html = segmentation()._repr_html_()
    page = Page(html)
    tags = [tag for tag, _ in page.found]
    assert {"script", "link", "style"}.isdisjoint(tags)
    (viewer,) = [attributes for tag, attributes in page.found if tag == "iframe"]
    assert viewer["sandbox"] == "allow-scripts"
    assert "src" not in viewer
    (picture,) = [attributes for tag, attributes in page.found if tag == "img"]
    kind, data = str(picture["src"]).split(",")
    assert kind == "data:image/png;base64"
    pixels = np.rint(matplotlib.image.imread(io.BytesIO(base64.b64decode(data, validate=True)))[..., :3] * 255)
    for color in OKABE_ITO[:2]:
        assert (np.abs(pixels - [int(color[i : i + 2], 16) for i in (1, 3, 5)]).max(-1) <= 2).sum() > 100
    # 10 × 8 × 8 voxels of 1 mm³ each
    assert picture["alt"] == "a&b.nii.gz in three planes; front 0.64 ml; <b>back & side</b> 0.64 ml"
    assert [text for text in page.texts if text] == [
        "a&b.nii.gz Research use only.", "label", "ml", "front", "0.64", "<b>back & side</b>", "0.64", "slices"
    ]  # fmt: skip
    swatches = [str(attributes["style"]).split(";")[0] for tag, attributes in page.found if tag == "span"]
    assert swatches == [f"background:{color}" for color in OKABE_ITO[:2]]


def test_without_matplotlib_the_picture_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    page = Page(segmentation()._repr_html_())
    assert "img" not in [tag for tag, _ in page.found]
    assert any("medseg[figures]" in text for text in page.texts)
    assert page.texts.count("0.64") == 2


def test_nothing_but_background_is_an_empty_table() -> None:
    page = Page(segmentation_html(np.zeros((4, 5)), np.zeros((4, 5), int), np.eye(4), {"background": 0}, {}))
    assert "td" not in [tag for tag, _ in page.found]


def test_the_viewer_alone_equals_the_one_in_the_cell() -> None:
    seg = segmentation()
    assert seg.view()._repr_html_() in seg._repr_html_()


def test_an_unknown_viewer_is_refused() -> None:
    with pytest.raises(OptionError, match="medseg or niivue, found webgl"):
        segmentation().view("webgl")  # type: ignore[arg-type]


def test_without_ipyniivue_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipyniivue", None)
    with pytest.raises(ImportError, match=r"pip install 'medseg\[niivue\]'"):
        segmentation().view("niivue")
