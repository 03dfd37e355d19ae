"""Rules about the files of one case: readable, finite, of the right dimension and type, and on one grid."""

from __future__ import annotations

from collections.abc import Iterator

from medseg.datasets.case_facts import CaseFacts, FileFacts, same_voxels_on
from medseg.doctor.findings import DatasetFacts, Finding, counted, listed, rule

# Displacements below this part of a voxel are the rounding of headers.
HEADER_ROUNDING = 1e-3
MIN_CASES_FOR_FOLDS = 5


@rule("no-files", "cases of the manifest have no files here")
def no_files(dataset: DatasetFacts) -> Iterator[Finding]:
    """Find cases that the manifest lists and of which no file exists, as one finding."""
    if dataset.absent:
        yield Finding(
            rule="no-files",
            severity="warning" if dataset.cases else "error",
            cases=dataset.absent,
            found=f"no file of {len(dataset.absent)} of {len(dataset.manifest.cases)} cases",
            expected="the files of every case",
            advice="add the files, remove the cases from the manifest, or correct the folder",
        )


@rule("left-out", "a file or case was left out")
def left_out(dataset: DatasetFacts) -> Iterator[Finding]:
    """Find what does not fit the layout of a folder without a manifest: lines of `describe_dataset`."""
    for line in dataset.problems:
        subject, _, message = line.removeprefix("case ").partition(": ")
        found, _, advice = message.rpartition("; ")
        is_case = line.startswith("case ")
        yield Finding(
            rule="left-out",
            severity="error",
            cases=(subject,) if is_case else (),
            found=(found or message).replace(f"{dataset.root}/", ""),
            expected="an image and a label map per case, which can be read",
            advice=advice if found else "correct it, or move it to another folder",
            file="" if is_case else subject.removeprefix(f"{dataset.root}/"),
        )


@rule("missing-file", "a file of the case is missing")
def missing_file(dataset: DatasetFacts) -> Iterator[Finding]:
    """Find cases that lack an image or their label map."""
    lacking = [(case, file) for case, facts in dataset.cases.items() for file in facts.files if file.is_missing]
    unlabelled = tuple(case for case, file in lacking if file.role == "label")
    if unlabelled and len(unlabelled) == len(dataset.cases):
        yield Finding(
            rule="missing-file",
            severity="error",
            cases=(),
            found=f"no label map for any of {len(unlabelled)} cases",
            expected=f"a label map per case, such as {lacking[0][1].path}",
            advice="add the label maps, or correct the name of their folder",
        )
        lacking = [(case, file) for case, file in lacking if file.role != "label"]
    for case, file in lacking:
        yield Finding(
            rule="missing-file",
            severity="error",
            cases=(case,),
            found="no such file",
            expected=f"the {_role(file)}",
            advice="add the file, or remove the case",
            file=file.path,
        )


@rule("unlisted-file", "a file belongs to no case")
def unlisted_file(dataset: DatasetFacts) -> Iterator[Finding]:
    """Find images without label maps and label maps without images that the manifest does not list."""
    for path in dataset.unlisted:
        yield Finding(
            rule="unlisted-file",
            severity="warning",
            cases=(),
            found="a file that no case uses",
            expected="an image and a label map of the same name",
            advice="add its counterpart, list the case in the manifest, or move the file away",
            file=path,
        )


@rule("dimensions", "the file has the wrong number of dimensions")
def dimensions(dataset: DatasetFacts) -> Iterator[Finding]:
    """Find files with more or fewer axes than the data set has."""
    wanted = dataset.manifest.spatial_dims
    for case, file in _files(dataset):
        if not _has_wrong_dimensions(dataset, file):
            continue
        yield Finding(
            rule="dimensions",
            severity="error",
            cases=(case,),
            found=f"shape {file.stored_shape or file.shape}",
            expected=f"{wanted} axes",
            advice="save one file per channel or time point" if len(file.stored_shape) > wanted else "export it again",
            file=file.path,
        )


@rule("unreadable", "the file cannot be read")
def unreadable(dataset: DatasetFacts) -> Iterator[Finding]:
    """Find files that are empty, truncated, damaged, or not an image."""
    for case, file in _files(dataset):
        if file.is_readable or file.is_missing or _has_wrong_dimensions(dataset, file):
            continue
        _, _, message = file.problem.rpartition(f"{file.path}: ")
        found, _, advice = message.rpartition("; ")
        yield Finding(
            rule="unreadable",
            severity="error",
            cases=(case,),
            found=found or message,
            expected=f"a readable {_role(file)}",
            advice=advice if found else "copy or export the file again",
            file=file.path,
        )


@rule("non-finite", "voxels are NaN or infinite")
def non_finite(dataset: DatasetFacts) -> Iterator[Finding]:
    """Find files with voxels that are not finite."""
    for case, file in _files(dataset):
        if file.non_finite:
            yield Finding(
                rule="non-finite",
                severity="error",
                cases=(case,),
                found=f"{counted(file.non_finite, 'voxel')}, such as {file.non_finite_at}",
                expected="finite numbers",
                advice="find out where they come from; `--fix DIR --fill-non-finite 0` replaces them",
                file=file.path,
                at=file.non_finite_at,
                fix="fill",
            )


@rule("constant", "all voxels of the image are equal")
def constant(dataset: DatasetFacts) -> Iterator[Finding]:
    """Find images of a single value."""
    for case, file in _files(dataset):
        measured = file.intensities
        if file.role == "image" and measured is not None and measured.minimum == measured.maximum:
            yield Finding(
                rule="constant",
                severity="error",
                cases=(case,),
                found=f"{measured.minimum:g} in every voxel",
                expected="an image with contrast",
                advice="export the image again, or remove the case",
                file=file.path,
            )


@rule("fractional-label", "label values are not whole numbers")
def fractional_label(dataset: DatasetFacts) -> Iterator[Finding]:
    """Find label maps with fractions, which interpolation leaves behind."""
    for case, file in _files(dataset):
        if file.fractional:
            yield Finding(
                rule="fractional-label",
                severity="error",
                cases=(case,),
                found=f"{file.fraction:g} and {file.fractional - 1:,} more such voxels",
                expected="whole numbers",
                advice="resample the original label map with nearest neighbours; rounding would invent labels",
                file=file.path,
            )


@rule("float-label", "label values are stored as floating-point numbers")
def float_label(dataset: DatasetFacts) -> Iterator[Finding]:
    """Find label maps of whole numbers that are stored as floats."""
    for case, file in dataset.labels.items():
        if file.dtype.startswith("float"):
            yield Finding(
                rule="float-label",
                severity="note",
                cases=(case,),
                found=file.dtype,
                expected="an integer type",
                advice="medseg reads it as integers; `--fix DIR` stores integers for other programs",
                file=file.path,
                fix="integers",
            )


@rule("label-values", "label values are not in the manifest")
def label_values(dataset: DatasetFacts) -> Iterator[Finding]:
    """Find values that the manifest does not know."""
    allowed = dataset.manifest.values_in_files
    name = "#{:06x}".format if dataset.manifest.has_colored_labels else str
    for case, file in dataset.labels.items():
        unknown = {value: facts for value, facts in file.values.items() if value not in allowed}
        if not unknown:
            continue
        first = next(iter(unknown))
        yield Finding(
            rule="label-values",
            severity="error",
            cases=(case,),
            found=listed(f"{name(value)} ({counted(facts.voxels, 'voxel')})" for value, facts in unknown.items()),
            expected=listed(map(name, allowed)),
            advice=f"correct it (`--fix DIR --relabel {first}=0`), or add the values to the labels of the manifest",
            file=file.path,
            at=unknown[first].at,
            fix="relabel",
        )


@rule("empty-label", "the label map is empty")
def empty_label(dataset: DatasetFacts) -> Iterator[Finding]:
    """Find label maps that hold nothing but background."""
    for case, file in dataset.labels.items():
        if not file.values:
            yield Finding(
                rule="empty-label",
                severity="warning",
                cases=(case,),
                found="background in every voxel",
                expected=f"at least one of {listed(dataset.name_of_value.values(), 4)}",
                advice="check that the annotation was saved; keep the case if nothing is to be seen in it",
                file=file.path,
            )


@rule("grid", "the files of the case lie on different grids")
def grids_differ(dataset: DatasetFacts) -> Iterator[Finding]:
    """Find label maps and channels whose voxels are not those of the first image."""
    for case, reference, file in _pairs_of_grids(dataset):
        if same_voxels_on(file, reference) is not None:
            continue
        tolerance = min(reference.grid.spacing) / 2
        if file.shape != reference.shape:
            found, expected = f"shape {file.shape}", f"{reference.shape}, as in {reference.path}"
        else:
            moved = file.grid.displacement_mm(reference.grid)
            found = f"corners up to {moved:.3g} mm from those of {reference.path}"
            expected = f"at most half a voxel, {tolerance:.3g} mm"
        yield Finding(
            rule="grid",
            severity="error",
            cases=(case,),
            found=found,
            expected=expected,
            advice=f"resample the {_role(file)} onto the grid of the first image, or correct the header that is wrong",
            file=file.path,
        )


@rule("axis-order", "the files of the case store their axes in different orders")
def axis_order(dataset: DatasetFacts) -> Iterator[Finding]:
    """Find files with the image's voxels in another order or direction of the axes."""
    for case, reference, file in _pairs_of_grids(dataset):
        if file.grid.difference(reference.grid) and same_voxels_on(file, reference) is not None:
            yield Finding(
                rule="axis-order",
                severity="note",
                cases=(case,),
                found=file.grid.orientation,
                expected=f"{reference.grid.orientation} as in {reference.path}",
                advice="medseg reorders it; `--fix DIR` stores it in the image's order for other programs",
                file=file.path,
                fix="grid",
            )


@rule("header-rounding", "the headers of the case differ slightly")
def header_rounding(dataset: DatasetFacts) -> Iterator[Finding]:
    """Find grids that differ by less than half a voxel, but by more than the rounding of headers."""
    for case, reference, file in _pairs_of_grids(dataset):
        grid = same_voxels_on(file, reference)
        if grid is None:
            continue
        moved, spacing = grid.displacement_mm(reference.grid), min(reference.grid.spacing)
        if moved > HEADER_ROUNDING * spacing:
            yield Finding(
                rule="header-rounding",
                severity="note",
                cases=(case,),
                found=f"corners up to {moved:.2g} mm from those of {reference.path}",
                expected=f"equal headers; up to half a voxel, {spacing / 2:.3g} mm, is tolerated",
                advice="medseg uses the image's header; `--fix DIR` copies it for other programs",
                file=file.path,
                fix="grid",
            )


@rule("few-cases", "there are few cases")
def few_cases(dataset: DatasetFacts) -> Iterator[Finding]:
    """Find data sets that are too small for cross-validation."""
    count = len(dataset.cases)
    if 0 < count < MIN_CASES_FOR_FOLDS:
        yield Finding(
            rule="few-cases",
            severity="note",
            cases=(),
            found=counted(count, "case"),
            expected=f"at least {MIN_CASES_FOR_FOLDS} for cross-validation",
            advice="add cases; a network that is validated on its training cases shows nothing about new ones"
            if count > 1
            else "add cases; with one case nothing is left to validate on, and no outlier can be recognised",
        )


def _files(dataset: DatasetFacts) -> Iterator[tuple[str, FileFacts]]:
    return ((case, file) for case, facts in dataset.cases.items() for file in facts.files)


def _pairs_of_grids(dataset: DatasetFacts) -> Iterator[tuple[str, FileFacts, FileFacts]]:
    """Yield the first readable image of each case with each other readable file of it."""
    for case, facts in dataset.cases.items():
        reference = _reference(facts)
        if reference is not None:
            yield from ((case, reference, file) for file in facts.files if file is not reference and file.is_readable)


def _reference(facts: CaseFacts) -> FileFacts | None:
    return next((file for file in facts.images if file.is_readable), None)


def _has_wrong_dimensions(dataset: DatasetFacts, file: FileFacts) -> bool:
    wanted = dataset.manifest.spatial_dims
    shape = file.shape or file.stored_shape
    if not shape or file.is_missing:
        return False
    if file.role == "image" and dataset.manifest.has_channels_in_one_file and not file.is_readable:
        return False  # the reader says how many channels there are
    while len(shape) > wanted and shape[-1] == 1:
        shape = shape[:-1]
    return len(shape) != wanted


def _role(file: FileFacts) -> str:
    return {"image": "image", "label": "label map", "instances": "instance map"}[file.role]
