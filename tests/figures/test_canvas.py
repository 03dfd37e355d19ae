"""A figure as SVG inside a page: well-formed, self-contained, in the page's colours."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from medseg.figures import calibration_bins, reliability_diagram
from medseg.figures.canvas import OKABE_ITO, inline_svg

RANDOM = np.random.default_rng(0)
PROBABILITIES = RANDOM.random(5000)
BINS = calibration_bins(PROBABILITIES, RANDOM.random(5000) < PROBABILITIES**2)


@pytest.fixture(scope="module")
def drawn() -> str:
    return inline_svg(reliability_diagram({"front": BINS, "<back>": BINS + BINS}), "r1", "A <title>", "n=5 & more")


def test_the_svg_is_one_element_with_its_texts(drawn: str) -> None:
    root = ElementTree.fromstring(drawn)
    assert root.tag == "svg"
    named = {element.get("id"): element for element in root.iter() if element.get("id")}
    assert named[root.get("aria-labelledby")].text == "A <title>"
    assert named[root.get("aria-describedby")].text == "n=5 & more"
    texts = {element.text for element in root.iter("text")}
    assert {"predicted probability", "observed frequency", "voxels"} <= texts
    assert any(str(text).startswith("<back>: ECE") for text in texts)


def test_the_svg_loads_nothing_and_its_ids_are_its_own(drawn: str) -> None:
    assert not re.findall(r"https?:|<style|<script|xlink|<metadata", drawn)
    ids = re.findall(r'\bid="([^"]+)"', drawn)
    assert len(ids) == len(set(ids))
    assert all(name.startswith("r1-") for name in ids)
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', drawn)
    assert used
    assert set(used) <= set(ids)


def test_black_follows_the_page_and_labels_keep_their_colours(drawn: str) -> None:
    assert "currentColor" in drawn
    assert "#000000" not in drawn
    assert "#ffffff" not in drawn
    assert all(color.lower() in drawn.lower() for color in OKABE_ITO[:2])


def test_the_same_figure_gives_the_same_text(drawn: str) -> None:
    again = inline_svg(reliability_diagram({"front": BINS, "<back>": BINS + BINS}), "r1", "A <title>", "n=5 & more")
    assert again == drawn
