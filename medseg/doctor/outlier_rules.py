"""Rules that compare each case with the others: orientation, spacing, intensity, and the size of structures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from medseg.datasets.case_facts import FileFacts
from medseg.doctor.findings import DatasetFacts, Finding, counted, listed, percent, rule

# Fewer values do not show what is usual.
MIN_CASES = 5
# An outlier lies so many robust standard deviations (1.4826 × median absolute deviation) from the median …
OUTLIER_DEVIATIONS = 6.0
# … and differs from it at least by this factor; normal spread between scanners stays below.
SPACING_FACTOR, EXTENT_FACTOR, INTENSITY_FACTOR, VOLUME_FACTOR = 1.5, 2.5, 4.0, 4.0
# HU by which the median of a CT may differ from that of the others.
CT_TOLERANCE_HU = 300.0
# Part of the cases in which a structure is usual, or rare.
USUAL_SHARE, RARE_SHARE, MIN_PRESENT = 0.9, 0.05, 3
# A piece is tiny with so many voxels and this part of its structure, or with more voxels and a smaller part.
TINY = ((5, 0.05), (30, 0.005))
# More outliers than this part of the cases are a second group, such as another scanner.
GROUP_SHARE = 0.1
FORMATS_WITHOUT_PATIENT = ("png", "tiff", "jpeg")


@rule("orientation", "orientations are mixed")
def orientation(dataset: DatasetFacts) -> Iterator[Finding]:
    """Find data sets whose images store their axes in different orders or directions, as one finding."""
    found = {
        case: file.grid.orientation
        for case, file in dataset.images(0).items()
        if file.format not in FORMATS_WITHOUT_PATIENT
    }
    counts = Counter(found.values()).most_common()
    if len(counts) > 1:
        usual = counts[0][0]
        yield Finding(
            rule="orientation",
            severity="note",
            cases=tuple(case for case, codes in found.items() if codes != usual),
            found=listed(f"{codes} in {count}" for codes, count in counts),
            expected=f"one orientation, such as {usual}",
            advice="medseg turns every scan by its header; check in a viewer that left and right are true in them",
        )


@rule("spacing", "the voxel size is unusual")
def spacing(dataset: DatasetFacts) -> Iterator[Finding]:
    """Find images whose spacing along an axis of the patient is far from that of the others."""
    files, worst = dataset.images(0), _unusual_spacings(dataset)
    if _is_group(len(worst), len(files)):
        yield Finding(
            rule="spacing",
            severity="note",
            cases=tuple(worst),
            found=f"other voxel sizes in {len(worst)} of {len(files)} images, from {_range(files, worst)}",
            expected=f"about {_usual_sizes(files)} mm, as in the others",
            advice="the plan resamples to one spacing; check that the folds contain both kinds",
        )
        return
    for case, (value, usual) in worst.items():
        yield Finding(
            rule="spacing",
            severity="warning",
            cases=(case,),
            found=f"{_sizes(files[case])} mm",
            expected=f"about {usual:.3g} mm instead of {value:.3g} mm",
            advice=_unit_advice(value / usual),
            file=files[case].path,
        )


@rule("extent", "the field of view is unusual")
def extent(dataset: DatasetFacts) -> Iterator[Finding]:
    """Find images that cover much more or less of the patient than the others."""
    files = dataset.images(0)
    volumes = {case: float(np.prod(file.shape)) * file.grid.voxel_volume_mm3 for case, file in files.items()}
    edges = {case: volume ** (1 / dataset.manifest.spatial_dims) for case, volume in volumes.items()}
    scaled = _unusual_spacings(dataset)
    for case, value, usual in outliers(edges, EXTENT_FACTOR):
        if case in scaled:
            continue
        file = files[case]
        size = " × ".join(f"{n * step:.0f}" for n, step in zip(file.shape, file.grid.spacing, strict=True))
        yield Finding(
            rule="extent",
            severity="warning",
            cases=(case,),
            found=f"{size} mm, {value / usual:.2g} times the usual size",
            expected=f"a mean edge of about {usual:.0f} mm",
            advice="check that the image shows the same part of the body and that its spacing is right",
            file=file.path,
        )


@rule("intensity", "the intensities are unusual")
def intensity(dataset: DatasetFacts) -> Iterator[Finding]:
    """Find images whose median intensity, in the labelled voxels if there are any, is far from that of the others."""
    for number, channel in enumerate(dataset.manifest.channels):
        files = dataset.images(number)
        is_ct = channel.modality.upper() == "CT"
        medians = {}
        for case, file in files.items():
            measured = file.foreground or file.intensities
            if measured is not None:
                medians[case] = measured.percentile(50.0)
        is_positive = bool(medians) and min(medians.values()) > 0
        if is_ct or not is_positive:
            scale = _spread(dataset, number)
            found = shifted(medians, CT_TOLERANCE_HU if is_ct else INTENSITY_FACTOR * scale)
        else:
            found = outliers(medians, INTENSITY_FACTOR)
        unit = " HU" if is_ct else ""
        if _is_group(len(found), len(medians)):
            low, high = min(value for _, value, _ in found), max(value for _, value, _ in found)
            yield Finding(
                rule="intensity",
                severity="note",
                cases=tuple(case for case, _, _ in found),
                found=f"another scale in {len(found)} of {len(medians)} images{_channel(dataset, number)}: "
                f"medians from {low:.4g} to {high:.4g}{unit}",
                expected=f"about {found[0][2]:.4g}{unit}, as in the others",
                advice="check the rescaling of the export"
                if is_ct
                else "normalise each image by itself, as the z-score of a plan does; check that the folds contain both",
            )
            continue
        for case, value, usual in found:
            yield Finding(
                rule="intensity",
                severity="warning",
                cases=(case,),
                found=f"a median of {value:.4g}{unit}{_channel(dataset, number)}",
                expected=f"about {usual:.4g}{unit}",
                advice="check the rescaling of the export"
                if is_ct
                else "check the modality and the sequence of this image",
                file=files[case].path,
            )


@rule("ct-units", "the CT is not in Hounsfield units")
def ct_units(dataset: DatasetFacts) -> Iterator[Finding]:
    """Find CT images without the values of air, which appear if an export omits the rescaling."""
    for number, channel in enumerate(dataset.manifest.channels):
        if channel.modality.upper() != "CT":
            continue
        for case, file in dataset.images(number).items():
            measured = file.intensities
            if measured is not None and measured.minimum >= 0 and measured.maximum > measured.minimum:
                yield Finding(
                    rule="ct-units",
                    severity="warning",
                    cases=(case,),
                    found=f"values from {measured.minimum:g} to {measured.maximum:g}",
                    expected="HU, in which air is about -1000 and water 0",
                    advice="export it with its rescale intercept, often -1024",
                    file=file.path,
                )


@rule("absent-structure", "a structure occurs in no case")
def absent_structure(dataset: DatasetFacts) -> Iterator[Finding]:
    """Find structures of the manifest without a voxel in any label map."""
    for name, voxels in dataset.volumes.items():
        if voxels and not any(voxels.values()):
            yield Finding(
                rule="absent-structure",
                severity="error",
                cases=(),
                found=f"no voxel of {name} in {len(voxels)} label maps",
                expected="at least one case with it",
                advice="correct its value in the manifest, or remove it from the labels",
            )


@rule("rare-structure", "a structure is rare")
def rare_structure(dataset: DatasetFacts) -> Iterator[Finding]:
    """Find structures that occur in so few cases that a fold may have none."""
    for name, voxels in dataset.volumes.items():
        present = tuple(case for case, count in voxels.items() if count)
        is_rare = len(present) < MIN_PRESENT or len(present) < RARE_SHARE * len(voxels)
        if len(voxels) >= MIN_CASES and present and is_rare:
            yield Finding(
                rule="rare-structure",
                severity="note",
                cases=present,
                found=f"{name} in {len(present)} of {len(voxels)} cases ({percent(len(present) / len(voxels))})",
                expected=f"at least {max(MIN_PRESENT, math.ceil(RARE_SHARE * len(voxels)))} cases",
                advice="spread these cases over the folds; scores of this structure will be uncertain",
            )


@rule("missing-structure", "a structure is missing that almost every other case has")
def missing_structure(dataset: DatasetFacts) -> Iterator[Finding]:
    """Find label maps without a structure that at least 90 % of the cases have."""
    for name, voxels in dataset.volumes.items():
        lacking = [case for case, count in voxels.items() if not count and dataset.labels[case].values]
        share = sum(1 for count in voxels.values() if count) / max(len(voxels), 1)
        if len(voxels) < MIN_CASES or share < USUAL_SHARE:
            continue
        for case in lacking:
            yield Finding(
                rule="missing-structure",
                severity="warning",
                cases=(case,),
                found=f"no voxel of {name}",
                expected=f"{name}, as in {percent(share)} of the cases",
                advice="complete the label map, or keep it if the structure is truly absent",
                file=dataset.labels[case].path,
            )


@rule("structure-size", "a structure has an unusual size")
def structure_size(dataset: DatasetFacts) -> Iterator[Finding]:
    """Find structures that are several times larger or smaller than in the other cases."""
    dims = dataset.manifest.spatial_dims
    scaled = _unusual_spacings(dataset)
    unit, factor = ("ml", 1e-3) if dims == 3 else ("mm²", 1.0)
    for name, voxels in dataset.volumes.items():
        sizes = {
            case: count * float(np.prod(dataset.labels[case].grid.spacing)) * factor
            for case, count in voxels.items()
            if count
        }
        values = [value for value, known in dataset.name_of_value.items() if known == name]
        for case, value, usual in outliers(sizes, VOLUME_FACTOR):
            if case in scaled:
                continue
            label = dataset.labels[case]
            yield Finding(
                rule="structure-size",
                severity="warning",
                cases=(case,),
                found=f"{value:.3g} {unit} of {name}",
                expected=f"about {usual:.3g} {unit}",
                advice="check the label map and the spacing",
                file=label.path,
                at=next(label.values[value].at for value in values if value in label.values),
            )


@rule("tiny-piece", "a structure has a tiny separate piece")
def tiny_piece(dataset: DatasetFacts) -> Iterator[Finding]:
    """Find specks of label in structures that are one piece in most cases."""
    for value, name in dataset.name_of_value.items():
        facts = {case: label.values[value] for case, label in dataset.labels.items() if value in label.values}
        if not facts or float(np.median([one.pieces for one in facts.values()])) > 1:
            continue  # lesions and cells come in pieces
        for case, one in facts.items():
            is_tiny = any(one.smallest <= min(voxels, share * one.voxels) for voxels, share in TINY)
            if one.pieces > 1 and is_tiny:
                yield Finding(
                    rule="tiny-piece",
                    severity="warning",
                    cases=(case,),
                    found=f"{one.pieces} pieces of {name}, the smallest of {counted(one.smallest, 'voxel')} at "
                    f"{one.at}",
                    expected="one piece, as in most cases",
                    advice="erase the speck if it was a slip of the brush",
                    file=dataset.labels[case].path,
                    at=one.at,
                )


def outliers(values: Mapping[str, float], min_factor: float) -> list[tuple[str, float, float]]:
    """Find positive values that are far from the others on a logarithmic scale.

    Args:
        values: positive value per case.
        min_factor: ratio to the median below which no value is an outlier.

    Returns:
        Case, value and median, for each value with more than six robust standard deviations from the median; nothing
        for fewer than five cases.
    """
    return [
        (case, math.exp(value), math.exp(usual))
        for case, value, usual in shifted({case: math.log(v) for case, v in values.items()}, math.log(min_factor))
    ]


def shifted(values: Mapping[str, float], min_difference: float) -> list[tuple[str, float, float]]:
    """Find values that are far from the others; as `outliers`, with a difference instead of a ratio."""
    if len(values) < MIN_CASES:
        return []
    usual = float(np.median(list(values.values())))
    deviation = 1.4826 * float(np.median([abs(value - usual) for value in values.values()]))
    limit = max(OUTLIER_DEVIATIONS * deviation, min_difference)
    return [(case, value, usual) for case, value in values.items() if abs(value - usual) > limit]


def _unusual_spacings(dataset: DatasetFacts) -> dict[str, tuple[float, float]]:
    """Return the most unusual spacing of each case with an unusual one, and the usual one.

    A wrong spacing also makes the field of view and the structures look unusual, which needs no finding of its own.
    """
    dims = dataset.manifest.spatial_dims
    sizes = {case: sorted(file.grid.spacing) for case, file in dataset.images(0).items()}
    worst: dict[str, tuple[float, float]] = {}
    for axis in range(dims):
        values = {case: size[axis] for case, size in sizes.items() if len(size) == dims}
        for case, value, usual in outliers(values, SPACING_FACTOR):
            if abs(math.log(value / usual)) > abs(math.log(np.divide(*worst.get(case, (1.0, 1.0))))):
                worst[case] = (value, usual)
    return worst


def _is_group(num_outliers: int, num_cases: int) -> bool:
    return num_outliers > max(GROUP_SHARE * num_cases, 2)


def _range(files: Mapping[str, FileFacts], cases: Iterable[str]) -> str:
    ordered = sorted(cases, key=lambda case: files[case].grid.voxel_volume_mm3)
    return f"{_sizes(files[ordered[0]])} to {_sizes(files[ordered[-1]])} mm"


def _usual_sizes(files: Mapping[str, FileFacts]) -> str:
    return " × ".join(f"{step:.3g}" for step in np.median([file.grid.spacing for file in files.values()], axis=0))


def _spread(dataset: DatasetFacts, channel: int) -> float:
    """Return the median standard deviation of a channel's images."""
    spreads = [file.intensities.std for file in dataset.images(channel).values() if file.intensities is not None]
    return float(np.median(spreads)) if spreads else 0.0


def _channel(dataset: DatasetFacts, number: int) -> str:
    return f" in channel {dataset.manifest.channel_names[number]}" if len(dataset.manifest.channels) > 1 else ""


def _sizes(file: FileFacts) -> str:
    return " × ".join(f"{step:.3g}" for step in file.grid.spacing)


def _unit_advice(ratio: float) -> str:
    for factor, unit in ((1000.0, "µm"), (0.001, "m"), (0.1, "cm")):
        if 0.5 < ratio / factor < 2:
            return f"the header seems to be written in {unit}; correct its spacing to mm"
    return "check the header; keep the case if it was scanned like this"
