"""Tests of the inputs, the ledger and the output folder of a cohort, without a cluster."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml
from cohort.conftest import write_scans

from medseg.cohort import Ledger, find_cohort
from medseg.cohort.cluster import WorkerResources
from medseg.cohort.output_folder import OutputFolder
from medseg.errors import MedsegError, OptionError

fsspec = pytest.importorskip("fsspec")


def test_every_kind_of_input_names_the_same_scans(tmp_path: Path) -> None:
    folder = write_scans(tmp_path / "scans", 3, 4)
    files = sorted(folder.iterdir())
    (tmp_path / "table.csv").write_text(
        "case,image,age\n" + "".join(f"{f.name[:6]},scans/{f.name},50\n" for f in files), encoding="utf-8"
    )
    manifest = {
        "schema_version": 1, "name": "scans", "spatial_dims": 3, "channels": [{"name": "t1", "modality": "MR"}],
        "labels": {"background": 0, "organ": 1}, "files": {"image": "scans/{case}.nii.gz", "label": "l/{case}.nii.gz"},
        "cases": [{"id": f.name[:6], "patient": f.name[:6]} for f in files],
    }  # fmt: skip
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(manifest), encoding="utf-8")
    expected = {f.name[:6]: (str(f),) for f in files}
    for given in (folder, f"{folder}/*.nii.gz", tmp_path / "table.csv", tmp_path / "data.yaml"):
        assert {case.name: case.paths for case in find_cohort([given])} == expected
    urls = {name: (f"file://{paths[0]}",) for name, paths in expected.items()}
    for given in (f"file://{folder}", f"file://{folder}/*.nii.gz", f"file://{folder}/case00.nii.gz"):
        found = {case.name: case.paths for case in find_cohort([given])}
        assert found == {name: urls[name] for name in found}
        assert len(found) == (1 if given.endswith("00.nii.gz") else 3)
    assert find_cohort([folder, tmp_path / "table.csv"]) == find_cohort([folder])


def test_channels_are_columns_of_a_table(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image_t1,image_t2\na.nii.gz,s3://b/a2.nii.gz\n", encoding="utf-8")
    (case,) = find_cohort([tmp_path / "t.csv"], 2)
    assert case.name == "a"
    assert case.paths == (f"{tmp_path}/a.nii.gz", "s3://b/a2.nii.gz")
    assert case.is_remote


@pytest.mark.parametrize(
    ("text", "fact"),
    [("case\na\n", "none"), ("image\n\nx.nii.gz\n", None), ("image,case\n,a\n", "line 2"), ("", "none")],
)
def test_a_bad_table_is_refused(tmp_path: Path, text: str, fact: str | None) -> None:
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    if fact is None:
        assert len(find_cohort([tmp_path / "t.csv"])) == 1
        return
    with pytest.raises(OptionError, match=fact):
        find_cohort([tmp_path / "t.csv"])


def test_two_scans_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_scans(tmp_path / folder, 1, 4)
    (tmp_path / "t.csv").write_text("image\na/case00.nii.gz\nb/case00.nii.gz\n", encoding="utf-8")
    with pytest.raises(MedsegError, match="case00"):
        find_cohort([tmp_path / "t.csv"])


def test_unknown_protocols_and_absent_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="nowhere://"):
        find_cohort(["nowhere://bucket/a.nii.gz"])
    with pytest.raises(OptionError, match=r"t\.csv"):
        find_cohort([tmp_path / "t.csv"])


def test_the_ledger_survives_a_line_cut_by_a_kill(tmp_path: Path) -> None:
    (case, other) = find_cohort([write_scans(tmp_path / "scans", 2, 4)])
    from medseg.cohort.ledger import input_state

    row = {"case": case.name, "status": "done", "settings": "s", "input": list(case.paths)}
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.add({**row, "input_state": input_state(case)})
    with (tmp_path / "ledger.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"case": "case01", "sta')
    read = Ledger(tmp_path / "ledger.jsonl")
    assert read.finished(case, "s") is not None
    assert read.finished(case, "other settings") is None
    assert read.finished(other, "s") is None
    read.add({**row, "case": other.name, "status": "failed"})
    assert len(Ledger(tmp_path / "ledger.jsonl").rows) == 2
    assert read.finished(other, "s") is None
    os.utime(case.paths[0], ns=(1, 1))
    assert read.finished(case, "s") is None  # the scan has changed


@pytest.mark.parametrize("place", ["folder", "memory://cohort-lock"])
def test_a_second_run_on_one_folder_is_refused(tmp_path: Path, place: str) -> None:
    place = str(tmp_path / "out") if place == "folder" else place
    first, second = OutputFolder(place), OutputFolder(place)
    with first.reserved("run1"):
        assert second.is_seen("run1")
        with pytest.raises(OptionError, match="writes into this folder"), second.reserved("run2"):
            pass
    with second.reserved("run2"):
        assert not first.is_seen("run1")


def test_the_lock_of_a_killed_run_on_a_remote_folder_expires() -> None:
    out = OutputFolder("memory://cohort-expired")
    old = {"run": "dead", "host": "h", "pid": 1, "renewed": 0.0}
    out.system.pipe_file(f"{out.root}/.cohort.json", json.dumps(old).encode())
    with out.reserved("new"):
        assert out.is_seen("new")


def test_uploaded_files_are_complete_and_the_record_comes_last(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(b"labels")
    (tmp_path / "a.json").write_text("{}", encoding="utf-8")
    out = OutputFolder(f"file://{tmp_path}/remote")
    out.check()
    source = tmp_path / "source"
    source.mkdir()
    for name in ("a.nii.gz", "a.json"):
        (tmp_path / name).rename(source / name)
    out.upload(source, "a.json")
    assert {file.name for file in (tmp_path / "remote").iterdir()} == {"a.nii.gz", "a.json"}
    labels, record = (tmp_path / "remote" / name for name in ("a.nii.gz", "a.json"))
    assert labels.stat().st_ctime_ns <= record.stat().st_ctime_ns


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        (WorkerResources(1), 8),
        (WorkerResources(3), 2),
        (WorkerResources(1, 0.5), 4),
        (WorkerResources(1, 0.0, 3_000_000_000), 5),
        (WorkerResources(9), 0),
        (WorkerResources(1, 3.0), 0),
    ],
)
def test_workers_that_fit_on_a_node(resources: WorkerResources, expected: int) -> None:
    assert resources.fitting({"CPU": 8.0, "GPU": 2.0, "memory": 16e9}) == expected


def test_resources_of_a_worker_are_checked() -> None:
    with pytest.raises(OptionError, match="found 0"):
        WorkerResources(0)
