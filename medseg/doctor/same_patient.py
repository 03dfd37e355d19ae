"""Recognise cases that probably come from one patient, from their names, headers and intensities.

The statistics follow one idea: a way to group the cases by their numbers, such as (1, 2), (3, 4), …, is tested against
the neighbours that it separates, (2, 3), (4, 5), …. In a data set with one case per patient, both kinds of neighbours
are equally similar, also if the cases are sorted by scanner. See docs/doctor.md for the numbers on real data.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from medseg.datasets.case_facts import CaseFacts, FileFacts

# Blocks of so many consecutive numbers may be one patient.
BLOCK_SIZES = (2, 3, 4)
# A way to group the numbers needs so many neighbours inside of blocks and between blocks.
MIN_NEIGHBOURS = 8
# Largest p-value of the test that neighbours in a block are more similar than those of two blocks, and than cases that
# are further apart. About ten ways are tested.
LARGEST_P = 1e-5
# Share of neighbour pairs (one inside of a block, one between two) in which the one inside must be more similar.
MIN_SUPERIORITY = 0.8
# Accepted share of wrong pairs among those that are reported.
FALSE_DISCOVERIES = 0.05
# Cases up to so many numbers apart show how similar two patients are.
FAR = 10
# Cases at least so many numbers apart are compared with neighbours to recognise slices of one volume. Slices and frames
# reach a superiority of 0.95 and more, series of patients 0.65 and less.
SLICES_APART, MIN_SLICE_SUPERIORITY = 5, 0.85
# Names of which many share a stem are those of sites or of the whole data set, not of patients.
MAX_GROUP = 12
# Sides, time points and parts at the end of a name.
_PART = re.compile(
    r"(?i)[_\-. ]*(?:left|right|lh|rh|(?<=[\d_\-. ])[lr]|(?<=\d)[a-d]|baseline|followup|follow-up|pre|post"
    r"|(?:ses|session|visit|scan|frame|tp|time|slice|part|run|t|v|s|z)[_\-]?\d+)$"
)
_LAST_NUMBER = re.compile(r"^(.*?)(\d+)(\D*)$")
_TWO_NUMBERS = re.compile(r"^(.*\d)\D+\d+\D*$")
_SITE = re.compile(r"(?i)(site|cent[re]{2}|hospital|scanner|batch|fold|task|set)[_\-]?\d+$")
_BIDS_SUBJECT = re.compile(r"^(sub-[A-Za-z0-9]+)(?:_|$)")


@dataclass(frozen=True)
class PatientGroup:
    """Cases that probably come from one patient.

    Args:
        cases: their ids, two or more.
        evidence: why, for the message.
    """

    cases: tuple[str, ...]
    evidence: str


def probable_patients(cases: Mapping[str, CaseFacts]) -> list[PatientGroup]:
    """Group the cases that probably come from one patient.

    Args:
        cases: facts of the cases by id.

    Returns:
        The groups, without those that are part of another one; cases without a partner are in none.
    """
    found = [*_by_identifier(cases), *_by_name(list(cases)), *_by_direction(cases), *_by_number(cases)]
    kept: list[PatientGroup] = []
    for group in sorted(found, key=lambda one: -len(one.cases)):
        if not any({*group.cases} <= {*other.cases} for other in kept):
            kept.append(group)
    return sorted(kept, key=lambda one: one.cases)


def neighbouring_slices(cases: Mapping[str, CaseFacts]) -> list[PatientGroup]:
    """Find series of numbered cases in which each image resembles the next, as slices of a volume and frames do.

    Neighbours are compared with cases that are 5 to 10 numbers apart. If the cases are sorted by scanner, both are from
    one scanner nearly always.
    """
    found = []
    for numbered in _series(cases):
        images = {number: image for number, case in numbered.items() if (image := _usable(cases[case])) is not None}
        next_to = [(n, n + 1) for n in images if n + 1 in images]
        apart = [(n, m) for n in images for m in range(n + SLICES_APART, n + FAR + 1) if m in images]
        if min(len(next_to), len(apart)) < MIN_NEIGHBOURS:
            continue
        near, far = (
            [1 - _differences(images[first], images[second])[4] for first, second in pairs]
            for pairs in (next_to, apart)
        )
        from scipy.stats import mannwhitneyu  # takes half a second to import, and small data sets do not need it

        test = mannwhitneyu(near, far, alternative="greater")
        superiority = float(test.statistic) / (len(near) * len(far))
        if test.pvalue <= LARGEST_P and superiority >= MIN_SLICE_SUPERIORITY:
            evidence = (
                f"neighbours correlate by {np.median(near):.2f}, cases {SLICES_APART} numbers and more apart by "
                f"{np.median(far):.2f} (medians; p = {test.pvalue:.0e})"
            )
            found.append(PatientGroup(tuple(numbered[number] for number in sorted(images)), evidence))
    return found


def _by_identifier(cases: Mapping[str, CaseFacts]) -> Iterator[PatientGroup]:
    """Group cases whose DICOM headers carry one identifier of a patient, a study or a frame of reference."""
    seen = set()
    for name, words in (("PatientID", "patient ID"), ("StudyInstanceUID", "study"), ("FrameOfReferenceUID", "frame")):
        groups = defaultdict(list)
        for case, facts in cases.items():
            for value in {file.header.get(name, "") for file in facts.images} - {""}:
                groups[value].append(case)
        if len(groups) < 2:
            continue  # anonymised data may carry one value everywhere
        for members in groups.values():
            if len(members) > 1 and tuple(members) not in seen:
                seen.add(tuple(members))
                yield PatientGroup(tuple(members), f"one {words} in their DICOM headers")


def _by_name(ids: Sequence[str]) -> Iterator[PatientGroup]:
    """Group cases whose names differ only in a side, a time point or a part."""
    stems: dict[str, str] = {}
    for case in ids:
        if subject := _BIDS_SUBJECT.match(case):
            stems[case] = subject[1]
            continue
        stem = _PART.sub("", case)
        if stem != case and re.search(r"\d", stem):
            stems[case] = stem
    if not stems:
        stems = {case: match[1] for case in ids if (match := _TWO_NUMBERS.match(case))}
    groups = defaultdict(list)
    for case, stem in stems.items():
        groups[stem].append(case)
    sizes = [len(members) for members in groups.values()]
    if len(groups) < 2 or np.median(sizes) > MAX_GROUP:
        return
    for stem, members in groups.items():
        if 1 < len(members) <= MAX_GROUP and not _SITE.search(stem):
            yield PatientGroup(tuple(members), f"their names share {stem}")


def _by_direction(cases: Mapping[str, CaseFacts]) -> Iterator[PatientGroup]:
    """Group cases whose scans are tilted by exactly the same angles, which another session never repeats."""
    groups = defaultdict(list)
    for case, facts in cases.items():
        first = next((file for file in facts.images if file.is_readable and len(file.shape) == 3), None)
        if first is not None and first.grid.is_oblique:
            directions = np.array(first.affine)[:3, :3] / np.array(first.grid.spacing)
            groups[np.round(directions, 6).tobytes()].append(case)
    if len(groups) < 2:
        return
    for members in groups.values():
        if 1 < len(members) <= MAX_GROUP and len(members) <= max(2, len(cases) // 10):
            yield PatientGroup(tuple(members), "their scans are tilted by exactly the same angles")


def _by_number(cases: Mapping[str, CaseFacts]) -> Iterator[PatientGroup]:
    """Group cases with consecutive numbers, if a regular way to group them makes the groups alike."""
    for numbered in _series(cases):
        first_images = {
            number: image for number, case in numbered.items() if (image := _usable(cases[case])) is not None
        }
        yield from _blocks(first_images, numbered)


def _series(cases: Mapping[str, CaseFacts]) -> list[dict[int, str]]:
    """Return the cases whose names differ in their last number only, by that number."""
    series: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for case in cases:
        if match := _LAST_NUMBER.match(case):
            series[match[1], match[3]][int(match[2])] = case
    return list(series.values())


def _blocks(images: Mapping[int, FileFacts], names: Mapping[int, str]) -> Iterator[PatientGroup]:
    """Test every way to cut the numbers into blocks, and yield the similar neighbours of the best one."""
    numbers = sorted(images)
    next_to = [(n, n + 1) for n in numbers if n + 1 in images]
    apart = [(n, m) for n in numbers for m in range(n + max(BLOCK_SIZES), n + FAR + 1) if m in images]
    if len(next_to) < 2 * MIN_NEIGHBOURS or len(apart) < 2 * MIN_NEIGHBOURS:
        return
    from scipy.stats import mannwhitneyu  # takes half a second to import, and small data sets do not need it

    differences = {pair: _differences(images[pair[0]], images[pair[1]]) for pair in (*next_to, *apart)}
    best: tuple[float, list[tuple[int, int]], list[tuple[int, int]]] | None = None
    for size in BLOCK_SIZES:
        for phase in range(size):
            inside = [pair for pair in next_to if (pair[1] - phase) % size]
            between = [pair for pair in next_to if not (pair[1] - phase) % size]
            if min(len(inside), len(between)) < MIN_NEIGHBOURS:
                continue
            scores = _similarity(differences, [*between, *apart])
            groups = [[scores[pair] for pair in pairs] for pairs in (inside, between, apart)]
            tests = [mannwhitneyu(groups[0], other, alternative="greater") for other in groups[1:]]
            p = max(float(test.pvalue) for test in tests)
            superiority = float(tests[0].statistic) / (len(inside) * len(between))
            if p <= LARGEST_P and superiority >= MIN_SUPERIORITY and (best is None or p < best[0]):
                best = (p, inside, [*between, *apart])
    if best is None:
        return
    p, inside, others = best
    scores = _similarity(differences, others)
    usual = float(np.median([differences[pair][0] for pair in others]))
    is_ratio = all(_median(image) > 0 for image in images.values())
    alike = set(_alike(inside, [scores[pair] for pair in inside], np.array([scores[pair] for pair in others])))
    for run in _runs(pair for pair in inside if pair in alike):
        median = float(np.mean([differences[pair][0] for pair in pairwise(run)]))
        yield PatientGroup(
            tuple(names[number] for number in run),
            f"medians {_difference(median, is_ratio)} apart (others {_difference(usual, is_ratio)}), p = {p:.0e}",
        )


def _alike(
    pairs: Sequence[tuple[int, int]], scores: Sequence[float], null_scores: np.ndarray
) -> Iterator[tuple[int, int]]:
    """Yield the pairs that are more alike than chance, with at most 5 % wrong ones (Storey's estimate)."""
    ordered = np.sort(null_scores)
    above = len(ordered) - np.searchsorted(ordered, scores, side="left")
    p_values = (above + 1) / (len(ordered) + 1)
    share_of_chance = min(1.0, 2 * float(np.mean(p_values > 0.5)))
    limit = max(
        (
            t
            for t in np.unique(p_values)
            if share_of_chance * t * len(p_values) <= FALSE_DISCOVERIES * np.count_nonzero(p_values <= t)
        ),
        default=0.0,
    )
    yield from (pair for pair, p in zip(pairs, p_values, strict=True) if p <= limit)


def _runs(pairs: Iterable[tuple[int, int]]) -> Iterator[list[int]]:
    """Join neighbours that share a number."""
    run: list[int] = []
    for first, second in pairs:
        if run and run[-1] == first:
            run.append(second)
        else:
            if run:
                yield run
            run = [first, second]
    if run:
        yield run


def _difference(value: float, is_ratio: bool) -> str:
    return f"{100 * np.expm1(value):.0f} %" if is_ratio else f"{value:.3g}"


def _median(image: FileFacts) -> float:
    assert image.intensities is not None
    return image.intensities.percentile(50.0)


def _usable(facts: CaseFacts) -> FileFacts | None:
    """Return the first image of a case with intensities and a thumbnail."""
    return next((file for file in facts.images if file.intensities is not None and file.thumbnail), None)


def _differences(a: FileFacts, b: FileFacts) -> tuple[float, ...]:
    """Return how two images differ: median, 95th percentile, mean, standard deviation, thumbnail, and header.

    Intensities of positive images are compared by ratio, others by difference.
    """
    assert a.intensities is not None
    assert b.intensities is not None
    pairs = [
        (a.intensities.percentile(50.0), b.intensities.percentile(50.0)),
        (a.intensities.percentile(95.0), b.intensities.percentile(95.0)),
        (a.intensities.mean, b.intensities.mean),
        (a.intensities.std, b.intensities.std),
    ]
    numbers = [abs(float(np.log(x / y))) if min(x, y) > 0 else abs(x - y) for x, y in pairs]
    first, second = a.thumbnail_vector(), b.thumbnail_vector()
    correlation = 0.0
    if first is not None and second is not None and first.shape == second.shape:
        correlation = float((first * second).mean())
    return (*numbers, 1 - correlation, float(_header_differences(a, b)))


def _header_differences(a: FileFacts, b: FileFacts) -> int:
    """Count the properties of the headers that differ."""
    kept = [
        a.dtype == b.dtype,
        a.shape == b.shape,
        np.allclose(np.array(a.affine), np.array(b.affine), rtol=0, atol=1e-4),
        np.allclose(a.grid.spacing, b.grid.spacing, rtol=1e-5),
        a.header == b.header,
    ]
    return sum(not same for same in kept)


def _similarity(
    differences: Mapping[tuple[int, int], tuple[float, ...]], null: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], float]:
    """Return the similarity of each pair: minus the logarithm of the share of null pairs that differ less.

    The four statistics of intensity say nearly the same and together weigh as much as two of them.
    """
    keys = list(differences)
    table = np.array([differences[key] for key in keys])
    of_null = np.sort(np.array([differences[key] for key in null]), axis=0)
    total = np.zeros(len(keys))
    for column, weight in enumerate((0.5, 0.5, 0.5, 0.5, 1.0, 1.0)):
        rank = np.searchsorted(of_null[:, column], table[:, column], side="right")
        total -= weight * np.log((rank + 1) / (len(null) + 1))
    return dict(zip(keys, total.tolist(), strict=True))
