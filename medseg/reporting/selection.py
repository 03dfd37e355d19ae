"""Which cases can be opened in the viewer, and the names cases go by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

NUM_WORST = 12


def viewer_cases(summary: Mapping[str, Any], num_worst: int = NUM_WORST) -> list[str]:
    """The worst cases, worst first, then those at the percentiles of Dice that are not among them."""
    worst = [entry["case"] for entry in summary["cases"][:num_worst]]
    return list(dict.fromkeys([*worst, *summary["percentile_cases"].values()]))


@dataclass(frozen=True)
class Names:
    """What cases and patients are called on the page.

    Args:
        cases, patients: id → shown name; empty shows the ids themselves.
    """

    cases: Mapping[str, str] = field(default_factory=dict)
    patients: Mapping[str, str] = field(default_factory=dict)

    @property
    def are_hidden(self) -> bool:
        """Whether ids are replaced."""
        return bool(self.cases)

    def case(self, case: str) -> str:
        """The shown name of a case."""
        return self.cases.get(case, "a case" if self.are_hidden else case)

    def patient(self, patient: str) -> str:
        """The shown name of a patient."""
        return self.patients.get(patient, "a patient" if self.are_hidden else patient)


def numbered(cases: Sequence[str], patients: Sequence[str]) -> Names:
    """Numbers for names, in the order given, which must not be that of the ids."""
    return Names(
        {case: f"case {number:03d}" for number, case in enumerate(dict.fromkeys(cases), start=1)},
        {patient: f"patient {number:03d}" for number, patient in enumerate(dict.fromkeys(patients), start=1)},
    )
