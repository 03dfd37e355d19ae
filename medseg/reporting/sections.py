"""The parts of the page that are plain text and tables, in the order they are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from html import escape
from typing import Any

from medseg.evaluation.metrics import OBJECT_METRICS
from medseg.reporting.images import Images
from medseg.reporting.page_data import NUM_WORST, Names
from medseg.reporting.pictures import Pictures

FEW_COLUMNS = 6


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def text(value: object) -> Html:
    """A value as escaped text; HTML stays as it is."""
    return value if isinstance(value, Html) else Html(escape(str(value)))


def tag(name: str, *children: object, **attributes: object) -> Html:
    """An element; ``class_`` is the attribute class, underscores become hyphens, None leaves an attribute out."""
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    inside = "".join(f' {key}="{escape(str(value))}"' for key, value in given.items())
    return Html(f"<{name}{inside}>{''.join(text(child) for child in children)}</{name}>")


def section(id_: str, title: str, *children: object) -> Html:
    """One part of the page."""
    return tag("section", tag("h2", title, id=f"{id_}-title"), *children, id=id_, aria_labelledby=f"{id_}-title")


def bullets(items: Iterable[object], class_: str | None = None) -> Html:
    """A list."""
    return tag("ul", *(tag("li", item) for item in items), class_=class_)


def table(
    about: str,
    head: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    classes: Sequence[str | None] = (),
    total: bool = False,
) -> Html:
    """A real table in a box that scrolls; the first cell of a row is its header.

    Args:
        about: what the table shows, a line above it.
        head: titles of the columns.
        rows: cells; each as long as the head.
        classes: class of each column; shorter ones leave the rest plain.
        total: whether the last row is a total.
    """
    of = [*classes, *[None] * (len(head) - len(classes))]
    body = list(rows)
    lines = [
        tag(
            "tr",
            tag("th", row[0], scope="row", class_=of[0]),
            *(tag("td", cell, class_=class_) for cell, class_ in zip(row[1:], of[1:], strict=True)),
            class_="total" if total and number == len(body) - 1 else None,
        )
        for number, row in enumerate(body)
    ]
    columns = [tag("th", title, scope="col", class_=class_) for title, class_ in zip(head, of, strict=True)]
    inner = tag("table", tag("thead", tag("tr", *columns)), tag("tbody", *lines), aria_label=about)
    # a table of a few columns is read along its rows, which must not be a screen wide
    box = "wide" if len(head) > FEW_COLUMNS else "wide narrow"
    return Html(
        tag("p", about, class_="about") + tag("div", inner, class_=box, tabindex=0, role="region", aria_label=about)
    )


def with_code(words: str) -> Html:
    """A text whose `backticked` parts are code."""
    parts = words.split("`")
    return Html("".join(tag("code", part) if number % 2 else text(part) for number, part in enumerate(parts)))


def signed(value: float, digits: int) -> str:
    """A number with a true minus sign."""
    return f"{value:.{digits}f}".replace("-", "−")


def estimate(entry: Mapping[str, Any], digits: int) -> Html:
    """A number with its interval and n below it."""
    if entry["value"] is None:
        return Html(f"–{tag('small', 'n=0')}")
    low, high = entry["low"], entry["high"]
    interval = "no interval" if low is None or high is None else f"{signed(low, digits)} to {signed(high, digits)}"
    n = f"n={entry['n']}{', few' if entry['few'] else ''}"
    return Html(f"{signed(entry['value'], digits)}{tag('small', interval)}{tag('small', n)}")


Summary = Mapping[str, Any]
NAVIGATION = {
    "left-out": "Left out",
    "metrics": "Metrics",
    "distributions": "Distributions",
    "cases": "Cases",
    "viewer": "Viewer",
    "lesions": "Lesions",
    "calibration": "Calibration",
    "manifest": "Manifest",
    "methods": "Methods",
}
# Its mean holds the penalties of missed structures; the median of the cases where both masks exist stands beside it.
TWICE = "hd95_mm"


def metric_table(summary: Summary) -> Html:
    """Means of every structure with their intervals; HD95 twice."""
    metrics = [metric for metric in summary["metrics"] if metric["name"] not in OBJECT_METRICS]
    head: list[object] = ["structure", "missed", "spurious", Html(f"absent{tag('small', 'on both')}")]
    for metric in metrics:
        head.append(_title(metric))
        if metric["name"] == TWICE:
            head.append(Html(f"median{tag('small', 'where both exist')}"))
    rows = []
    for label, entry in summary["labels"].items():
        cells: list[object] = [label, *_outcomes(entry["outcomes"]), entry["outcomes"]["absent"]]
        for metric in metrics:
            cells.append(estimate(entry[metric["name"]]["mean"], _digits(metric)))
            if metric["name"] == TWICE:
                cells.append(estimate(entry[metric["name"]]["median_detected"], _digits(metric)))
        rows.append(cells)
    cells = ["class mean", *_outcomes(summary["outcomes"]), summary["outcomes"]["absent"]]
    for metric in metrics:
        cells.append(estimate(summary["class_mean"][metric["name"]], _digits(metric)))
        if metric["name"] == TWICE:
            cells.append("")
    rows.append(cells)
    level = round(100 * summary["interval_level"])
    about = (
        f"Means over cases with {level} % intervals (patients resampled {summary['bootstrap']['draws']:,} times) and "
        "n; “few” is under 20 patients. Missed structures count as 0 or the image diagonal."
    )
    return section("metrics", "Metrics", table(about, head, rows, total=True), _comparison(summary))


def _comparison(summary: Summary) -> Html:
    if "comparison" not in summary:
        return Html("")
    rows = []
    for d in summary["comparison"]["differences"]:
        values = [signed(d[side], 4) if d[side] is not None else "–" for side in ("this", "other")]
        difference = estimate(d["difference"], 4)
        rows.append([d["label"], d["metric"], *values, difference, f"{d['p_holm']:.3g}", d["verdict"]])
    head = ["structure", "metric", "this", "other", "difference", "p (Wilcoxon, Holm)", "verdict"]
    about = "Paired differences, this minus the other; a winner needs an interval without 0 and p below 5 %"
    return Html(tag("h3", "Comparison") + table(about, head, rows, classes=(None, "text")))


def distributions() -> Html:
    """Where the dots go, with the search box."""
    search = tag(
        "div",
        Html(
            '<label class="grow">find cases <input type="search" id="search"'
            ' placeholder="name, patient, missed, spurious" autocomplete="off"></label>'
            '<span id="metric-place"></span><span id="found" aria-live="polite"></span>'
        ),
        class_="bar",
    )
    words = (
        "Every dot is a case and opens it; rings are missed, spurious or disjoint. The line is the mean, the grey bar "
        "its interval."
    )
    return section("distributions", "Distributions", tag("p", words, class_="soft"), search, _place("distributions"))


def cases(note: str) -> Html:
    """Where the contact sheet goes."""
    return section("cases", "Cases, worst first", tag("p", note, class_="soft"), _place("cases"))


def viewer(has_views: bool) -> Html:
    """Where the planes go."""
    note = (
        "Choose a case. Scroll or use the arrow keys on a plane to change its slice, click to move the crosshair."
        if has_views
        else "No volumes are on this page; choosing a case shows its numbers."
    )
    parts = [
        tag("p", note, class_="soft"),
        tag("div", id="choices"),
        Html('<p id="no-volume" class="notice" hidden></p>'),
    ]
    return section("viewer", "Viewer", *parts, _place("viewer"), tag("div", id="details-place"))


def lesions(summary: Summary) -> Html:
    """Object metrics, or what to call to get them."""
    metrics = [metric for metric in summary["metrics"] if metric["name"] in OBJECT_METRICS]
    if not metrics:
        words = "Left out: no object metrics were asked for (`--instances components`, `brats` or `em`)."
        return section("lesions", "Lesions and objects", tag("p", with_code(words), class_="soft"))
    rows = [
        [label, *(estimate(entry[metric["name"]]["mean"], _digits(metric)) for metric in metrics)]
        for label, entry in summary["labels"].items()
    ]
    parts = [table("Means over cases with intervals and n", ["structure", *map(_title, metrics)], rows)]
    sizes = [
        [label, _size(bin_, summary["spatial_dims"]), bin_["n"], bin_["found"], _share(bin_["sensitivity"])]
        for label, entry in summary["labels"].items()
        for bin_ in entry.get("sensitivity_by_size", [])
        if bin_["n"]
    ]
    if sizes:
        head = ["structure", "size", "objects", "found", "sensitivity"]
        parts.append(
            table(
                "Sensitivity by size: objects of all cases that any prediction touches",
                head,
                sizes,
                classes=(None, "text"),
            )
        )
    return section("lesions", "Lesions and objects", *parts)


def manifest(summary: Summary, hidden: bool) -> Html:
    """What was compared, with hashes."""
    words = f"SHA-256 over the list of files and their hashes: {summary['inputs_sha256']}"
    parts = [tag("p", words, class_="mono")]
    if hidden:
        parts.append(tag("p", "File names and their hashes are left out because ids are hidden.", class_="soft"))
    else:
        count = summary["num_cases"]
        words = f"{count} case{'s' if count != 1 else ''} and their files"
        parts.append(tag("details", tag("summary", words), id="files"))
    values = [f"{name}: {', '.join(map(str, found))}" for name, found in summary["label_values"].items()]
    parts.append(tag("details", tag("summary", f"{len(values)} structures and their values"), bullets(values)))
    return section("manifest", "Manifest", *parts)


def methods(paragraph: str) -> Html:
    """A paragraph to copy."""
    parts = [
        tag("textarea", paragraph, id="methods-text", readonly="", aria_label="Methods paragraph", spellcheck="false")
    ]
    parts.append(Html('<p><button type="button" data-copy="methods-text">copy</button></p>'))
    return section("methods", "Methods", *parts)


def left_out(remarks: Sequence[str], problems: Sequence[Mapping[str, str]], failure: str) -> Html:
    """What the page does not show and why; nothing where it shows all."""
    parts: list[Html] = [bullets(map(with_code, remarks))] if remarks else []
    if failure:
        parts.append(tag("pre", failure, class_="mono", style="white-space: pre-wrap"))
    if problems:
        rows = [[p["case"], p["rule"], p["found"], p["way_out"]] for p in problems]
        head = ["case", "rule", "found", "way out"]
        classes = (None, "text", "text", "text")
        parts.append(table(f"{len(problems)} problems kept cases out", head, rows, classes=classes))
    return section("left-out", "What this page leaves out", *parts) if parts else Html("")


def _place(name: str) -> Html:
    return tag("div", id=f"{name}-place")


def _title(metric: Mapping[str, str]) -> str:
    return f"{metric['title']} ({metric['unit']})" if metric["unit"] else metric["title"]


def _digits(metric: Mapping[str, str]) -> int:
    return 2 if metric["unit"] else 3


def _outcomes(counts: Mapping[str, int]) -> list[object]:
    missed = counts["missed"] + counts["disjoint"]
    marked = [tag("span", n, class_="bad") if n else Html("0") for n in (missed, counts["spurious"])]
    return [*marked]


def _size(bin_: Mapping[str, Any], spatial_dims: int) -> str:
    unit = "ml" if spatial_dims == 3 else "mm²"
    return f"from {bin_['from']:g} {unit}" if bin_["to"] is None else f"{bin_['from']:g} to {bin_['to']:g} {unit}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


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


def methods_paragraph(summary: Mapping[str, Any]) -> str:
    """How the numbers were made, in the words reviewers look for."""
    names = [metric["title"] for metric in summary["metrics"]]
    titles = list(dict.fromkeys(names))
    tolerances = sorted(set(summary["tolerance_mm"].values()))
    tolerance = f"{tolerances[0]:g} mm" if len(tolerances) == 1 else f"{tolerances[0]:g} to {tolerances[-1]:g} mm"
    draws, level = summary["bootstrap"]["draws"], round(100 * summary["interval_level"])
    few = " Intervals of fewer than 20 patients are uncertain themselves." if summary["num_patients"] < 20 else ""
    left_out = f" {summary['num_left_out']} cases were left out." if summary["num_left_out"] else ""
    compared = (
        " Methods were compared case by case: mean paired difference with its bootstrap interval, and the Wilcoxon "
        "signed-rank test over patients with Holm's correction."
        if "comparison" in summary
        else ""
    )
    num_cases, num_patients, version = summary["num_cases"], summary["num_patients"], summary["versions"]["medseg"]
    return (
        f"Predictions of {num_cases} cases of {num_patients} patients were compared with reference label maps on their "
        f"own grids with medseg {version} (metrics after Maier-Hein et al. 2024): {', '.join(titles)}. "
        f"The normalised surface Dice (NSD) used a tolerance of {tolerance}; HD95 is the larger of the two directed "
        f"area-weighted 95th percentiles of surface distance.{left_out} Empty masks: {summary['policy']}. Values are "
        f"means over cases for each structure and the unweighted mean over structures, with {level} % percentile "
        f"intervals from {draws:,} bootstrap draws of patients (seed {summary['bootstrap']['seed']}).{few}{compared} "
        f"Data SHA-256 {summary['inputs_sha256']}."
    )


SHOWN = 5


def omissions(
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
