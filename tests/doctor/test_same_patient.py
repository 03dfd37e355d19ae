"""Pairs of one patient are recognised by number, name and header; single patients give no alarm."""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medseg.datasets import read_manifest
from medseg.datasets.case_facts import CaseFacts, FileFacts
from medseg.datasets.collect_facts import collect_facts
from medseg.datasets.manifest import Case, FilePatterns
from medseg.datasets.measure_case import measure_case
from medseg.doctor.same_patient import neighbouring_slices, probable_patients


@pytest.fixture(scope="module")
def hippocampi(shared_data) -> dict[int, CaseFacts]:
    """Return the facts of the hippocampus cases by number."""
    manifest, root = read_manifest("hippocampus"), shared_data / "hippocampus"
    present = [case for case in manifest.case_ids if Path(root, "images", f"{case}.nii.gz").exists()]
    manifest = replace(manifest, cases=tuple(Case(case, case) for case in present), folds={}, test_fold=None)
    return {int(case[-3:]): facts for case, facts in collect_facts(manifest, root).cases.items()}


def renumbered(facts: dict[int, CaseFacts], order: list[int], first: int) -> dict[str, CaseFacts]:
    """Give consecutive numbers to cases in a new order."""
    ids = [f"case_{first + position:03d}" for position in range(len(order))]
    return {case: replace(facts[number], case=case) for case, number in zip(ids, order, strict=True)}


@pytest.mark.data
def test_the_two_sides_of_every_head_are_found(hippocampi):
    """docs/hippocampus_pairs.md shows that cases 2k−1 and 2k are one head; 52 pairs are in folds 1 to 4."""
    expected = {(n, n + 1) for n in hippocampi if n % 2 and n + 1 in hippocampi}
    groups = probable_patients({f"case_{number:03d}": facts for number, facts in hippocampi.items()})
    assert {tuple(int(case[-3:]) for case in group.cases) for group in groups} == expected
    assert len(expected) == 52


@pytest.mark.data
@pytest.mark.parametrize("seed", range(2))
def test_one_side_per_head_gives_no_alarm(hippocampi, seed):
    rng = random.Random(seed)
    heads: dict[int, list[int]] = {}
    for number in sorted(hippocampi):
        heads.setdefault((number + 1) // 2, []).append(number)
    order = [rng.choice(sides) for sides in heads.values()]
    if seed:
        rng.shuffle(order)
    assert probable_patients(renumbered(hippocampi, order, 1)) == []


@pytest.mark.data
def test_pairs_may_begin_at_an_even_number(hippocampi):
    order = [number for n in hippocampi if n % 2 and n + 1 in hippocampi for number in (n, n + 1)]
    groups = probable_patients(renumbered(hippocampi, order, 2))
    assert len(groups) == 52
    assert groups[0].cases == ("case_002", "case_003")


@pytest.mark.data
def test_slices_of_one_stack_are_told_from_a_series_of_heads(hippocampi, shared_data):
    slices = read_manifest("em_membrane")
    facts = collect_facts(slices, shared_data / "em_membrane").cases
    present = {case: one for case, one in facts.items() if one.images[0].is_readable}
    (series,) = neighbouring_slices(present)
    assert len(series.cases) == 24
    heads = {(number + 1) // 2: number for number in hippocampi}
    assert neighbouring_slices(renumbered(hippocampi, sorted(heads.values()), 1)) == []
    assert neighbouring_slices({f"case_{number:03d}": one for number, one in hippocampi.items()}) == []


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["sub-01_ses-1_T1w", "sub-01_ses-2_T1w", "sub-02_ses-1_T1w"], [("sub-01_ses-1_T1w", "sub-01_ses-2_T1w")]),
        (["patient001_frame01", "patient001_frame12", "patient002_frame01"],
         [("patient001_frame01", "patient001_frame12")]),
        (["liver_002a", "liver_002b", "liver_003a"], [("liver_002a", "liver_002b")]),
        (["P01_L", "P01_R", "P02_L", "P03_R"], [("P01_L", "P01_R")]),
        ([f"case_{n:03d}" for n in range(30)], []),
        ([f"BraTS20_Training_{n:03d}" for n in range(30)], []),
        ([f"site{site}_{n:03d}" for site in (1, 2, 3) for n in range(20)], []),
        (["liver", "spleen", "kidney"], []),
    ],
)  # fmt: skip
def test_names_of_one_patient(ids, expected):
    facts = {case: CaseFacts(case, ()) for case in ids}
    assert [group.cases for group in probable_patients(facts)] == expected


def test_identifiers_of_dicom_headers():
    def facts(case, **header):
        return CaseFacts(case, (FileFacts("image", 0, case, header=header),))

    cases = [facts("x", PatientID="a"), facts("y", PatientID="b"), facts("z", PatientID="a"), facts("w")]
    groups = probable_patients({one.case: one for one in cases})
    assert [group.cases for group in groups] == [("x", "z")]
    assert "patient ID" in groups[0].evidence
    anonymised = [facts(case, PatientID="same", StudyInstanceUID=case) for case in "xyz"]
    assert probable_patients({one.case: one for one in anonymised}) == []


@pytest.mark.data
def test_identifiers_of_a_dicom_series_are_hashed(shared_data, tmp_path):
    from pydicom import dcmread

    for file in sorted((shared_data / "ct_abdomen" / "dicom_series").iterdir()):
        content = dcmread(file)
        content.PatientID = "patient 4711"
        (tmp_path / "series").mkdir(exist_ok=True)
        content.save_as(tmp_path / "series" / file.name)
    manifest = replace(
        read_manifest("em_membrane"), spatial_dims=3, cases=(Case("series", "one"),), folds={}, test_fold=None,
        files=FilePatterns(("{case}",), "{case}.nii.gz"),
    )  # fmt: skip
    found = measure_case(manifest, tmp_path, "series").images[0]
    assert found.format == "dicom"
    assert len(found.header["PatientID"]) == 16
    assert "4711" not in json.dumps(found.header)


def test_scans_that_are_tilted_alike_come_from_one_session(tmp_path):
    from doctor.data_sets import image_file, label_file, move, names, write_data_set

    from medseg.doctor import examine

    folder = write_data_set(tmp_path / "heads", names(6))
    for number, case in enumerate(names(6)):
        angle = 0.1 + 0.01 * (number if number != 4 else 1)
        turn = np.eye(4)
        turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        for path in (image_file(folder, case), label_file(folder, case)):
            move(path, lambda affine, turn=turn: turn @ affine)
    groups = [finding for finding in examine(folder, use_cache=False).findings if finding.rule == "same-patient"]
    assert [group.cases for group in groups] == [("scan_002", "scan_005")]
    assert "tilted" in groups[0].found
