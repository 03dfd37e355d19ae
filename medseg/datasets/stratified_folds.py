"""Divide cases into folds by patient so that every label is in every fold, as far as possible."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from medseg.datasets.manifest import Case

NUM_FOLDS = 5  # as in nnU-Net
_SEED = 12345  # as in nnU-Net


def stratified_folds(
    cases: Sequence[Case], labels: Mapping[str, Collection[int]], num_folds: int = NUM_FOLDS
) -> dict[int, list[str]]:
    """Return the validation cases of each fold.

    All cases of a patient are in one fold. Every label should be in as many cases of one fold as of another: this is
    the iterative stratification of Sechidis et al. 2011 (doi:10.1007/978-3-642-23808-6_10), with patients as samples
    and the number of their cases as weight. The result depends on the ids and the labels, not on the order of the
    cases.

    Args:
        cases: the cases.
        labels: values that are present in each case, by id.
        num_folds: number of folds; patients may be fewer.

    Returns:
        Sorted case ids by fold, from 0. There are no folds for a single patient.
    """
    of_patient: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        of_patient[case.patient].append(case.id)
    patients = sorted(of_patient)
    num_folds = min(num_folds, len(patients))
    if num_folds < 2:
        return {}
    np.random.RandomState(_SEED).shuffle(patients)  # neighbours in the list are often alike
    # A label stands beside the key None, of which every case has one, so that the folds also get equally many cases.
    counts = {
        patient: Counter(key for case in of_patient[patient] for key in (None, *labels.get(case, ())))
        for patient in patients
    }
    total = sum(counts.values(), Counter())
    wanted = {key: np.full(num_folds, count / num_folds) for key, count in total.items()}
    fold_of: dict[str, int] = {}
    while len(fold_of) < len(patients):
        left = [patient for patient in patients if patient not in fold_of]
        remaining = sum((counts[patient] for patient in left), Counter())
        rarest = min(remaining, key=lambda key: (remaining[key], key is None, key or 0))
        # Patients with many cases come first, while there is still room for them.
        for patient in sorted(left, key=lambda name: -counts[name][rarest]):
            if counts[patient][rarest]:
                fold = max(range(num_folds), key=lambda k: (wanted[rarest][k], wanted[None][k], -k))
                fold_of[patient] = fold
                for key, count in counts[patient].items():
                    wanted[key][fold] -= count
    folds = {k: sorted(case for p in patients if fold_of[p] == k for case in of_patient[p]) for k in range(num_folds)}
    return dict(enumerate(filter(None, folds.values())))
