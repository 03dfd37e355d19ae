"""Examine a data set: measure its files, apply every rule, and show the findings."""

from __future__ import annotations

import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medseg.datasets import Manifest, describe_dataset, list_manifests, read_manifest
from medseg.datasets.case_facts import CaseFacts
from medseg.datasets.collect_facts import collect_facts
from medseg.datasets.nnunet import test_images
from medseg.doctor.findings import SEVERITIES, DatasetFacts, Finding, check_dataset, counted
from medseg.errors import ManifestError
from medseg.volumes import suffix_of

WIDTH = 80
# Rows of one rule in the text; the page and the JSON have all of them.
MAX_ROWS = 15


@dataclass(frozen=True)
class Examination:
    """Result of `examine`.

    Args:
        dataset: the facts.
        findings: what the rules found, errors first.
        num_measured: number of cases that were read; the others had not changed since an earlier examination.
    """

    dataset: DatasetFacts
    findings: tuple[Finding, ...]
    num_measured: int

    @property
    def counts(self) -> dict[str, int]:
        """Number of findings per severity."""
        return {severity: sum(one.severity == severity for one in self.findings) for severity in SEVERITIES}

    @property
    def headline(self) -> str:
        """The data set and its findings in one line."""
        manifest, cases = self.dataset.manifest, len(self.dataset.cases)
        of_all = f" of {len(manifest.cases)}" if cases != len(manifest.cases) else ""
        counts = ", ".join(counted(number, severity) for severity, number in self.counts.items() if number)
        return f"{manifest.name}: {cases}{of_all} case{'' if cases == 1 else 's'} examined; {counts or 'no findings'}"

    def to_json(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "name": self.dataset.manifest.name,
            "root": str(self.dataset.root),
            "num_cases": len(self.dataset.cases),
            "num_measured": self.num_measured,
            "counts": self.counts,
            "findings": [finding.to_json() for finding in self.findings],
        }

    def lines(self, width: int = WIDTH) -> list[str]:
        """Return the findings as a table of at most `width` columns, grouped by rule."""
        lines = textwrap.wrap(self.headline, width)
        for (severity, name), findings in self.grouped().items():
            lines += ["", *textwrap.wrap(f"{severity.upper()} {name}: {findings[0].title} ({len(findings)})", width)]
            shown = findings[:MAX_ROWS]
            expected = {finding.expected for finding in findings}
            column = max((len(one.subject) + 2 for one in shown if len(one.subject) < width // 2), default=0)
            per_subject = Counter(one.subject for one in shown)
            for finding in shown:
                text = finding.found if len(expected) == 1 else f"{finding.found}; expected {finding.expected}"
                if per_subject[finding.subject] > 1 and finding.cases:  # several files of a case
                    text = f"{finding.file}: {text}" if finding.file else text
                lines += _row(finding.subject, text, column, width)
            if len(findings) > MAX_ROWS:
                lines.append(f"  … and {len(findings) - MAX_ROWS} more, which --json and --page show")
            if len(expected) == 1:
                lines += textwrap.wrap(
                    f"expected: {findings[0].expected}", width, initial_indent="  ", subsequent_indent="    "
                )
            for advice in dict.fromkeys(finding.advice for finding in findings[:MAX_ROWS]):
                lines += textwrap.wrap(advice, width, initial_indent="  → ", subsequent_indent="    ")
        return lines

    def grouped(self) -> dict[tuple[str, str], list[Finding]]:
        """Return the findings by severity and rule, errors first."""
        groups: dict[tuple[str, str], list[Finding]] = defaultdict(list)
        for finding in self.findings:
            groups[finding.severity, finding.rule].append(finding)
        return dict(groups)


def examine(
    data: Manifest | Path | str,
    root: Path | str | None = None,
    *,
    num_processes: int | None = 1,
    use_cache: bool = True,
    on_case: Callable[[str, int, int], None] | None = None,
) -> Examination:
    """Check a data set and report every problem at once. Its files are only read.

    Args:
        data: the data set: a folder in any layout of `describe_dataset`, a manifest, or the name of a shipped one.
        root: folder with the files, if `data` does not tell.
        num_processes: as in `collect_facts`; None uses every core.
        use_cache: False reads every case again; True only those that changed since an earlier examination.
        on_case: called after each case with its id, the number of finished cases, and the number of cases.

    Raises:
        ManifestError: there is no such data set, or its folder is unknown.
    """
    problems: list[str] = []
    if isinstance(data, Manifest):
        manifest = data
    elif str(data) in list_manifests():
        manifest = read_manifest(str(data))
    else:
        manifest = describe_dataset(data, problems=problems)
    root = _root(manifest) if root is None else Path(root)
    if not root.is_dir():
        raise ManifestError(f"{root}: no such folder with the files of {manifest.name}; correct the path")
    tests = test_images(manifest, root)
    everything = replace(manifest, cases=(*manifest.cases, *tests))
    collected = collect_facts(everything, root, num_processes=num_processes, use_cache=use_cache, on_case=on_case)
    dataset = dataset_facts(manifest, root, [collected.cases[case] for case in manifest.case_ids], problems)
    dataset = replace(dataset, tests={case.id: collected.cases[case.id] for case in tests})
    return Examination(dataset, tuple(check_dataset(dataset)), collected.num_measured)


def dataset_facts(
    manifest: Manifest, root: Path, cases: Iterable[CaseFacts], problems: Iterable[str] = ()
) -> DatasetFacts:
    """Put the facts of the cases together; cases without any file are only counted.

    Args:
        manifest: the data set.
        root: its folder.
        cases: facts of its cases.
        problems: lines of `describe_dataset` about what it left out.
    """
    facts = list(cases)
    present = {one.case: one for one in facts if not all(file.is_missing for file in one.files)}
    absent = tuple(one.case for one in facts if one.case not in present)
    # A manifest that was made from the folder lists every case, and its problems name the other files.
    is_from_folder = manifest.path is not None and manifest.path.is_dir()
    unlisted = () if is_from_folder else tuple(_unlisted(manifest, root))
    return DatasetFacts(manifest, root, present, absent, unlisted, tuple(problems))


def _root(manifest: Manifest) -> Path:
    if manifest.folder is None:
        raise ManifestError(
            f"{manifest.name}: the folder with its files is unknown; give the folder, and this manifest with --manifest"
        )
    return manifest.folder


def _unlisted(manifest: Manifest, root: Path) -> Iterator[str]:
    """Yield the images in folders that several cases share and that belong to none of them."""
    used: dict[Path, set[str]] = defaultdict(set)
    cases_in: dict[Path, set[str]] = defaultdict(set)
    for case_id in manifest.case_ids:
        for path in (path for paths in manifest.paths(root, case_id).values() for path in paths):
            used[path.parent].add(path.name)
            cases_in[path.parent].add(case_id)
    for folder, names in sorted(used.items()):
        if not folder.is_dir() or (len(cases_in[folder]) < 2 <= len(manifest.cases)):
            continue
        endings = {suffix_of(name) for name in names}
        for file in sorted(folder.iterdir()):
            is_image = suffix_of(file) in endings and not file.name.startswith(".")
            if is_image and file.name not in names and file.is_file():
                yield file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file)


def _row(title: str, text: str, column: int, width: int) -> list[str]:
    """Return a row of two columns; a title that does not fit stands on lines of its own."""
    left = textwrap.wrap(title, width - 4) or [""]
    right = textwrap.wrap(text, width - column - 2)
    if len(left) == 1 and len(left[0]) <= column - 2:
        first = [f"  {left[0]:{column}}{right[0]}"]
        return first + [" " * (column + 2) + line for line in right[1:]]
    return [f"  {line}" for line in left] + [" " * 6 + line for line in textwrap.wrap(text, width - 6)]
