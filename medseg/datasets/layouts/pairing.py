"""Find the images of each label map by their file names."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path

from medseg.datasets.layouts.folder_layout import CaseFiles, names_of
from medseg.volumes import stem_of

LABEL_WORD = (
    "labels?|labelmap|label_?ids|(?:[gw]m)?segs?|segmentations?|dseg|masks?|gt|ground_?truth|annotations?|annot|manual"
)
IMAGE_WORD = "images?|img|scans?|volume|vol|orig|original|raw"
LABEL_SUFFIX = re.compile(rf"(?P<case>.+?)(?:(?:[_\-. ](?:{LABEL_WORD}))+|(?-i:_L))", re.IGNORECASE)
LABEL_PREFIX = re.compile(rf"(?:{LABEL_WORD})(?:[_\-. ]|(?=\d))(?P<case>.+)", re.IGNORECASE)
IMAGE_SUFFIX = re.compile(rf"(?P<case>.+?)[_\-. ](?:{IMAGE_WORD})", re.IGNORECASE)
IMAGE_PREFIX = re.compile(rf"(?:{IMAGE_WORD})(?:[_\-. ]|(?=\d))(?P<case>.+)", re.IGNORECASE)
LABEL_ROLE = re.compile(rf"(?:.*[_\-. ])?(?:{LABEL_WORD})", re.IGNORECASE)
_SEPARATORS = "_-. "

Rule = Callable[[str], str]


def _strip(pattern: re.Pattern[str]) -> Rule:
    def strip(stem: str) -> str:
        found = pattern.fullmatch(stem)
        return found["case"] if found else stem

    return strip


_SAME: Rule = lambda stem: stem  # noqa: E731
_RULES: tuple[tuple[Rule, Rule], ...] = (
    (_SAME, _SAME),
    (_SAME, _strip(LABEL_SUFFIX)),
    (_strip(IMAGE_SUFFIX), _SAME),
    (_strip(IMAGE_SUFFIX), _strip(LABEL_SUFFIX)),
    (_SAME, _strip(LABEL_PREFIX)),
    (_strip(IMAGE_PREFIX), _SAME),
    (_strip(IMAGE_PREFIX), _strip(LABEL_PREFIX)),
)


def is_label_name(path: Path) -> bool:
    """Return whether a file is a label map by the end or the beginning of its name."""
    stem = stem_of(path)
    return bool(LABEL_SUFFIX.fullmatch(stem) or LABEL_PREFIX.fullmatch(stem) or LABEL_ROLE.fullmatch(stem))


def pair(images: Sequence[Path], labels: Sequence[Path]) -> tuple[list[CaseFiles], tuple[str, ...], list[str]]:
    """Match images with label maps.

    The name of an image is that of its label map, apart from words such as `seg` or `image` and, if there are several
    channels, the end that distinguishes them (`_0000`, `_t1`).

    Returns:
        The complete cases, the ends of the channels (empty for one image per case), and one line per problem.
    """
    best: tuple[int, Rule, Rule] | None = None
    for image_rule, label_rule in _RULES:
        ids = {label_rule(stem_of(label)) for label in labels}
        found = sum(_case_of(image_rule(stem_of(image)), ids) is not None for image in images)
        matched = {_case_of(image_rule(stem_of(image)), ids) for image in images} - {None}
        score = min(found * len(labels), len(matched) * len(images))
        if best is None or score > best[0]:
            best = (score, image_rule, label_rule)
    assert best is not None
    return _matched(images, labels, best[1], best[2])


def _case_of(stem: str, ids: Container[str]) -> str | None:
    """Return the longest id that a name equals, or begins with before a separator."""
    if stem in ids:
        return stem
    for end in range(len(stem) - 1, 0, -1):
        if stem[end] in _SEPARATORS and stem[:end] in ids:
            return stem[:end]
    return None


def _matched(
    images: Sequence[Path], labels: Sequence[Path], image_rule: Rule, label_rule: Rule
) -> tuple[list[CaseFiles], tuple[str, ...], list[str]]:
    problems: list[str] = []
    label_of: dict[str, Path] = {}
    for label in labels:
        first = label_of.setdefault(label_rule(stem_of(label)), label)
        if first is not label:
            problems.append(f"{label}: is a label map of the same case as {first.name}; keep one of them")
    by_end: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for image in images:
        stem = image_rule(stem_of(image))
        case = _case_of(stem, label_of)
        if case is None:
            problems.append(f"{image}: has no label map; add one, or move the image to another folder")
        else:
            by_end[case][stem[len(case) :]].append(image)
    for case, label in label_of.items():
        if case not in by_end:
            problems.append(f"{label}: has no image; add it, or move the label map to another folder")
    cases, ends, more = complete_cases(by_end, label_of)
    return cases, ends, [*problems, *more]


def complete_cases(
    files: Mapping[str, Mapping[str, Sequence[Path]]], label_of: Mapping[str, Path]
) -> tuple[list[CaseFiles], tuple[str, ...], list[str]]:
    """Return the cases that have every channel once.

    Args:
        files: the images of each case by what distinguishes their names.
        label_of: the label map of each case.

    Returns:
        As `pair`. Names that differ in every case are no channels if each case has one image.
    """
    problems: list[str] = []
    if not files:
        return [], (), []
    counts = Counter(tuple(sorted(ends)) for ends in files.values())
    is_single = all(len(ends) == 1 for ends in files.values())
    ends = max(counts, key=lambda names: (counts[names], len(names)))
    cases = []
    for case, of_case in sorted(files.items()):
        for paths in of_case.values():
            if len(paths) > 1:
                problems.append(f"{paths[1]}: is the same case {case!r} as {paths[0].name}; rename or remove one")
        if is_single:
            images = [paths[0] for paths in of_case.values()]
        else:
            missing = [end for end in ends if end not in of_case]
            extra = [path for end, paths in of_case.items() if end not in ends for path in paths]
            if missing or extra:
                found = names_of(path for paths in of_case.values() for path in paths)
                problems.append(
                    f"case {case}: has other channels than most cases; found {found}, expected names with "
                    f"{', '.join(end or 'no end' for end in ends)}; complete the case or move it away"
                )
                continue
            images = [of_case[end][0] for end in ends]
        cases.append(CaseFiles(case, tuple(images), label_of[case]))
    if is_single and (len(counts) > 1 or ends == ("",)):
        return cases, (), problems
    return cases, tuple(end.strip(_SEPARATORS) for end in ends), problems
