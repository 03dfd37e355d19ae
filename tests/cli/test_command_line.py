"""What is typed wrong is one line; what is typed right can be read by people and scripts."""

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
from medseg.cli.running import INTERRUPTED
from medseg.cli.running import run as run_application
from medseg.plan import read_plan


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["predct"], "medseg: no such command 'predct'. Did you mean 'predict'? (see medseg --help)"),
        (
            ["predict", "b", "s", "--out", "o", "--precison", "fp32"],
            "medseg predict: no such option --precison; did you mean --precision? (see medseg predict --help)",
        ),
        (["predict", "b", "s"], "medseg predict: missing option '--out' / '-o' (see medseg predict --help)"),
        (
            ["predict", "b", "s", "--out", "o", "--tta", "flips"],
            "medseg predict: invalid value for '--tta': 'flips' is not one of 'none', 'flip' "
            "(see medseg predict --help)",
        ),
        (
            ["bundle", "verify"],
            "medseg bundle verify: missing argument 'BUNDLE' (see medseg bundle verify --help)",
        ),
    ],
)
def test_a_misspelt_command_is_one_line(capsys, arguments, line):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err == line + "\n"


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], [], ["data"], ["predict", "-h"]])
def test_help_is_there_for_whoever_asks(capsys, arguments):
    code, out, err = run(capsys, *arguments)
    assert (code == 0) == bool({"-h", "--help"} & {*arguments})
    assert out.startswith("Usage: medseg")
    assert err == ""


def test_version(capsys):
    assert run(capsys, "--version") == (0, f"medseg {__version__}\n", "")


@pytest.mark.parametrize("command", [["predict", "{bundle}", "scan", "-o", "o"], ["bundle", "verify", "{bundle}"]])
def test_a_misspelt_bundle_is_answered_without_torch(tmp_path, command):
    (tmp_path / "hippocampus_segmentation").mkdir()
    misspelt, expected = tmp_path / "hipocampus_segmentation", tmp_path / "hippocampus_segmentation"
    arguments = [word.format(bundle=misspelt) for word in command]
    program = (
        f"import sys\nfrom medseg.cli import main\ntry: main({arguments!r})\nfinally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "False\n")
    assert done.stderr == f"medseg: {misspelt}: no such bundle folder; did you mean {expected}?\n"


@pytest.mark.parametrize("command", [["predict", ".", "scan"], ["evaluate", "a", "b"], ["demo"]])
def test_a_file_where_a_folder_is_meant_stops_before_any_work(capsys, tmp_path, command):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        code, _, err = run(capsys, *command, "--out", out)
        assert (code, err) == (
            1,
            f"medseg: {tmp_path / 'file'}: a file where the output folder should be; choose another folder\n",
        )


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_stops_before_any_work(capsys, tmp_path):
    tmp_path.chmod(0o555)
    code, _, err = run(capsys, "predict", ".", "scan", "--out", tmp_path / "out")
    assert code == 1
    assert err.startswith(f"medseg: {tmp_path}: may not be written to (Permission denied); ")


def test_an_error_of_the_system_is_one_line(capsys, tmp_path):
    app = typer.Typer()

    @app.command()
    def reads() -> None:
        (tmp_path / "absent").read_text()

    with pytest.raises(SystemExit) as stop:
        run_application(app, [])
    assert stop.value.code == 1
    assert capsys.readouterr().err == (
        f"medseg: {tmp_path / 'absent'}: No such file or directory; check the path and its permissions\n"
    )
    with pytest.raises(FileNotFoundError):
        run_application(app, ["--debug"])


def test_an_interrupt_is_one_line(capsys):
    app = typer.Typer()

    @app.command()
    def waits() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        run_application(app, [])
    assert stop.value.code == INTERRUPTED
    assert capsys.readouterr().err == "medseg: interrupted; what is finished is kept\n"


def test_each_case_is_said_when_it_is_done_and_volumes_become_a_table(capsys, bundle, tmp_path):
    rng = np.random.default_rng(1)
    scans = [write(tmp_path / "scäns" / f"{name} 1.nii.gz", rng.normal(size=(9, 10, 11))) for name in "ab"]
    table = tmp_path / "tables" / "volumes.csv"
    missing = tmp_path / "absent.nii.gz"
    code, out, err = run(capsys, "predict", bundle, *scans, missing, "-o", tmp_path / "out", "--volumes", table)
    assert code == 1
    assert [line.split()[:2] for line in out.splitlines()] == [["done", "a"], ["done", "b"], ["failed", "absent"]]
    assert err == f"medseg: 1 of 3 scans failed; the others are in {tmp_path / 'out'}\n"
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = read_plan(bundle / "configs" / "plan.json").label_names[1:]
    assert list(rows[0]) == ["case", "status", *(f"{name}_ml" for name in names), "output"]
    for row, scan in zip(rows, scans, strict=False):
        record = json.loads((tmp_path / "out" / f"{scan.name.split('.')[0]}.json").read_text())
        assert {name: float(row[f"{name}_ml"]) for name in names} == record["volumes_ml"]
    assert rows[2] == {"case": "absent", "status": "failed", "output": "", **{f"{name}_ml": "" for name in names}}


def test_labels_may_be_those_of_a_bundle(capsys, bundle, tmp_path):
    labels = read_plan(bundle / "configs" / "plan.json").labels
    map_of = np.zeros((6, 6, 6), np.uint8)
    map_of[1:3], map_of[4:] = 1, 2
    write(tmp_path / "maps" / "a.nii.gz", map_of)
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


def test_a_closed_pipe_is_no_traceback():
    program = "import sys; sys.path.insert(0, '.'); from medseg.cli import main; main(['predict', '--help'])"
    command = f'"{sys.executable}" -c "{program}" | true'
    root = Path(__file__).parents[2]
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=root, env=os.environ, check=False)
    assert "Traceback" not in done.stderr


def test_a_table_that_cannot_be_written_stops_before_any_work(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    for table, said in (
        (tmp_path, f"{tmp_path}: a folder, but --volumes names a file; add a file name"),
        (tmp_path / "file" / "v.csv", f"{tmp_path / 'file'}: a file where the output folder should be; choose another"),
    ):
        code, _, err = run(capsys, "predict", ".", "scan", "--out", tmp_path / "out", "--volumes", table)
        assert code == 1
        assert err.startswith(f"medseg: {said}")
