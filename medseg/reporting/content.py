"""Everything the page shows as plain data: numbers for its scripts, and remarks about what it holds and leaves out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from medseg.evaluation import Evaluation, Outcome
from medseg.evaluation.metrics import HD95, OBJECT_METRICS
from medseg.figures.viewer.packing import short, view_data
from medseg.figures.viewer.view import View
from medseg.reporting.images import Images
from medseg.reporting.pictures import Pictures

NUM_WORST = 12
# At most so many cases are named in one remark.
MAX_NAMED_CASES = 5

Summary = Mapping[str, Any]


@dataclass(frozen=True)
class Names:
    """Shown names of cases and patients.

    Args:
        cases, patients: id → shown name; empty shows the ids themselves.
    """

    cases: Mapping[str, str] = field(default_factory=dict)
    patients: Mapping[str, str] = field(default_factory=dict)

    @property
    def are_hidden(self) -> bool:
        """True if ids are replaced."""
        return bool(self.cases)

    def case(self, case: str) -> str:
        """Return the shown name of a case."""
        return self.cases.get(case, "a case" if self.are_hidden else case)

    def patient(self, patient: str) -> str:
        """Return the shown name of a patient."""
        return self.patients.get(patient, "a patient" if self.are_hidden else patient)


def numbered_names(cases: Sequence[str], patients: Sequence[str]) -> Names:
    """Replace ids by numbers in the given order, which must not be the order of the ids."""
    return Names(
        {case: f"case {number:03d}" for number, case in enumerate(dict.fromkeys(cases), start=1)},
        {patient: f"patient {number:03d}" for number, patient in enumerate(dict.fromkeys(patients), start=1)},
    )


def viewer_cases(summary: Summary, num_worst: int = NUM_WORST) -> list[str]:
    """List the worst cases, worst first, then those at the percentiles of Dice that are not among them."""
    worst = [entry["case"] for entry in summary["cases"][:num_worst]]
    return list(dict.fromkeys([*worst, *summary["percentile_cases"].values()]))


def script_data(evaluation: Evaluation, names: Names, views: Mapping[str, View]) -> dict[str, Any]:
    """Return the numbers that the page's scripts draw: all cases, worst first, and what each view needs.

    Args:
        evaluation: the numbers.
        names: shown names of cases and patients.
        views: case id → view, in the order of the page's blocks.
    """
    summary = evaluation.summary
    order = [entry["case"] for entry in summary["cases"]]
    position = {case: number for number, case in enumerate(order)}
    labels = list(summary["labels"])
    label_number = {label: number for number, label in enumerate(labels)}
    view_number = {case: number for number, case in enumerate(views)}
    values: dict[str, list[list[float | None]]] = {
        metric.name: [[None] * len(labels) for _ in order] for metric in evaluation.metrics
    }
    outcomes: list[list[str]] = [[Outcome.ABSENT.value] * len(labels) for _ in order]
    for row in evaluation.rows:
        case, label = position[row.case], label_number[row.label]
        outcomes[case][label] = row.outcome.value
        for metric in evaluation.metrics:
            values[metric.name][case][label] = short(row.values[metric.name])
    files = ("case", "prediction", "prediction_sha256", "reference", "reference_sha256")
    return {
        "cases": [
            {
                "name": names.case(entry["case"]),
                "patient": names.patient(entry["patient"]),
                "dice": short(entry["dice"]),
                "missed": entry["missed"],
                "spurious": entry["spurious"],
                "view": view_number.get(entry["case"]),
            }
            for entry in summary["cases"]
        ],
        "has_patients": any(entry["patient"] != entry["case"] for entry in summary["cases"]),
        "labels": labels,
        "metrics": summary["metrics"],
        "values": values,
        "outcomes": outcomes,
        "means": {
            label: {
                metric.name: {end: short(entry[metric.name]["mean"][end]) for end in ("value", "low", "high")}
                for metric in evaluation.metrics
            }
            for label, entry in summary["labels"].items()
        },
        "percentiles": {percent: position[case] for percent, case in summary["percentile_cases"].items()},
        "worst": list(range(min(NUM_WORST, len(order)))),
        "views": [
            {"case": position[case]} | view_data(view, names.case(case), summary["label_values"])
            for case, view in views.items()
        ],
        "input_columns": [] if names.are_hidden else ["prediction", "SHA-256", "reference", "SHA-256"],
        "inputs": [] if names.are_hidden else [[entry[key] for key in files] for entry in summary["inputs"]],
    }


@dataclass(frozen=True)
class EstimateColumn:
    """One column of estimates in a table of structures.

    Args:
        metric: name of the metric.
        statistic: "mean", or "median_detected" over the cases where both masks exist.
        title: title of the column.
        note: second line of the title; may be empty.
        digits: digits behind the decimal point.
    """

    metric: str
    statistic: str
    title: str
    note: str
    digits: int

    @property
    def heading(self) -> str | tuple[str, str]:
        """The title, with the note if there is one."""
        return (self.title, self.note) if self.note else self.title


def estimate_columns(summary: Summary, *, of_objects: bool) -> list[EstimateColumn]:
    """List the columns of the table of object metrics, or of the table of all other metrics.

    HD95 has two columns: its mean holds the penalties of missed structures, so the median over the cases where both
    masks exist stands beside it.
    """
    columns = []
    for metric in summary["metrics"]:
        if (metric["name"] in OBJECT_METRICS) != of_objects:
            continue
        title = f"{metric['title']} ({metric['unit']})" if metric["unit"] else metric["title"]
        digits = 2 if metric["unit"] else 3
        columns.append(EstimateColumn(metric["name"], "mean", title, "", digits))
        if metric["name"] == HD95.name:
            columns.append(EstimateColumn(metric["name"], "median_detected", "median", "where both exist", digits))
    return columns


def methods_paragraph(summary: Summary) -> str:
    """Describe how the numbers were computed, as a paragraph for a paper."""
    titles = list(dict.fromkeys(metric["title"] for metric in summary["metrics"]))
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


def badges(pictures: Pictures, with_images: bool, anonymised: bool) -> list[str]:
    """List short facts to show under the title of the page."""
    facts = []
    if any(panel.letters[0] for view in pictures.views.values() for panel in view.panels):
        facts.append("radiological: patient left is on image right")
    elif pictures.views:
        facts.append("no patient orientation in these files")
    oblique = sum(view.tilt_degrees > 0 for view in pictures.views.values())
    if oblique:
        facts.append(f"{oblique} of {len(pictures.views)} opened scans are oblique")
    facts.append("contains images" if pictures.thumbnails else "numbers only")
    if anonymised:
        facts.append("ids replaced by numbers")
    return [*facts, "research use only"]


def view_note(pictures: Pictures, num_cases: int, with_images: bool) -> str:
    """Say which cases the viewer can open."""
    if not with_images:
        return "The page holds numbers only."
    if len(pictures.views) == num_cases:
        return "Every case can be opened in the viewer."
    return (
        f"The viewer opens {len(pictures.views)} of {num_cases} cases: the {NUM_WORST} worst and those at the 5th, "
        "25th, 50th, 75th and 95th percentile of Dice, as far as they fit; the others have their numbers and a "
        "thumbnail."
    )


def omissions(summary: Summary, pictures: Pictures, images: Images, names: Names, with_images: bool) -> list[str]:
    """List everything that a reader may expect on the page and does not find, one sentence each."""
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
    cases_by_problem: dict[str, list[str]] = {}
    for case, problem in pictures.problems.items():
        cases_by_problem.setdefault(problem, []).append(case)
    for problem, cases in cases_by_problem.items():
        named = ", ".join(names.case(case) for case in cases[:MAX_NAMED_CASES])
        more = f" and {len(cases) - MAX_NAMED_CASES} more" if len(cases) > MAX_NAMED_CASES else ""
        remarks.append(f"{named}{more}: {problem}.")
    if len(pictures.views) < num_cases:
        remarks.append(view_note(pictures, num_cases, with_images))
    thinned = sum(max(view.steps) > 1 for view in pictures.views.values())
    if thinned:
        remarks.append(
            f"Full resolution: {thinned} of {len(pictures.views)} volumes in the viewer are thinned to fit the "
            "page; each says by how much. All numbers were computed from all voxels."
        )
    omitted_channels = [view.left_out for view in pictures.views.values() if view.left_out]
    if omitted_channels:
        channels = ", ".join(dict.fromkeys(name for channels in omitted_channels for name in channels))
        remarks.append(
            f"Further channels ({channels}): left out of {len(omitted_channels)} of {len(pictures.views)} volumes to "
            "fit the page."
        )
    unreadable = sum("no picture" in problem for problem in pictures.problems.values())
    missing = num_cases - len(pictures.thumbnails) - unreadable
    if missing > 0:
        remarks.append(f"Thumbnails of the best {missing} cases: the page would be too large.")
    return remarks


def remove_file_names(pictures: Pictures) -> None:
    """Replace every remark that names a file, because file names can identify patients."""
    neutral = "its scan could not be shown"
    for case, problem in pictures.problems.items():
        if "no picture" in problem:
            pictures.problems[case] = "no picture: its files could not be read"
        elif "left out:" in problem:  # only these name files
            pictures.problems[case] = neutral
    for case, view in pictures.views.items():
        notes = tuple(neutral if "image left out" in note else note for note in view.notes)
        pictures.views[case] = replace(view, notes=notes)
