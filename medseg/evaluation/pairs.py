"""Match predictions with references, read each pair on one grid, and collect everything that is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medseg.datasets import Manifest, read_manifest, replace_values
from medseg.errors import EvaluationError, reason_of_failure
from medseg.evaluation.overlap import label_regions, present_values
from medseg.volumes import Grid, is_zarr, read_colored_label_map, read_label_map, reorder, stem_of, suffix_of

Labels = Mapping[str, int | Sequence[int]]
Source = str | Path | Mapping[str, str | Path] | Sequence[str | Path]

# Postfixes that MONAI's SaveImage appends in bundles, in tutorials and by default.
MONAI_POSTFIXES = ("_seg", "_pred", "_trans")
# At most so many unknown label values of a file are listed.
MAX_LISTED_VALUES = 5


@dataclass(frozen=True)
class Problem:
    """One problem that keeps a case from being evaluated.

    Args:
        case: case id.
        rule: the rule that is broken, in two or three words.
        found: the file and the value found.
        way_out: what to do about it.
    """

    case: str
    rule: str
    found: str
    way_out: str


@dataclass(frozen=True)
class Structures:
    """The structures to evaluate and the meaning of label values.

    Args:
        regions: structure → label values, without background; None evaluates every value above 0 that occurs.
        known: values that may occur, background included; None allows any.
        patients: case id → patient id.
        file_values: value stored in a reference file → label value, if the two differ.
        ignored: label value whose voxels in the reference do not count.
        has_colored_references: reference files are pictures in which each colour is a label.
        annotated: case id → structures that its reference was annotated for, for cases that lack some.
    """

    regions: dict[str, tuple[int, ...]] | None = None
    known: frozenset[int] | None = None
    patients: Mapping[str, str] = field(default_factory=dict)
    file_values: Mapping[int, int] | None = None
    ignored: int | None = None
    has_colored_references: bool = False
    annotated: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def to_labels(self, label_map: np.ndarray, role: str) -> tuple[np.ndarray, list[int]]:
        """Convert a label map to label values; also return the values in it that are unknown.

        References may hold the manifest's file values (such as 255 for cells); predictions are expected to hold label
        values. A prediction in file values is accepted too if its values cannot all be label values.

        Args:
            label_map: integers, any shape.
            role: "prediction" or "reference".
        """
        if self.known is None:
            return label_map, []
        values = {int(value) for value in present_values(label_map.ravel(order="K"))}
        are_file_values = self.file_values is not None and values <= set(self.file_values)
        if self.file_values is not None and are_file_values and (role == "reference" or not values <= self.known):
            return replace_values(label_map, self.file_values, np.int32), []
        return label_map, sorted(values - self.known)

    def clear_ignored(self, prediction: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Set both label maps to background at the voxels that the reference ignores."""
        if self.ignored is None:
            return prediction, reference
        is_ignored = reference == self.ignored
        if not is_ignored.any():
            return prediction, reference
        prediction, reference = (
            np.where(is_ignored, 0, array).astype(array.dtype) for array in (prediction, reference)
        )
        return prediction, reference


def structures_of(labels: Labels | Manifest | str | Path | None) -> Structures:
    """Return the structures of a mapping name → value or values, or of a manifest given by name, path or object.

    Raises:
        EvaluationError: there is no structure above background.
        ManifestError: the manifest cannot be read.
    """
    if labels is None:
        return Structures()
    if isinstance(labels, str | Path):
        labels = read_manifest(labels)
    named: Labels = labels.structures if isinstance(labels, Manifest) else labels
    regions = {name: values for name, values in label_regions(named).items() if values != (0,)}
    if not regions:
        raise EvaluationError(f"no label above background 0 to evaluate, found {dict(named)}; add a label above 0")
    known = frozenset({0}.union(*regions.values()))
    if not isinstance(labels, Manifest):
        return Structures(regions, known)
    known |= frozenset(labels.labels.values())
    ignored = labels.ignore_label
    return Structures(
        regions,
        known if ignored is None else known | {ignored},
        {case.id: case.patient for case in labels.cases},
        labels.file_values,
        ignored,
        labels.has_colored_labels,
        {case.id: frozenset(labels.annotated_structures(case)) for case in labels.cases if case.labels is not None},
    )


def find_label_maps(source: Source, role: str) -> dict[str, Path]:
    """Return case id → path for a folder, one file, several files or a mapping.

    The id is the file name without its image suffix, or the key of the mapping. In a folder, `<id>_entropy` and
    `<id>_probability_<label>` beside `<id>` are its maps and not cases.

    Args:
        source: the label maps.
        role: "prediction", "reference" or "image", for messages.

    Raises:
        EvaluationError: there are none, or two files have one id.
    """
    if isinstance(source, Mapping):
        return {str(case): Path(path) for case, path in source.items()}
    if isinstance(source, str | Path):
        path = Path(source)
        if not path.exists():
            raise EvaluationError(f"{path}: no such {role}; name a folder of label maps or one file")
        files: Iterable[Path] = sorted(path.iterdir()) if path.is_dir() and not is_zarr(path) else [path]
        files = _without_maps([file for file in files if suffix_of(file) and not file.name.startswith(".")])
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
        raise EvaluationError(
            f"{source}: no {role} with an image suffix (.nii.gz, .nrrd, .mha, .png, …) inside; check the path"
        )
    return found


def _without_maps(files: list[Path]) -> list[Path]:
    """Leave out the entropy and probability maps that a prediction saves beside its label map."""
    stems = {stem_of(file) for file in files}

    def is_map(stem: str) -> bool:
        before, mark, _ = stem.rpartition("_probability_")
        return (bool(mark) and before in stems) or (
            stem.endswith("_entropy") and stem.removesuffix("_entropy") in stems
        )

    return [file for file in files if not is_map(stem_of(file))]


def find_manifest_references(manifest: Manifest, folder: Path) -> dict[str, Path]:
    """Return case id → label map for a folder laid out as the manifest says, or {} if it is not.

    The label maps lie below the folder as the manifest's pattern says, or all in the folder itself.
    """
    ids = manifest.case_ids
    below_root = {case: manifest.paths(folder, case)["label"][0] for case in ids}
    in_one_folder = {case: folder / path.name for case, path in below_root.items()}
    for paths in (below_root, in_one_folder):
        found = {case: path for case, path in paths.items() if path.exists()}
        if found and len(set(found.values())) == len(found):
            return found
    return {}


def drop_monai_postfixes(references: Mapping[str, Path], predictions: Mapping[str, Path]) -> dict[str, Path]:
    """Rename predictions that carry a postfix of MONAI's SaveImage to the reference's id.

    An id that is a reference's stays, and so does one whose shorter id is taken.
    """
    renamed: dict[str, Path] = {}
    for case, path in predictions.items():
        shorter = next((case.removesuffix(end) for end in MONAI_POSTFIXES if case.endswith(end)), case)
        fits = case not in references and shorter in references and shorter not in predictions
        renamed[shorter if fits and shorter not in renamed else case] = path
    return renamed


def missing_problems(predictions: Mapping[str, Path], references: Mapping[str, Path]) -> list[Problem]:
    """List the cases that only one side has."""
    no_prediction = [
        Problem(case, "prediction missing", f"only the reference {references[case]}", "predict this case")
        for case in sorted(set(references) - set(predictions))
    ]
    no_reference = [
        Problem(case, "reference missing", f"only the prediction {predictions[case]}", "add its reference")
        for case in sorted(set(predictions) - set(references))
    ]
    return no_prediction + no_reference


def read_pair(
    case: str, prediction: Path, reference: Path, structures: Structures
) -> tuple[tuple[np.ndarray, np.ndarray, Grid] | None, list[Problem]]:
    """Read both label maps of a case in label values on the reference's grid.

    A prediction whose voxels are those of the reference in another axis order or direction is reordered without loss.

    Args:
        case: case id.
        prediction, reference: the files.
        structures: the meaning of their values.

    Returns:
        (prediction, reference, grid), or None if there is any problem, and the list of problems.
    """
    problems: list[Problem] = []
    arrays: list[np.ndarray] = []
    grids: list[Grid] = []
    for role, path in (("prediction", prediction), ("reference", reference)):
        try:
            is_colored = structures.has_colored_references and role == "reference"
            volume = read_colored_label_map(path) if is_colored else read_label_map(path)
        except Exception as error:  # whatever is raised belongs to this file
            found, _, way_out = reason_of_failure(error).partition(";")
            found = found if str(path) in found else f"{path}: {found}"
            problems.append(Problem(case, "unreadable file", found, way_out.strip() or f"replace {path.name}"))
            continue
        array, unknown = structures.to_labels(volume.array, role)
        if unknown:
            problems.append(_unknown_labels(case, path, array, unknown, structures))
        arrays.append(array)
        grids.append(volume.grid)
    if len(grids) == 2:
        reordered, grid = reorder(arrays[0], grids[0], grids[1])
        if not grid.difference(grids[1]):
            arrays[0] = reordered
        else:
            found, _, way_out = grids[0].difference(grids[1]).rpartition("; ")
            problems.append(Problem(case, "different grid", f"{prediction}: {found}", way_out))
    if problems:
        return None, problems
    return (*structures.clear_ignored(arrays[0], arrays[1]), grids[1]), []


def problem_text(problems: Sequence[Problem], num_cases: int) -> str:
    """Format all problems as lines of plain text, one per problem, below a line that counts them."""
    cases = len({problem.case for problem in problems})
    head = (
        f"{len(problems)} problem{'s' * (len(problems) != 1)} in {cases} of {num_cases} cases, nothing evaluated; "
        "correct them, or leave these cases out with --allow-missing"
    )
    widths = [max((len(getattr(problem, column)) for problem in problems), default=0) for column in ("case", "rule")]
    lines = [f"  {p.case:<{widths[0]}}  {p.rule:<{widths[1]}}  {p.found}; {p.way_out}" for p in problems]
    return "\n".join([head, *lines])


def _unknown_labels(
    case: str, path: Path, label_map: np.ndarray, unknown: Sequence[int], structures: Structures
) -> Problem:
    listed = [f"{value} ({np.count_nonzero(label_map == value)} voxels)" for value in unknown[:MAX_LISTED_VALUES]]
    more = f" and {len(unknown) - MAX_LISTED_VALUES} more" if len(unknown) > MAX_LISTED_VALUES else ""
    way_out = f"known are {sorted(structures.known or ())}; correct the file or the labels"
    return Problem(case, "unknown label", f"{path}: {', '.join(listed)}{more}", way_out)
