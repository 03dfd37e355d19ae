"""What the page says about itself: what it leaves out and why, how images lie, who may read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from medseg.reporting.images import Images
from medseg.reporting.pictures import Pictures
from medseg.reporting.selection import NUM_WORST, Names

SHOWN = 5


def left_out(
    summary: Mapping[str, Any], pictures: Pictures, images: Images, names: Names, with_images: bool
) -> list[str]:
    """A sentence for everything that a reader could expect and does not find."""
    remarks: list[str] = []
    num_cases = len(summary["cases"])
    if summary["num_left_out"]:
        rules = Counter(problem["rule"] for problem in summary["problems"])
        listed = ", ".join(f"{rule} {count}×" for rule, count in rules.items())
        remarks.append(f"{summary['num_left_out']} cases were not evaluated: {listed}.")
    if not with_images:
        return [*remarks, "Pictures and the viewer: numbers only were asked for."]
    if images.note:
        remarks.append(f"Scans: {images.note}.")
    for text, cases in _by_problem(pictures.problems).items():
        shown = ", ".join(names.case(case) for case in cases[:SHOWN])
        more = f" and {len(cases) - SHOWN} more" if len(cases) > SHOWN else ""
        remarks.append(f"{shown}{more}: {text}.")
    if len(pictures.views) < num_cases:
        remarks.append(view_note(pictures, num_cases, with_images))
    thinned = [case for case, view in pictures.views.items() if max(view.steps) > 1]
    if thinned:
        remarks.append(
            f"Full resolution: {len(thinned)} of {len(pictures.views)} volumes in the viewer are thinned to fit the "
            "page; each says by how much. All numbers were computed from all voxels."
        )
    lacking = [view.left_out for view in pictures.views.values() if view.left_out]
    if lacking:
        channels = ", ".join(dict.fromkeys(name for names_left_out in lacking for name in names_left_out))
        remarks.append(
            f"Further channels ({channels}): left out of {len(lacking)} of {len(pictures.views)} volumes to fit the "
            "page."
        )
    missing = num_cases - len(pictures.thumbnails) - sum("no picture" in text for text in pictures.problems.values())
    if missing > 0:
        remarks.append(f"Thumbnails of the best {missing} cases: the page would be too large.")
    return remarks


def view_note(pictures: Pictures, num_cases: int, with_images: bool) -> str:
    """Which cases the viewer can open."""
    if not with_images:
        return "The page holds numbers only."
    if len(pictures.views) == num_cases:
        return "Every case can be opened in the viewer."
    return (
        f"The viewer opens {len(pictures.views)} of {num_cases} cases: the {NUM_WORST} worst and those at the 5th, "
        "25th, 50th, 75th and 95th percentile of Dice, as far as they fit; the others have their numbers and a "
        "thumbnail."
    )


def badges(pictures: Pictures, with_images: bool, anonymised: bool) -> list[str]:
    """Short facts under the page's title."""
    found = []
    if any(panel.letters[0] for view in pictures.views.values() for panel in view.panels):
        found.append("radiological: patient left is on image right")
    elif pictures.views:
        found.append("no patient orientation in these files")
    oblique = sum(view.tilt_degrees > 0 for view in pictures.views.values())
    if oblique:
        found.append(f"{oblique} of {len(pictures.views)} opened scans are oblique")
    found.append("contains images" if pictures.thumbnails else "numbers only")
    if anonymised:
        found.append("ids replaced by numbers")
    return [*found, "research use only"]


def without_names(pictures: Pictures) -> None:
    """Take file names out of every remark."""
    plain = "its scan could not be shown"
    for case, text in pictures.problems.items():
        if "no picture" in text:
            pictures.problems[case] = "no picture: its files could not be read"
        elif "left out:" in text:  # these name files; a channel's name names nobody
            pictures.problems[case] = plain
    for case, view in pictures.views.items():
        notes = tuple(plain if "image left out" in note else note for note in view.notes)
        pictures.views[case] = replace(view, notes=notes)


def _by_problem(problems: Mapping[str, str]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for case, text in problems.items():
        grouped.setdefault(text, []).append(case)
    return grouped
