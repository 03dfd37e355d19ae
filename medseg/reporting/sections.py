"""The parts of the page that are plain text and tables, in the order they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medseg.evaluation.tables import OBJECT_METRICS
from medseg.reporting.markup import Html, bullets, estimate, section, signed, table, tag, with_code

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
