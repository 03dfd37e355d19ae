"""Measure how well `medseg doctor` recognises cases of one patient, on the Decathlon's hippocampus data.

Cases 2k-1 and 2k are the two sides of one head (docs/hippocampus_pairs.md). The facts of the cases are renumbered to
make data sets of which the answer is known: with both sides, with one side per head, and with a part of the pairs.

    python benchmarks/patient_detector.py DATA        # the folder with images/ and labels/ of the hippocampus data
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from medseg.datasets import read_manifest
from medseg.datasets.case_facts import CaseFacts
from medseg.datasets.collect_facts import collect_facts
from medseg.datasets.manifest import Case
from medseg.doctor.same_patient import probable_patients

REPEATS = 20
Pair = tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with images/ and labels/ of the hippocampus data")
    facts = read_facts(parser.parse_args().data)
    heads: dict[int, list[int]] = {}
    for number in sorted(facts):
        heads.setdefault((number + 1) // 2, []).append(number)
    both = [sides for sides in heads.values() if len(sides) == 2]
    rng = random.Random(0)
    print(f"{len(facts)} cases, {len(heads)} heads, {len(both)} pairs\n")
    print(f"{'data set':44}{'sets':>5}{'pairs':>7}{'found':>7}{'wrong':>7}")

    own = {name(number): one for number, one in facts.items()}
    show("as published", [(own, {(name(a), name(b)) for a, b in both})])
    show("pairs (2k, 2k+1)", [numbered(facts, both, first=2)])
    for count in (10, 16, 20, 30):
        show(f"{count} pairs", [numbered(facts, rng.sample(both, count)) for _ in range(REPEATS)])
    for share in (0.5, 0.7, 0.9):
        show(f"{100 * share:.0f} % of the numbers are pairs", [mixed(facts, both, share, rng) for _ in range(REPEATS)])
    single = [[[rng.choice(sides)] for sides in heads.values()] for _ in range(REPEATS)]
    show("one side per head, in order", [numbered(facts, groups) for groups in single])
    shuffled = [rng.sample(groups, rng.choice((20, 40, 80, len(groups)))) for groups in single]
    show("one side per head, shuffled, 20 to 156 cases", [numbered(facts, groups) for groups in shuffled])
    show("both sides, numbers shuffled", [scattered(facts, both, rng) for _ in range(REPEATS)])


def read_facts(root: Path) -> dict[int, CaseFacts]:
    """Measure the cases that are present, by number."""
    manifest = read_manifest("hippocampus")
    present = [case for case in manifest.case_ids if (root / "images" / f"{case}.nii.gz").exists()]
    manifest = replace(manifest, cases=tuple(Case(case, case) for case in present), folds={}, test_fold=None)
    cases = collect_facts(manifest, root, use_cache=False).cases
    return {int(case.rpartition("_")[2]): facts for case, facts in cases.items()}


def numbered(
    facts: dict[int, CaseFacts], groups: Iterable[list[int]], first: int = 1
) -> tuple[dict[str, CaseFacts], set[Pair]]:
    """Give consecutive numbers to groups of cases; return the cases and the pairs in groups of two."""
    cases: dict[str, CaseFacts] = {}
    pairs = set()
    for group in groups:
        ids = tuple(name(first + len(cases) + position) for position in range(len(group)))
        cases |= {case: facts[number] for case, number in zip(ids, group, strict=True)}
        if len(ids) == 2:
            pairs.add(ids)
    return cases, pairs


def mixed(
    facts: dict[int, CaseFacts], both: list[list[int]], share: float, rng: random.Random
) -> tuple[dict[str, CaseFacts], set[Pair]]:
    """Keep a share of the pairs, and replace the second case of the others by one of another head."""
    order = rng.sample(both, len(both))
    num_kept = round(share * len(order))
    others = [sides[1] for sides in order[num_kept:]]
    groups = [(sides, True) for sides in order[:num_kept]]
    groups += [([a[0], b], False) for a, b in zip(order[num_kept:], others[1:] + others[:1], strict=True)]
    rng.shuffle(groups)
    cases, pairs = numbered(facts, [sides for sides, _ in groups])
    is_pair = dict(zip(sorted(pairs), [kept for _, kept in groups], strict=True))
    return cases, {pair for pair in pairs if is_pair[pair]}


def scattered(
    facts: dict[int, CaseFacts], both: list[list[int]], rng: random.Random
) -> tuple[dict[str, CaseFacts], set[Pair]]:
    """Give random numbers to all cases, so that the numbers of a pair say nothing."""
    order = rng.sample(sorted(facts), len(facts))
    cases, _ = numbered(facts, [[number] for number in order])
    new_name = dict(zip(order, cases, strict=True))
    return cases, {tuple(sorted((new_name[a], new_name[b]))) for a, b in both}


def name(number: int) -> str:
    """Return the name of a case."""
    return f"case_{number:03d}"


def show(title: str, sets: list[tuple[dict[str, CaseFacts], set[Pair]]]) -> None:
    """Print the numbers of true, found and wrong pairs, summed over the data sets of one kind."""
    found = [({group.cases for group in probable_patients(cases)}, pairs) for cases, pairs in sets]
    total = sum(len(pairs) for _, pairs in found)
    right = sum(len(groups & pairs) for groups, pairs in found)
    wrong = sum(len(groups - pairs) for groups, pairs in found)
    print(f"{title:44}{len(sets):5}{total:7}{right:7}{wrong:7}")


if __name__ == "__main__":
    main()
