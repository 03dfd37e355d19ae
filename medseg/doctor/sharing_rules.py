"""Rules about cases that share what they should not: images, label maps, patients, and folds with either."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product

import numpy as np

from medseg.datasets.case_facts import THUMBNAIL_EDGE, FileFacts
from medseg.doctor.findings import DatasetFacts, Finding, counted, listed, rule
from medseg.doctor.same_patient import neighbouring_slices

# Correlation of two thumbnails from which two images count as one that was converted, cropped a little or mirrored.
NEAR_DUPLICATE = 0.995
# Correlations of this many cases with all others are computed at once.
BLOCK = 512


@rule("duplicate-image", "cases hold the same image")
def duplicate_image(dataset: DatasetFacts) -> Iterator[Finding]:
    """Find images with exactly the same values, whatever their format, type and orientation."""
    for cases, file in _equal_images(dataset):
        yield Finding(
            rule="duplicate-image",
            severity="error",
            cases=cases,
            found=f"the same voxels in {len(cases)} cases",
            expected="different images",
            advice="keep one of them, and check which label map belongs to it",
            file=file,
        )


@rule("near-duplicate", "images are nearly the same")
def near_duplicate(dataset: DatasetFacts) -> Iterator[Finding]:
    """Find images that are the same after rescaling, conversion or mirroring."""
    equal = {pair for cases, _ in _equal_images(dataset) for pair in combinations(sorted(cases), 2)}
    for (first, second), correlation, mirrored in _similar_images(dataset):
        if tuple(sorted((first, second))) in equal:
            continue
        yield Finding(
            rule="near-duplicate",
            severity="warning",
            cases=(first, second),
            found=f"a correlation of {correlation:.4f}{f' after mirroring {mirrored}' if mirrored else ''}",
            expected=f"less than {NEAR_DUPLICATE}",
            advice="keep one of them if they are copies; if not, keep them in one fold",
            file=dataset.images(0)[first].path,
        )


@rule("duplicate-label", "cases hold the same label map")
def duplicate_label(dataset: DatasetFacts) -> Iterator[Finding]:
    """Find cases with different images whose label maps are equal."""
    groups: dict[str, list[str]] = defaultdict(list)
    for case, label in dataset.labels.items():
        if label.values and len(label.values) + bool(label.zeros) > 1:  # a filled map says nothing
            groups[label.digest].append(case)
    images = {case: file.digest for case, file in dataset.images(0).items()}
    for cases in groups.values():
        if len(cases) > 1 and len({images.get(case, case) for case in cases}) > 1:
            yield Finding(
                rule="duplicate-label",
                severity="error",
                cases=tuple(cases),
                found=f"one label map in {len(cases)} cases with different images",
                expected="a label map per image",
                advice="find the case that it belongs to, and restore the others",
                file=dataset.labels[cases[0]].path,
            )


@rule("same-channel", "two channels of a case hold the same image")
def same_channel(dataset: DatasetFacts) -> Iterator[Finding]:
    """Find cases in which one file was copied to two channels."""
    names = dataset.manifest.channel_names
    for case, facts in dataset.cases.items():
        for first, second in combinations([file for file in facts.images if file.is_readable], 2):
            measured = first.intensities
            if first.digest == second.digest and measured is not None and measured.maximum > measured.minimum:
                yield Finding(
                    rule="same-channel",
                    severity="error",
                    cases=(case,),
                    found=f"the voxels of {names[first.channel]} in {names[second.channel]}",
                    expected="a different image per channel",
                    advice="export the channel again",
                    file=second.path,
                )


@rule("same-patient", "cases probably come from one patient")
def same_patient(dataset: DatasetFacts) -> Iterator[Finding]:
    """Find cases that the manifest gives to different patients and that probably come from one."""
    for group in dataset.undeclared_patients:
        yield Finding(
            rule="same-patient",
            severity="warning",
            cases=group.cases,
            found=group.evidence,
            expected="one case per patient, as declared",
            advice="if it is true, give them one patient in the manifest, and keep them in one fold",
        )


@rule("slices", "cases are probably slices of one volume")
def slices(dataset: DatasetFacts) -> Iterator[Finding]:
    """Find numbered cases that the manifest gives to different patients and of which each resembles the next."""
    for series in neighbouring_slices(dataset.cases):
        if len({dataset.patients[case] for case in series.cases}) > 1:
            yield Finding(
                rule="slices",
                severity="warning",
                cases=series.cases,
                found=series.evidence,
                expected="cases that do not resemble the next one more than others",
                advice="if they are slices or frames, give those of a volume or film one patient, or keep blocks of "
                "neighbours in one fold",
            )


@rule("leak", "folds share a patient or an image")
def leak(dataset: DatasetFacts) -> Iterator[Finding]:
    """Find folds that would validate on what was trained on: declared or probable patients, and equal images.

    One finding per set of folds and per kind.
    """
    kinds: dict[str, list[Sequence[str]]] = {"image": [cases for cases, _ in _equal_images(dataset)]}
    declared = defaultdict(list)
    for case, patient in dataset.patients.items():
        declared[patient].append(case)
    kinds["patient"] = [cases for cases in declared.values() if len(cases) > 1]
    kinds["probable patient"] = [group.cases for group in dataset.undeclared_patients]
    for name, folds in _sets_of_folds(dataset):
        for kind, groups in kinds.items():
            crossing = [cases for cases in groups if len({folds[case] for case in cases if case in folds}) > 1]
            if not crossing:
                continue
            examples = [" and ".join(f"{case} ({folds[case]})" for case in cases[:2]) for cases in crossing[:2]]
            yield Finding(
                rule="leak",
                severity="warning" if kind == "probable patient" else "error",
                cases=tuple(case for cases in crossing for case in cases if case in folds),
                found=f"{counted(len(crossing), kind)} in several folds{name}, such as {listed(examples)}",
                expected="all cases of a patient in one fold",
                advice="group the folds by patient; scores on these cases are too good",
            )


@rule("test-leak", "test images are training images")
def test_leak(dataset: DatasetFacts) -> Iterator[Finding]:
    """Find images in `imagesTs` with exactly the values of an image that is trained on."""
    for channel in range(len(dataset.manifest.channels)):
        trained = {file.digest: case for case, file in dataset.images(channel).items() if _has_contrast(file)}
        for test, facts in dataset.tests.items():
            for file in facts.images:
                if file.channel == channel and file.is_readable and file.digest in trained:
                    case = trained[file.digest]
                    yield Finding(
                        rule="test-leak",
                        severity="error",
                        cases=(case,),
                        found=f"the voxels of {case} in {test}",
                        expected="other images in the test set",
                        advice="remove it from the test set or from the training cases; its score is too good",
                        file=file.path,
                    )


def _sets_of_folds(dataset: DatasetFacts) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Yield the part of each case for the manifest's own folds and each other set, with a phrase that names the set."""
    manifest = dataset.manifest
    for name, folds in ("", manifest.folds), *((f" of {name}", folds) for name, folds in manifest.fold_sets.items()):
        if folds:
            yield name, {case: f"fold {number}" for number, cases in folds.items() for case in cases}
    for number, split in manifest.splits.items():
        parts = {"training": split.training, "validation": split.validation, "test": split.test}
        yield f" of split {number}", {case: part for part, cases in parts.items() for case in cases}


def _equal_images(dataset: DatasetFacts) -> list[tuple[tuple[str, ...], str]]:
    """Return the cases with equal, non-constant images of one channel, and the file of the first."""
    found: dict[tuple[str, ...], str] = {}
    for channel in range(len(dataset.manifest.channels)):
        groups: dict[str, list[str]] = defaultdict(list)
        files = dataset.images(channel)
        for case, file in files.items():
            if _has_contrast(file):
                groups[file.digest].append(case)
        for cases in groups.values():
            if len(cases) > 1:
                found.setdefault(tuple(cases), files[cases[0]].path)
    return list(found.items())


def _has_contrast(file: FileFacts) -> bool:
    """Return False for a constant image, which is equal to others without being a copy of them."""
    return file.intensities is not None and file.intensities.maximum > file.intensities.minimum


def _similar_images(dataset: DatasetFacts) -> Iterator[tuple[tuple[str, str], float, str]]:
    """Yield pairs of cases with nearly equal thumbnails, their correlation, and the mirrored axes if there are any."""
    files = {case: file for case, file in dataset.images(0).items() if file.thumbnail}
    by_dims: dict[int, list[str]] = defaultdict(list)
    for case, file in files.items():
        by_dims[len(file.shape)].append(case)
    for dims, cases in by_dims.items():
        thumbnails = np.stack([_thumbnail(files[case]) for case in cases])
        flat = thumbnails.reshape(len(cases), -1)
        found: dict[tuple[int, int], tuple[float, str]] = {}
        for flips in product((False, True), repeat=dims):
            axes = tuple(axis + 1 for axis, is_flipped in enumerate(flips) if is_flipped)
            turned = np.flip(thumbnails, axes).reshape(len(cases), -1)
            names = listed("xyz"[axis - 1] for axis in axes)
            for start in range(0, len(cases), BLOCK):
                correlations = flat[start : start + BLOCK] @ turned.T / THUMBNAIL_EDGE**dims
                for row, column in np.argwhere(correlations > NEAR_DUPLICATE):
                    pair, value = (int(row) + start, int(column)), float(correlations[row, column])
                    if pair[0] < pair[1] and value > found.get(pair, (0.0, ""))[0]:
                        found[pair] = (value, names)
        for (first, second), (value, names) in sorted(found.items()):
            yield (cases[first], cases[second]), value, names


def _thumbnail(file: FileFacts) -> np.ndarray:
    vector = file.thumbnail_vector()
    assert vector is not None
    return vector
