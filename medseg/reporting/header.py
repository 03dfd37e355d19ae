"""The head of the page: what a reader must know before the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medseg.reporting.markup import Html, bullets, tag

PATIENT_DATA = (
    "This page contains patient images. Treat it as you treat the scans: the file can be opened by whoever has it, and "
    "faces can be recognised from head scans."
)


def header(title: str, summary: Mapping[str, Any] | None, badges: Sequence[str], has_images: bool) -> Html:
    """Title, counts, badges, provenance, and the warning about patient data."""
    parts = [tag("h1", title)]
    if summary is None:
        parts.append(tag("p", "Nothing was evaluated; the reasons are below.", class_="notice"))
        return tag("header", *parts)
    parts.append(_tiles(summary))
    parts.append(bullets((tag("span", badge) for badge in badges), class_="badges"))
    if has_images:
        parts.append(tag("p", PATIENT_DATA, class_="notice", role="note"))
    tolerances = sorted(set(summary["tolerance_mm"].values()))
    facts = {
        "empty masks": summary["policy"],
        "NSD tolerance": " or ".join(f"{mm:g}" for mm in tolerances) + " mm",
        "data": f"SHA-256 {summary['inputs_sha256']}",
        "versions": ", ".join(f"{name} {version}" for name, version in summary["versions"].items()),
    }
    listed = [part for name, value in facts.items() for part in (tag("dt", name), tag("dd", value))]
    parts.append(tag("dl", *listed, class_="facts"))
    return tag("header", *parts)


def _tiles(summary: Mapping[str, Any]) -> Html:
    dice, outcomes = summary["class_mean"]["dice"], summary["outcomes"]
    interval = ""
    if dice["low"] is not None and dice["high"] is not None:
        interval = f" ({dice['low']:.3f} to {dice['high']:.3f})"
    shown = [
        (summary["num_cases"], "cases evaluated"),
        (summary["num_patients"], "patients"),
        (summary["num_left_out"], "cases left out"),
        ("–" if dice["value"] is None else f"{dice['value']:.3f}", f"mean Dice{interval}"),
        (outcomes["missed"] + outcomes["disjoint"], "structures missed"),
        (outcomes["spurious"], "structures spurious"),
    ]
    return tag("ul", *(tag("li", tag("b", value), tag("span", what)) for value, what in shown), class_="tiles")
