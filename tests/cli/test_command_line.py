"""The command line: one line per error, output for people and for programs."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from cli.commands import run, write

from medseg import __version__
from medseg.cli.predict import write_volumes
from medseg.cli.running import INTERRUPTED
from medseg.cli.running import run as run_application
from medseg.inference import CaseResult
from medseg.plan import read_plan


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["predct"], ["'predct'", "'predict'", "medseg --help"]),
        (["predict", "b", "s", "--out", "o", "--precison", "fp32"], ["--precison", "did you mean --precision?"]),
        (["predict", "b", "s"], ["'--out'", "medseg predict --help"]),
        (["predict", "b", "s", "--out", "o", "--tta", "flips"], ["'--tta'", "'flips'", "'none', 'flip'"]),
        (["bundle", "verify"], ["'BUNDLE'", "medseg bundle verify --help"]),
    ],
)
def test_a_wrong_command_is_one_line(capsys, arguments, facts):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("medseg")
    assert err.count("\n") == 1
    assert [fact for fact in facts if fact not in err] == []


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], [], ["data"], ["predict", "-h"]])
def test_help_is_printed(capsys, arguments):
    code, out, err = run(capsys, *arguments)
    assert (code == 0) == bool({"-h", "--help"} & {*arguments})
    assert out.startswith("Usage: medseg")
    assert err == ""


def test_version(capsys):
    assert run(capsys, "--version") == (0, f"medseg {__version__}\n", "")


@pytest.mark.parametrize("command", [["predict", "{bundle}", "scan", "-o", "o"], ["bundle", "verify", "{bundle}"]])
def test_a_misspelt_bundle_is_reported_without_importing_torch(tmp_path, command):
    (tmp_path / "hippocampus_segmentation").mkdir()
    misspelt, expected = tmp_path / "hipocampus_segmentation", tmp_path / "hippocampus_segmentation"
    arguments = [word.format(bundle=misspelt) for word in command]
    program = (
        f"import sys\nfrom medseg.cli import main\ntry: main({arguments!r})\nfinally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "False\n")
    assert done.stderr.startswith(f"medseg: {misspelt}: ")
    assert done.stderr.endswith(f"did you mean {expected}?\n")


@pytest.mark.parametrize("command", [["predict", ".", "scan"], ["evaluate", "a", "b"], ["demo"]])
def test_an_output_folder_that_is_a_file_is_refused_first(capsys, tmp_path, command):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        code, _, err = run(capsys, *command, "--out", out)
        assert code == 1
        assert err.startswith(f"medseg: {tmp_path / 'file'}: ")
        assert err.count("\n") == 1


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root can write everywhere")
def test_an_output_folder_without_permission_is_refused_first(capsys, tmp_path):
    tmp_path.chmod(0o555)
    code, _, err = run(capsys, "predict", ".", "scan", "--out", tmp_path / "out")
    assert code == 1
    assert err.startswith(f"medseg: {tmp_path}: ")
    assert "Permission denied" in err


def test_an_error_of_the_operating_system_is_one_line(capsys, tmp_path):
    app = typer.Typer()

    @app.command()
    def read() -> None:
        (tmp_path / "absent").read_text()

    with pytest.raises(SystemExit) as stop:
        run_application(app, [])
    assert stop.value.code == 1
    err = capsys.readouterr().err
    assert err.startswith(f"medseg: {tmp_path / 'absent'}: No such file or directory")
    assert err.count("\n") == 1
    with pytest.raises(FileNotFoundError):
        run_application(app, ["--debug"])


def test_an_interrupt_is_one_line(capsys):
    app = typer.Typer()

    @app.command()
    def wait() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        run_application(app, [])
    assert stop.value.code == INTERRUPTED
    assert capsys.readouterr().err.count("\n") == 1


def test_each_case_is_printed_and_volumes_are_written_as_a_table(capsys, bundle, tmp_path):
    rng = np.random.default_rng(1)
    scans = [write(tmp_path / "scäns" / f"{name} 1.nii.gz", rng.normal(size=(9, 10, 11))) for name in "ab"]
    table = tmp_path / "tables" / "volumes.csv"
    missing = tmp_path / "absent.nii.gz"
    code, out, err = run(capsys, "predict", bundle, *scans, missing, "-o", tmp_path / "out", "--volumes", table)
    assert code == 1
    assert [line.split()[:2] for line in out.splitlines()] == [["done", "a"], ["done", "b"], ["failed", "absent"]]
    assert "1 of 3" in err
    assert str(tmp_path / "out") in err
    assert err.count("\n") == 1
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = read_plan(bundle / "configs" / "plan.json").label_names[1:]
    assert list(rows[0]) == ["case", "status", *(f"{name}_ml" for name in names), "output", "suspicions"]
    for row, scan in zip(rows, scans, strict=False):
        record = json.loads((tmp_path / "out" / f"{scan.name.split('.')[0]}.json").read_text())
        assert {name: float(row[f"{name}_ml"]) for name in names} == record["volumes_ml"]
    volumes = {f"{name}_ml": "" for name in names}
    assert rows[2] == {"case": "absent", "status": "failed", "output": "", "suspicions": "", **volumes}


def test_labels_can_be_those_of_a_bundle(capsys, bundle, tmp_path):
    labels = read_plan(bundle / "configs" / "plan.json").labels
    label_map = np.zeros((6, 6, 6), np.uint8)
    label_map[1:3], label_map[4:] = 1, 2
    write(tmp_path / "maps" / "a.nii.gz", label_map)
    for given in (bundle, bundle / "configs" / "plan.json"):
        code, out, _ = run(
            capsys, "evaluate", tmp_path / "maps", tmp_path / "maps", "-o", tmp_path / "e", "--labels", given, "--json",
            "--draws", 2000, "--no-images",
        )  # fmt: skip
        assert code == 0
        assert list(json.loads(out)["labels"]) == [name for name, value in labels.items() if value]


def test_shipped_manifests_are_listed(capsys):
    code, out, _ = run(capsys, "data", "list", "--json")
    assert code == 0
    assert [(row["name"], row["num_cases"]) for row in json.loads(out)] == [
        ("em_membrane", 30), ("hippocampus", 260), ("phantom_cells", 26),
    ]  # fmt: skip


def test_a_closed_pipe_gives_no_traceback():
    program = "import sys; sys.path.insert(0, '.'); from medseg.cli import main; main(['predict', '--help'])"
    command = f'"{sys.executable}" -c "{program}" | true'
    root = Path(__file__).parents[2]
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=root, env=os.environ, check=False)
    assert "Traceback" not in done.stderr


def test_a_table_that_cannot_be_written_is_refused_first(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    for table, wrong in ((tmp_path, tmp_path), (tmp_path / "file" / "v.csv", tmp_path / "file")):
        code, _, err = run(capsys, "predict", ".", "scan", "--out", tmp_path / "out", "--volumes", table)
        assert code == 1
        assert err.startswith(f"medseg: {wrong}: ")
        assert err.count("\n") == 1


def test_tables_fit_into_80_columns(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "80")
    rng = np.random.default_rng(2)
    for case in "abc":
        for folder in ("predictions", "references", "others"):
            write(tmp_path / folder / f"a_long_case_name_{case}.nii.gz", rng.integers(0, 3, (6, 7, 8)).astype(np.uint8))
    code, out, _ = run(
        capsys, "evaluate", tmp_path / "predictions", tmp_path / "references", "-o", tmp_path / "e", "--draws", 2000,
        "--against", tmp_path / "others", "--instances", "components", "--no-images",
    )  # fmt: skip
    assert code == 0
    table = [line for line in out.splitlines() if "report.html" not in line]
    assert max(map(len, table)) <= 80
    assert "…" not in out
    listed = run(capsys, "data", "list")[1]
    assert max(map(len, listed.splitlines())) <= 80
    assert "phantom_cells" in listed


def test_a_suspicious_result_fails_under_strict_alone(capsys, bundle, tmp_path):
    from bundle.tiny_bundles import add_fingerprint

    add_fingerprint(bundle, volume_ml=(100.0, 200.0))  # no structure of a small scan is that large
    scan = write(tmp_path / "scans" / "a.nii.gz", np.random.default_rng(1).normal(size=(9, 10, 11)))
    arguments = ("predict", bundle, scan, "-o", tmp_path / "out", "--volumes", tmp_path / "v.csv")
    code, out, err = run(capsys, *arguments)
    assert (code, out.split()[0]) == (0, "suspicious")
    code, out, err = run(capsys, *arguments, "--strict")  # the finished result stays suspicious
    assert (code, out.split()[0]) == (1, "skipped")
    assert "1 of 1" in err
    assert "ml in training" in (tmp_path / "v.csv").read_text() or "absent" in (tmp_path / "v.csv").read_text()


@pytest.mark.parametrize("value", ["left", "left=1,2", "=1,2,3", "left=1,2,x", "left=1,2,nan"])
def test_a_wrong_centre_of_a_region_is_quoted(capsys, bundle, tmp_path, value):
    code, _, err = run(capsys, "predict", bundle, tmp_path, "-o", tmp_path / "out", "--region-centre", value)
    assert code == 1
    assert "--region-centre" in err
    assert repr(value) in err


def test_a_report_of_all_scans_is_written_and_replaced(capsys, bundle, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        write(tmp_path / "scans" / f"{name}.nii.gz", rng.normal(size=(9, 8, 7)).astype(np.float32))
    (tmp_path / "scans" / "c.nii.gz").write_bytes(b"no image")
    arguments = ["predict", bundle, tmp_path / "scans", "--out", tmp_path / "out", "--report"]
    for _ in range(2):  # the second run skips what the first has finished
        code, out, err = run(capsys, *arguments)
        assert code == 1  # one scan failed
        page = tmp_path / "out" / "predictions.html"
        assert str(page) in out
        assert "c: no picture" in err
        assert page.read_text(encoding="utf-8").count("c.nii.gz") >= 1
    page.write_text("<title>notes</title>")
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (1, "")
    assert str(page) in err
    assert page.read_text() == "<title>notes</title>"


def test_intervals_are_columns_of_calibrated_bundles_only(tmp_path):
    given = CaseResult("x", "done", "x.nii.gz", volumes_ml={"a": 1.0, "b": 2.0}, intervals_ml={"a": [0.9, 1.2]})
    failed = CaseResult("y", "failed")
    write_volumes([given, failed], ["a", "b"], tmp_path / "plain.csv")
    write_volumes([given, failed], ["a", "b"], tmp_path / "calibrated.csv", ["a"])
    plain, calibrated = (list(csv.reader((tmp_path / f"{n}.csv").open())) for n in ("plain", "calibrated"))
    assert plain[:2] == [
        ["case", "status", "a_ml", "b_ml", "output", "suspicions"],
        ["x", "done", "1.0", "2.0", "x.nii.gz", ""],
    ]
    assert calibrated[0] == ["case", "status", "a_ml", "a_ml_low", "a_ml_high", "b_ml", "output", "suspicions"]
    assert calibrated[1][2:6] == ["1.0", "0.9", "1.2", "2.0"]
    assert calibrated[2] == ["y", "failed", "", "", "", "", "", ""]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have Unicode names only")
def test_names_that_are_not_unicode(capsys, bundle, tmp_path):
    for folder in ("scans", "labels"):
        path = write(tmp_path / folder / "x.nii.gz", np.ones((8, 8, 8), np.uint8 if folder == "labels" else np.float32))
        path.rename(path.with_name(os.fsdecode(b"\xff.nii.gz")))
    table = tmp_path / "v.csv"
    code, out, err = run(capsys, "predict", bundle, tmp_path / "scans", "-o", tmp_path / "out", "--volumes", table)
    assert (code, len(table.read_text().splitlines())) == (0, 2), err
    for options in ((), ("--json",)):
        labels = tmp_path / "labels"
        code, out, err = run(capsys, "evaluate", labels, labels, "-o", tmp_path / "e", "--draws", 2000, *options)
        assert code == 0, err
    assert json.loads(out)["num_cases"] == 1
    assert "\\udcff" in (tmp_path / "e" / "metrics.csv").read_text()
