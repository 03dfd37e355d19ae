"""With --json, stdout holds one JSON document in every case: success, bad input, bad option, defect, Ctrl-C."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli.commands import run, write
from cli.test_errors import dataset, scan_truncated

from medseg.errors import MedsegError

NOT_JSON = b"\x00 no JSON {"


def parsed(out: str) -> Any:
    """Parse strictly: NaN and Infinity are not JSON, and nothing may stand before or after the document."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    return json.loads(out, parse_constant=refuse)


@pytest.fixture
def files(bundle: Path, tmp_path: Path) -> Path:
    """Return a folder with a good and a bad file of every kind that a command takes."""
    rng = np.random.default_rng(0)
    shutil.copytree(bundle, tmp_path / "bundle")
    for name in ("scans/a", "scans/b"):
        write(tmp_path / f"{name}.nii.gz", rng.normal(size=(9, 10, 11)).astype(np.float32))
    for name in ("labels/a", "labels/b", "one/a"):
        write(tmp_path / f"{name}.nii.gz", rng.integers(0, 3, (9, 10, 11)).astype(np.uint8))
    write(tmp_path / "shifted/a.nii.gz", np.ones((9, 10, 12), np.uint8))
    write(tmp_path / "shifted/b.nii.gz", np.ones((9, 10, 12), np.uint8))
    write(tmp_path / "zeros/a.nii.gz", np.zeros((9, 10, 11), np.uint8))
    write(tmp_path / "zeros/b.nii.gz", np.zeros((9, 10, 11), np.uint8))
    dataset(tmp_path / "good")
    dataset(tmp_path / "wrong", label_b=np.full((6, 6, 6), 9, np.uint8))
    (tmp_path / "bad").mkdir()
    scan_truncated(tmp_path / "bad")
    (tmp_path / "file").write_bytes(NOT_JSON)
    for name in ("no_plan", "no_weights", "altered"):
        shutil.copytree(bundle, tmp_path / name)
    (tmp_path / "no_plan" / "configs" / "plan.json").write_bytes(NOT_JSON)
    (tmp_path / "no_weights" / "models" / "model.pt").unlink()
    (tmp_path / "altered" / "models" / "model.pt").write_bytes(NOT_JSON)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.pt").write_bytes(NOT_JSON)
    (tmp_path / "run" / "training.json").write_bytes(NOT_JSON)
    return tmp_path


PREDICT = "predict {}/bundle {}/scans --out {}/out"
EVALUATE = "evaluate {}/labels {}/labels --out {}/out --draws 2000 --no-images"
PREPARE = "data prepare {}/good/two_cases.yaml --root {}/prepared --from {}/good/data"
VERIFY, PROMOTE = "bundle verify {}/bundle", "bundle promote {}/bundle --from {}/run"
SUCCEED = [
    PREDICT,
    f"{PREDICT} --uncertainty --save-probabilities --volumes {{}}/v.csv",
    EVALUATE,
    PREPARE,
    "data list",
    VERIFY,
]
# The result says what failed.
REPORTED = [
    "predict {}/bundle {}/scans {}/bad --out {}/out",
    "predict {}/bundle {}/bad --out {}/out",
    "predict {}/bundle {}/absent.nii.gz --out {}/out",
    "data prepare {}/wrong/two_cases.yaml --root {}/prepared --from {}/wrong/data",
    "predict {}/bundle {}/absent --out {}/out",
    f"{PREDICT} --max-ram 1MB",
    "bundle verify {}/no_plan",
    "bundle verify {}/altered",
    "bundle verify {}/no_weights",
]
FAIL = [
    "predict {}/absent {}/scans --out {}/out",
    "predict {}/file {}/scans --out {}/out",
    "predict {}/no_plan {}/scans --out {}/out",
    "predict {}/no_weights {}/scans --out {}/out",
    "predict {}/altered {}/scans --out {}/out",
    "predict {}/bundle {}/absent/*.nii --out {}/out",
    "predict {}/bundle  --out {}/out",
    "predict {}/bundle {}/scans",
    "predict {}/bundle {}/scans --out {}/file",
    "predict {}/bundle {}/scans --out {}/scans",
    f"{PREDICT} --weights {{}}/absent.pt",
    f"{PREDICT} --weights {{}}/file",
    f"{PREDICT} --overlap 2",
    f"{PREDICT} --overlap much",
    f"{PREDICT} --device gpu9",
    f"{PREDICT} --max-ram much",
    f"{PREDICT} --tta flop",
    f"{PREDICT} --format xyz",
    f"{PREDICT} --format dicom-seg",
    f"{PREDICT} --volumes {{}}/scans",
    f"{PREDICT} --region-centre left=1",
    f"{PREDICT} --region-centre left=1,2,3",
    f"{PREDICT} --fold 1",
    f"{PREDICT} --backend",
    "evaluate {}/absent {}/labels --out {}/out",
    "evaluate {}/labels {}/absent --out {}/out",
    "evaluate {}/bad {}/labels --out {}/out",
    "evaluate {}/one {}/labels --out {}/out",
    "evaluate {}/shifted {}/labels --out {}/out",
    "evaluate {}/zeros {}/zeros --out {}/out",
    "evaluate {}/bad {}/bad --out {}/out --allow-missing",
    "evaluate {}/labels {}/labels --out {}/file",
    f"{EVALUATE} --labels {{}}/file",
    f"{EVALUATE} --labels absent",
    f"{EVALUATE} --labels {{}}/no_plan",
    f"{EVALUATE} --against {{}}/absent",
    f"{EVALUATE} --against {{}}/file",
    f"{EVALUATE} --images {{}}/absent",
    f"{EVALUATE} --instances all",
    f"{EVALUATE} --instances em",
    f"{EVALUATE} --tolerance-mm=-1",
    f"{EVALUATE} --draws 10",
    f"{EVALUATE} --seed=-1",
    "data prepare absent --root {}/prepared",
    "data prepare {}/file --root {}/prepared",
    "data prepare {}/good/two_cases.yaml --root {}/prepared",
    "data prepare {}/good/two_cases.yaml --root {}/file --from {}/good/data",
    "data prepare {}/good/two_cases.yaml --root {}/prepared --from {}/absent",
    "data prepare {}/good/two_cases.yaml --root {}/prepared --from {}/bad",
    "data prepare",
    "data list now",
    "bundle verify {}/absent",
    "bundle verify",
    PROMOTE,
    "bundle promote {}/bundle --from {}/absent",
    "bundle promote {}/absent --from {}/run",
    "bundle promote {}/bundle",
    "bundle promote {}/bundle --from {}/run --data {}/absent",
    "bundle",
    "bundel verify",
]  # fmt: skip


def words(command: str, folder: Path) -> list[str]:
    return [word.replace("{}", str(folder)) for word in command.split()]


@pytest.mark.parametrize("command", SUCCEED)
def test_a_result_is_json(capsys, files, command):
    code, out, err = run(capsys, *words(command, files), "--json")
    assert code == 0, err
    assert "error" not in parsed(out)


@pytest.mark.parametrize("command", REPORTED)
def test_a_result_with_failures_is_one_document(capsys, files, command):
    code, out, err = run(capsys, *words(command, files), "--json")
    assert code == 1
    assert not isinstance(parsed(out), dict) or "error" not in parsed(out)
    assert err.splitlines()[-1].startswith("medseg: ")
    assert "Traceback" not in err


def test_every_bad_input_is_json(capsys, files):
    outcomes = {}
    for command in FAIL:
        code, out, err = run(capsys, *words(command, files), "--json")
        try:
            document = parsed(out)
            is_reported = isinstance(document, dict) and list(document) == ["error"] and bool(document["error"])
        except ValueError:
            is_reported = False
        outcomes[command] = (code in (1, 2) and is_reported and "Traceback" not in err) or (code, out, err)
    assert [(command, outcome) for command, outcome in outcomes.items() if outcome is not True] == []


@pytest.mark.parametrize(
    ("command", "function"),
    [
        (PREDICT, "medseg.inference.predict_files.find_cases"),
        (EVALUATE, "medseg.evaluation.run.score_cases"),
        (EVALUATE, "medseg.reporting.report.find_images"),
        (PREPARE, "medseg.datasets.prepare.read_manifest"),
        (VERIFY, "medseg.bundle.verify.BundleFolder"),
        (PROMOTE, "medseg.bundle.promote.BundleFolder"),
    ],
)
@pytest.mark.parametrize("kind", [KeyError, MedsegError, PermissionError, KeyboardInterrupt])
def test_whatever_is_raised_is_json(capsys, files, monkeypatch, command, function, kind):
    def fail(*_: object, **__: object) -> None:
        raise kind("a reason")

    module, _, name = function.rpartition(".")
    monkeypatch.setattr(import_module(module), name, fail)
    arguments = words(command, files)
    if "report" in function:
        arguments.remove("--no-images")
    call: Callable[[], Any] = lambda: run(capsys, *arguments, "--json")  # noqa: E731
    if kind is KeyError:  # a defect keeps its traceback
        with pytest.raises(KeyError):
            call()
        out = capsys.readouterr().out
    else:
        code, out, err = call()
        assert code == (130 if kind is KeyboardInterrupt else 1)
        assert len(err.strip().splitlines()) == 1
    assert list(parsed(out)) == ["error"]
    assert "reason" in out or kind is KeyboardInterrupt
