"""A finding about a data set, and the registry of the rules that find them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from medseg.datasets import Manifest
from medseg.datasets.case_facts import CaseFacts, FileFacts
from medseg.doctor.same_patient import PatientGroup, probable_patients

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One problem of one case, or of several cases together.

    Args:
        rule: name of the rule.
        severity: "error" if training or evaluation would fail or mislead; "warning" if a person should look at it;
            "note" if medseg copes with it, but other programs may not.
        cases: ids of the cases, the one to look at first; empty if it concerns the data set as a whole.
        found: what was found.
        expected: what was expected.
        advice: what to do.
        file: file it concerns, relative to the data set's folder; empty if it is not one file.
        at: voxel to look at; empty if there is no particular one.
        fix: name of the correction that `--fix` can make; empty if there is none.
    """

    rule: str
    severity: Severity
    cases: tuple[str, ...]
    found: str
    expected: str
    advice: str
    file: str = ""
    at: tuple[int, ...] = ()
    fix: str = ""

    @property
    def title(self) -> str:
        """The rule as a phrase: what is wrong."""
        return all_rules()[self.rule].title

    @property
    def subject(self) -> str:
        """The cases, shortened to three, or the file, or "data set"."""
        if not self.cases:
            return self.file or "data set"
        shown = ", ".join(self.cases[:3])
        return shown if len(self.cases) <= 3 else f"{shown} and {len(self.cases) - 3} more"

    def line(self) -> str:
        """Return the finding as one line."""
        subject = f"case {self.subject}" if len(self.cases) == 1 else self.subject
        file = f" ({self.file})" if self.file and self.cases else ""
        return f"{subject}{file}: {self.title}; found {self.found}, expected {self.expected}; {self.advice}"

    def to_json(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "rule": self.rule,
            "title": self.title,
            "severity": self.severity,
            "cases": list(self.cases),
            "file": self.file,
            "found": self.found,
            "expected": self.expected,
            "advice": self.advice,
            "at": list(self.at),
            "fix": self.fix,
        }


@dataclass(frozen=True)
class DatasetFacts:
    """Facts about a whole data set, for the rules.

    Args:
        manifest: the data set.
        root: its folder.
        cases: facts of the cases that have at least one file, by id.
        absent: ids of the cases of the manifest that have no file at all.
        unlisted: files in the folders of the data set that belong to no case, relative to `root`.
        problems: one line per file or case that was left out, because it does not fit the layout of the folder.
        tests: facts of the images without label maps in nnU-Net's or the Decathlon's `imagesTs`, by id.
    """

    manifest: Manifest
    root: Path
    cases: Mapping[str, CaseFacts]
    absent: tuple[str, ...] = ()
    unlisted: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    tests: Mapping[str, CaseFacts] = field(default_factory=dict)

    @cached_property
    def patients(self) -> dict[str, str]:
        """The declared patient of each case."""
        return {case.id: case.patient for case in self.manifest.cases}

    @cached_property
    def undeclared_patients(self) -> list[PatientGroup]:
        """Cases that probably come from one patient and that the manifest gives to several."""
        groups = probable_patients(self.cases)
        return [group for group in groups if len({self.patients[case] for case in group.cases}) > 1]

    @cached_property
    def name_of_value(self) -> dict[int, str]:
        """The name of the structure of each value in the label files, without the background and the ignored value."""
        names = {value: name for name, value in self.manifest.labels.items()}
        return {
            value: names[label]
            for value, label in self.manifest.label_of_value.items()
            if label not in (0, self.manifest.ignore_label) and label in names
        }

    def images(self, channel: int) -> dict[str, FileFacts]:
        """Return the readable images of one channel by case."""
        return {
            case: file
            for case, facts in self.cases.items()
            for file in facts.images
            if file.channel == channel and file.is_readable
        }

    @cached_property
    def labels(self) -> dict[str, FileFacts]:
        """The readable label maps of whole numbers, by case."""
        return {
            case: facts.label
            for case, facts in self.cases.items()
            if facts.label is not None
            and facts.label.is_readable
            and not facts.label.fractional
            and not facts.label.non_finite
        }

    @cached_property
    def volumes(self) -> dict[str, dict[str, int]]:
        """Voxels of each structure in each label map in which it was annotated: structure → case → number, may be 0."""
        counted: dict[str, dict[str, int]] = {name: {} for name in self.name_of_value.values()}
        annotated = {case.id: case.labels for case in self.manifest.cases}
        for case, label in self.labels.items():
            for value, name in self.name_of_value.items():
                if (names := annotated[case]) is not None and name not in names:
                    continue
                facts = label.values.get(value)
                counted[name][case] = counted[name].get(case, 0) + (facts.voxels if facts else 0)
        return counted


RuleFunction = Callable[[DatasetFacts], Iterable[Finding]]


@dataclass(frozen=True)
class Rule:
    """A check of a data set: a pure function of its facts.

    Args:
        name: name in findings and in JSON.
        title: what is wrong, as a phrase for messages.
        check: yields a finding per problem.
    """

    name: str
    title: str
    check: RuleFunction = field(repr=False)


_REGISTERED: dict[str, Rule] = {}


def rule(name: str, title: str) -> Callable[[RuleFunction], RuleFunction]:
    """Register a function as a rule."""

    def register(check: RuleFunction) -> RuleFunction:
        _REGISTERED[name] = Rule(name, title, check)
        return check

    return register


def all_rules() -> dict[str, Rule]:
    """Return every rule by name: about files, about outliers, about cases that share something; each as defined."""
    from medseg.doctor import file_rules, outlier_rules, sharing_rules  # importing a module registers its rules

    modules = [module.__name__ for module in (file_rules, outlier_rules, sharing_rules)]
    ordered = sorted(_REGISTERED.values(), key=lambda one: modules.index(one.check.__module__))
    return {one.name: one for one in ordered}


def check_dataset(dataset: DatasetFacts) -> list[Finding]:
    """Apply every rule; errors come first, then warnings, then notes."""
    findings = [finding for one in all_rules().values() for finding in one.check(dataset)]
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def counted(number: int, noun: str) -> str:
    """Return a number with its noun in singular or plural."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(share: float) -> str:
    """Format a share as a whole percentage, with one digit below 10 %."""
    return f"{100 * share:.1f} %" if share < 0.1 else f"{100 * share:.0f} %"


def listed(items: Iterable[object], most: int = 8) -> str:
    """Join at most so many items with commas, and count the rest."""
    texts = [str(item) for item in items]
    shown = ", ".join(texts[:most])
    return shown if len(texts) <= most else f"{shown} and {len(texts) - most} more"
