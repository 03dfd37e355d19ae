"""Which prediction belongs to which reference, and everything that is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medseg.datasets import Manifest, read_manifest
from medseg.errors import EvaluationError, MedsegError
from medseg.evaluation.overlap import label_regions, present_values
from medseg.volumes import Grid, read_label_map, stem_of, suffix_of

Labels = Mapping[str, int | Sequence[int]]


@dataclass(frozen=True)
class Structures:
    """The structures to evaluate.

    Args:
        regions: name → label values, background left out; None takes every value above 0 that occurs.
        known: values that may occur, background included; None allows any.
        patients: case id → patient.
        file_values: value in a reference file → label, where the two differ.
        ignored: label whose voxels in the reference do not count; None has none.
    """

    regions: dict[str, tuple[int, ...]] | None = None
    known: frozenset[int] | None = None
    patients: Mapping[str, str] = field(default_factory=dict)
    file_values: Mapping[int, int] | None = None
    ignored: int | None = None

    def translated(self, label_map: np.ndarray, role: str) -> tuple[np.ndarray, list[int]]:
        """A label map in the structures' values, and the values in it that are unknown.

        References may hold the manifest's file values (as 255 for cells); predictions are expected in label values,
        and either is accepted for the other when that is what all its values mean.
        """
        if self.known is None:
            return label_map, []
        values = {int(value) for value in present_values(label_map.ravel(order="K"))}
        as_labels, as_file = values <= self.known, self.file_values is not None and values <= set(self.file_values)
        if self.file_values is not None and as_file and (role == "reference" or not as_labels):
            return _mapped(label_map, self.file_values), []
        return label_map, sorted(values - self.known)

    def without_ignored(self, prediction: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Both label maps with background wherever the reference says "ignore"."""
        if self.ignored is None:
            return prediction, reference
        ignored = reference == self.ignored
        if not ignored.any():
            return prediction, reference
        return np.where(ignored, 0, prediction).astype(prediction.dtype), np.where(ignored, 0, reference).astype(
            reference.dtype
        )


def structures_of(labels: Labels | Manifest | str | Path | None) -> Structures:
    """The structures of a mapping name → value or values, or of a manifest given as its name, path or object.

    Raises:
        EvaluationError: no structure above background.
        ManifestError: the manifest cannot be read.
    """
    if labels is None:
        return Structures()
    if isinstance(labels, str | Path):
        labels = read_manifest(labels)
    if not isinstance(labels, Manifest):
        regions = _foreground(labels)
        return Structures(regions, _known(regions))
    regions = _foreground(labels.labels)
    ignored = labels.ignore_label
    known = _known(regions) | ({ignored} if ignored is not None else set())
    patients = {case.id: case.patient for case in labels.cases}
    return Structures(regions, known, patients, labels.file_values, ignored)


def manifest_references(manifest: Manifest, folder: Path) -> dict[str, Path]:
    """Case id → label map for a folder laid out as the manifest says, below its root or all in one folder; else {}."""
    ids = manifest.case_ids
    below_root = {case: folder / manifest.files.label.format(case=case) for case in ids}
    in_one_folder = {case: folder / path.name for case, path in below_root.items()}
    for paths in (below_root, in_one_folder):
        found = {case: path for case, path in paths.items() if path.exists()}
        if found and len(set(found.values())) == len(found):
            return found
    return {}


def _known(regions: Mapping[str, tuple[int, ...]]) -> frozenset[int]:
    return frozenset({0}.union(*regions.values()))


def _foreground(labels: Labels) -> dict[str, tuple[int, ...]]:
    regions = {name: values for name, values in label_regions(labels).items() if values != (0,)}
    if not regions:
        raise EvaluationError(f"no label above background 0 to evaluate, found {dict(labels)}")
    return regions


def _mapped(label_map: np.ndarray, file_values: Mapping[int, int]) -> np.ndarray:
    result = np.zeros_like(label_map, dtype=np.int32)
    for stored, label in file_values.items():
        result[label_map == stored] = label
    return result


MONAI_POSTFIXES = ("_seg", "_pred", "_trans")  # what SaveImage appends: in bundles, in tutorials, by default
Source = str | Path | Mapping[str, str | Path] | Sequence[str | Path]


@dataclass(frozen=True)
class Problem:
    """One thing that keeps a case from being evaluated.

    Args:
        case: its id.
        rule: which rule is broken, in two or three words.
        found: the file and the value found.
        way_out: what to do.
    """

    case: str
    rule: str
    found: str
    way_out: str


def label_maps(source: Source, role: str) -> dict[str, Path]:
    """Case id → path of the label maps that a folder, one file, several files or a mapping name.

    The id is the file's name without its image suffix, or the mapping's key. In a folder, `<id>_entropy` and
    `<id>_probability_<label>` beside `<id>` are its maps and no cases.

    Raises:
        EvaluationError: nothing is there, or two files have one id.
    """
    if isinstance(source, Mapping):
        return {str(case): Path(path) for case, path in source.items()}
    if isinstance(source, str | Path):
        path = Path(source)
        if not path.exists():
            raise EvaluationError(f"{path}: no such {role}; name a folder of label maps or one file")
        files: Iterable[Path] = sorted(path.iterdir()) if path.is_dir() else [path]
        files = [file for file in files if suffix_of(file) and not file.name.startswith(".")]
        files = _without_maps(files)
    else:
        files = [Path(item) for item in source]
    found: dict[str, Path] = {}
    for file in files:
        case = stem_of(file)
        if case in found:
            raise EvaluationError(
                f"case {case}: two {role} files, {found[case].name} and {file.name}; keep one of them"
            )
        found[case] = file
    if not found:
        raise EvaluationError(f"{source}: no {role} with an image suffix (.nii.gz, .nrrd, .mha, .png, …) inside")
    return found


def _without_maps(files: list[Path]) -> list[Path]:
    """The files that are no entropy or probability map of another one, as a prediction saves them beside it."""
    stems = {stem_of(file) for file in files}

    def is_map(stem: str) -> bool:
        before, mark, _ = stem.rpartition("_probability_")
        return (bool(mark) and before in stems) or (
            stem.endswith("_entropy") and stem.removesuffix("_entropy") in stems
        )

    return [file for file in files if not is_map(stem_of(file))]


def named_like(references: Mapping[str, Path], predictions: Mapping[str, Path]) -> dict[str, Path]:
    """The predictions under the references' ids where MONAI's SaveImage put a postfix behind them.

    An id that is a reference's stays, and so does one whose shorter id is taken.
    """
    renamed: dict[str, Path] = {}
    for case, path in predictions.items():
        shorter = next((case.removesuffix(end) for end in MONAI_POSTFIXES if case.endswith(end)), case)
        fits = case not in references and shorter in references and shorter not in predictions
        renamed[shorter if fits and shorter not in renamed else case] = path
    return renamed


def missing_problems(predictions: Mapping[str, Path], references: Mapping[str, Path]) -> list[Problem]:
    """The cases that only one side has."""
    problems = []
    for case in sorted(set(references) - set(predictions)):
        problems.append(
            Problem(case, "prediction missing", f"only the reference {references[case]}", "predict this case")
        )
    for case in sorted(set(predictions) - set(references)):
        problems.append(
            Problem(case, "reference missing", f"only the prediction {predictions[case]}", "add its reference")
        )
    return problems


def read_pair(
    case: str, prediction: Path, reference: Path, structures: Structures
) -> tuple[tuple[np.ndarray, np.ndarray, Grid] | None, list[Problem]]:
    """Both label maps of a case in the structures' values and their grid, or None and all that is wrong with them.

    Args:
        case: its id.
        prediction, reference: the files.
        structures: what their values mean.
    """
    problems: list[Problem] = []
    arrays: list[np.ndarray] = []
    grids: list[Grid] = []
    for role, path in (("prediction", prediction), ("reference", reference)):
        try:
            volume = read_label_map(path)
        except MedsegError as error:
            problems.append(_unreadable(case, path, error))
            continue
        array, unknown = structures.translated(volume.array, role)
        if unknown:
            problems.append(_unknown_labels(case, path, array, unknown, structures))
        arrays.append(array)
        grids.append(volume.grid)
    if len(grids) == 2:
        problems += _grid_problems(case, prediction, grids[0], grids[1])
    if problems:
        return None, problems
    return (*structures.without_ignored(arrays[0], arrays[1]), grids[1]), []


def _unreadable(case: str, path: Path, error: MedsegError) -> Problem:
    found, _, way_out = str(error).partition(";")
    return Problem(case, "unreadable file", found, way_out.strip() or f"replace {path.name}")


def _unknown_labels(
    case: str, path: Path, label_map: np.ndarray, unknown: Sequence[int], structures: Structures
) -> Problem:
    voxels = [int(np.count_nonzero(label_map == value)) for value in unknown[:5]]
    shown = ", ".join(f"{value} ({count} voxels)" for value, count in zip(unknown, voxels, strict=False))
    more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
    way_out = f"known are {sorted(structures.known or ())}; correct the file or the labels"
    return Problem(case, "unknown label", f"{path}: {shown}{more}", way_out)


def _grid_problems(case: str, path: Path, prediction: Grid, reference: Grid) -> list[Problem]:
    difference = prediction.difference(reference)
    if not difference:
        return []
    found, _, way_out = difference.rpartition("; ")
    return [Problem(case, "different grid", f"{path}: {found}", way_out)]


def problem_text(problems: Sequence[Problem], num_cases: int) -> str:
    """All problems as lines of plain text under a count of them."""
    cases = len({problem.case for problem in problems})
    head = (
        f"{len(problems)} problem{'s' * (len(problems) != 1)} in {cases} of {num_cases} cases, nothing evaluated; "
        "correct them, or leave these cases out with --allow-missing"
    )
    widths = [max((len(getattr(problem, column)) for problem in problems), default=0) for column in ("case", "rule")]
    lines = [f"  {p.case:<{widths[0]}}  {p.rule:<{widths[1]}}  {p.found}; {p.way_out}" for p in problems]
    return "\n".join([head, *lines])
