"""Facts are kept between runs, measured again after changes, and the same for every number of processes."""

import dataclasses
import os

import numpy as np
import pytest
from doctor.data_sets import KillingManifest, change, image_file, label_file, names, write_data_set

from medseg.datasets import collect_facts as module
from medseg.datasets import read_manifest
from medseg.datasets.collect_facts import collect_facts


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSEG_CACHE_DIR", str(tmp_path / "cache"))
    return write_data_set(tmp_path / "livers", names(6))


def test_a_second_run_measures_nothing(folder):
    manifest = read_manifest(folder)
    seen = []
    first = collect_facts(manifest, folder, on_case=lambda *case: seen.append(case))
    second = collect_facts(manifest, folder)
    assert (first.num_measured, second.num_measured) == (6, 0)
    assert first.cases == second.cases
    assert seen[-1] == ("scan_006", 6, 6)
    assert collect_facts(manifest, folder, use_cache=False).num_measured == 6


def test_an_interrupted_run_continues(folder):
    manifest = read_manifest(folder)

    def stop(case, number, total):
        if number == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect_facts(manifest, folder, on_case=stop)
    assert collect_facts(manifest, folder).num_measured == 2


def test_a_line_that_a_crash_cut_short_is_measured_again(folder):
    manifest = read_manifest(folder)
    file = collect_facts(manifest, folder).cache_file
    content = file.read_bytes()
    file.write_bytes(content[: len(content) - 200])
    again = collect_facts(manifest, folder)
    assert again.num_measured == 1
    assert collect_facts(manifest, folder).num_measured == 0


def test_changed_files_are_measured_again_and_touched_ones_are_not(folder):
    manifest = read_manifest(folder)
    collect_facts(manifest, folder)
    os.utime(image_file(folder, "scan_002"), (1, 1))
    assert collect_facts(manifest, folder).num_measured == 0
    change(label_file(folder, "scan_003"), np.zeros_like)
    changed = collect_facts(manifest, folder)
    assert changed.num_measured == 1
    assert changed.cases["scan_003"].label.values == {}


def test_files_with_a_problem_are_read_every_time(folder):
    manifest = read_manifest(folder)
    content = image_file(folder, "scan_001").read_bytes()
    image_file(folder, "scan_001").write_bytes(content[:500])
    assert collect_facts(manifest, folder).cases["scan_001"].images[0].problem
    image_file(folder, "scan_001").write_bytes(content)
    again = collect_facts(manifest, folder)
    assert again.num_measured == 1
    assert not again.cases["scan_001"].images[0].problem


def test_the_cache_stays_small(folder):
    manifest = read_manifest(folder)
    for value in range(1, 20):
        change(label_file(folder, "scan_001"), lambda array, value=value: np.full_like(array, value))
        file = collect_facts(manifest, folder).cache_file
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 2 * 6
    assert collect_facts(manifest, folder).num_measured == 0


def test_processes_give_the_same_facts(folder):
    manifest = read_manifest(folder)
    alone = collect_facts(manifest, folder, use_cache=False)
    together = collect_facts(manifest, folder, use_cache=False, num_processes=2)
    assert together.num_processes == 2
    assert list(together.cases.items()) == list(alone.cases.items())


def test_the_number_of_processes_fits_cores_and_memory(folder, monkeypatch):
    manifest = read_manifest(folder)
    assert module._suitable_processes(manifest, folder, names(6)) == 1  # a small data set
    monkeypatch.setattr(module, "SMALL_DATASET_BYTES", 0)
    monkeypatch.setattr(module, "num_cores", lambda: 16)
    need = 16 * 18 * 14 * module.BYTES_PER_VOXEL + module.BYTES_PER_PROCESS
    monkeypatch.setattr(module, "available_bytes", lambda: int(3.5 * need / module.MEMORY_SHARE))
    assert module._suitable_processes(manifest, folder, names(6)) == 3
    monkeypatch.setattr(module, "available_bytes", lambda: 1)
    assert module._suitable_processes(manifest, folder, names(6)) == 1


def test_a_case_that_kills_its_process_does_not_stop_the_others(folder):
    manifest = read_manifest(folder)
    killing = KillingManifest(**{field.name: getattr(manifest, field.name) for field in dataclasses.fields(manifest)})
    collected = collect_facts(killing, folder, num_processes=2)
    problems = {case: [file.problem for file in facts.files] for case, facts in collected.cases.items()}
    assert list(problems) == names(6)
    assert all("killed" in problem and "scan_003" in problem for problem in problems.pop("scan_003"))
    assert not any(problem for of_case in problems.values() for problem in of_case)
    assert collect_facts(manifest, folder).num_measured == 1  # the others were kept
