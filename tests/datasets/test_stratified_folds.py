"""Folds by patient against brute force and the invariants of a partition."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from medseg.datasets.manifest import Case
from medseg.datasets.stratified_folds import stratified_folds


def spread(folds: dict[int, list[str]], labels: dict[str, set[int]], value: int) -> int:
    """Return by how many cases with a label the folds differ."""
    counts = [sum(value in labels[case] for case in ids) for ids in folds.values()]
    return max(counts) - min(counts)


@pytest.mark.parametrize("seed", range(20))
def test_folds_are_a_partition_by_patient_with_even_labels(seed: int) -> None:
    random = np.random.default_rng(seed)
    cases = [Case(f"c{n}", f"p{random.integers(40)}") for n in range(60)]
    labels = {case.id: {0} | {v for v, p in ((1, 0.9), (2, 0.5), (3, 0.1)) if random.random() < p} for case in cases}
    folds = stratified_folds(cases, labels)
    assert sorted(case for ids in folds.values() for case in ids) == sorted(case.id for case in cases)
    patient = {case.id: case.patient for case in cases}
    fold_of = {case: number for number, ids in folds.items() for case in ids}
    assert all(len({fold_of[c] for c in fold_of if patient[c] == name}) == 1 for name in set(patient.values()))
    for value in (2, 3):  # a patient's cases cannot be divided
        largest = max(sum(value in labels[c] for c in labels if patient[c] == name) for name in set(patient.values()))
        assert spread(folds, labels, value) <= 1 + largest
    assert max(map(len, folds.values())) - min(map(len, folds.values())) <= 5
    shuffled = [cases[i] for i in random.permutation(60)]
    assert stratified_folds(shuffled, labels) == folds


def test_a_rare_label_is_as_even_as_brute_force_allows() -> None:
    cases = [Case(f"c{n}", f"p{n // 2}") for n in range(12)]  # six patients with two cases each
    labels = {case.id: {0, 1} if n in (0, 1, 2, 4, 6) else {0} for n, case in enumerate(cases)}
    folds = stratified_folds(cases, labels, num_folds=3)
    best = min(
        max(counts) - min(counts)
        for assignment in product(range(3), repeat=6)
        for counts in [
            [sum(1 in labels[c.id] for n, c in enumerate(cases) if assignment[n // 2] == k) for k in range(3)]
        ]
        if all(assignment.count(k) == 2 for k in range(3))
    )
    assert spread(folds, labels, 1) == best
    assert [len(ids) for ids in folds.values()] == [4, 4, 4]


@pytest.mark.parametrize(("num_patients", "num_folds"), [(1, 0), (2, 2), (3, 3), (5, 5), (7, 5)])
def test_there_are_as_many_folds_as_patients_at_most(num_patients: int, num_folds: int) -> None:
    cases = [Case(f"c{n}", f"p{n % num_patients}") for n in range(14)]
    assert len(stratified_folds(cases, {})) == num_folds
