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
    interval = "no interval"
    if dice["low"] is not None and dice["high"] is not None:
        interval = f"{100 * summary['interval_level']:.0f} %: {dice['low']:.3f} to {dice['high']:.3f}"
    missed = outcomes["missed"] + outcomes["disjoint"]
    spurious = outcomes["spurious"]
    cases, patients = summary["num_cases"], summary["num_patients"]
    shown = [
        ("–" if dice["value"] is None else f"{dice['value']:.3f}", "mean Dice", interval, False),
        (cases, _plural(cases, "case"), f"of {patients} {_plural(patients, 'patient')}", False),
        (summary["num_left_out"], f"{_plural(summary['num_left_out'], 'case')} left out", "see below", True),
        (
            missed,
            f"{_plural(missed, 'structure')} missed",
            f"of {missed + outcomes['detected']} in the references",
            True,
        ),
        (
            spurious,
            f"{_plural(spurious, 'structure')} spurious",
            f"of {spurious + outcomes['absent']} absent in the references",
            True,
        ),
    ]
    items = []
    for value, what, more, is_bad in shown:
        marked = tag("b", value, class_="bad" if is_bad and value else None)
        # nothing left out needs no pointer to the reasons
        below = "all were evaluated" if more == "see below" and not value else more
        items.append(tag("li", marked, tag("span", what), tag("small", below)))
    return tag("ul", *items, class_="tiles")


def _plural(count: int, word: str) -> str:
    return word if count == 1 else f"{word}s"
