"""`prepare_run`: folders are checked first, and a failed run ends with its cause."""

import random
import subprocess
import sys
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle.tiny_bundles import BUNDLES
from training.bundle_runs import command, environment, tiny_bundle

from medseg.errors import GeometryError, ManifestError, OptionError
from medseg.training import prepare_run, resolve_precision
from medseg.training.monai_run import ERROR_FILE, cause_in_words, show_one_line_errors

CONFIGS = BUNDLES / "phantom_cells_segmentation" / "configs"
RUN = ["/x/site-packages/monai/bundle/__main__.py", "run"]
FILES = ["--config_file", str(CONFIGS / "train.json"), "--meta_file", str(CONFIGS / "metadata.json")]


@pytest.mark.parametrize("arguments", [["/usr/bin/pytest", "--fodl"], [RUN[0], "verify_metadata", "--fodl"]])
def test_other_programs_are_left_alone(monkeypatch, arguments):
    monkeypatch.setattr(sys, "excepthook", hook := sys.excepthook)
    monkeypatch.setattr(warnings, "formatwarning", usual := warnings.formatwarning)
    monkeypatch.setattr(sys, "argv", arguments)
    prepare_run()
    assert (sys.excepthook, warnings.formatwarning) == (hook, usual)


def test_a_bundle_run_gets_one_line_warnings_and_errors(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", hook := sys.excepthook)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(sys, "argv", [*RUN, *FILES])
    prepare_run()
    assert sys.excepthook is not hook
    assert warnings.formatwarning("a case is left out", UserWarning, "x.py", 3) == "UserWarning: a case is left out\n"


def test_the_output_folder_is_checked_and_generators_are_seeded(tmp_path):
    draws = []
    for seed in (3, 3, 4):
        prepare_run(tmp_path / "new", seed)
        draws.append((random.random(), float(np.random.rand()), float(torch.rand(()))))  # noqa: NPY002
    assert draws[0] == draws[1]
    assert all(a != b for a, b in zip(draws[0], draws[2], strict=True))
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match=str(tmp_path / "file")):
        prepare_run(tmp_path / "file" / "run")
    torch.use_deterministic_algorithms(False)


def wrapped(*errors: Exception) -> Exception:
    """Wrap the first error as MONAI does: each further one is raised from the one before."""
    caught: Exception | None = None
    for error in errors:
        try:
            raise error from caught
        except Exception as raised:
            caught = raised
    assert caught is not None
    return caught


def test_the_outermost_error_of_medseg_is_the_cause():
    inner, outer = GeometryError("labels/a: shifted"), ManifestError("case a: labels/a: shifted")
    error = wrapped(ValueError("x"), inner, outer, RuntimeError("applying transform"), RuntimeError("Failed to"))
    assert cause_in_words(error) == ("case a: labels/a: shifted", True)


def test_an_exception_of_a_worker_process_is_found_in_its_traceback():
    error = RuntimeError(
        "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        "medseg.errors.ShapeError: scan.nii.gz must have the label map's shape\n\nThe above exception\nRuntimeError: no"
    )
    line, is_enough = cause_in_words(wrapped(error, RuntimeError("Failed")))
    assert line == "scan.nii.gz must have the label map's shape"
    assert is_enough


def test_a_full_disk_and_a_refused_value_need_no_traceback():
    full = OSError(28, "No space left on device", "run/events.out")
    line, is_enough = cause_in_words(wrapped(full, RuntimeError("Failed")))
    assert line.startswith("run/events.out: No space left on device")
    assert is_enough
    with pytest.raises(ValueError, match="fp99") as refused:
        resolve_precision("fp99", "cpu")
    assert cause_in_words(wrapped(refused.value, RuntimeError("Failed"))) == (str(refused.value), True)


def test_the_cause_goes_to_the_parent_that_asked_for_it(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv(ERROR_FILE, str(tmp_path / "errors"))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    show_one_line_errors()
    for name in "ab":  # of two processes
        error = ManifestError(f"case {name}: empty")
        sys.excepthook(ManifestError, error, None)
    assert (tmp_path / "errors").read_text() == "case a: empty\ncase b: empty\n"
    assert capsys.readouterr().err == ""


def test_any_other_exception_is_named_after_its_traceback():
    error = wrapped(KeyError("image"), RuntimeError("Failed to instantiate"))
    assert cause_in_words(error) == ("the cause: KeyError: 'image'", False)
    assert cause_in_words(wrapped(ValueError("not\nmedseg's")))[0] == "the cause: ValueError: not medseg's"


@pytest.mark.parametrize(
    ("message", "facts"),
    [
        (
            "[/pytorch/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:60133. GLHF!",
            ["another process"],
        ),
        ("DataLoader worker (pid 71) is killed by signal: Killed. ", ["worker (pid 71)", "Killed;", "--num_workers"]),
        (
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB",
            ["CUDA out of memory;", "--batch_size"],
        ),
        (
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)",
            ["allocate 4000000000000 bytes;", "--batch_size"],
        ),
    ],
)
def test_lost_processes_and_memory_are_named_with_a_remedy(message, facts):
    line, is_enough = cause_in_words(wrapped(RuntimeError(message), RuntimeError("Failed")))
    assert all(fact in line for fact in facts), line
    assert is_enough


def test_a_connection_that_a_worker_broke_is_no_full_disk():
    class Ended:
        def __len__(self):
            return 1

        def __getitem__(self, index):
            raise ConnectionResetError(104, "Connection reset by peer")

    with pytest.raises(ConnectionResetError) as raised:
        next(iter(torch.utils.data.DataLoader(Ended())))
    line, is_enough = cause_in_words(wrapped(raised.value, RuntimeError("Failed")))
    assert "worker process" in line
    assert is_enough
    elsewhere = cause_in_words(wrapped(ConnectionResetError(104, "Connection reset by peer")))
    assert not elsewhere[1]
    assert "ConnectionResetError" in elsewhere[0]


def test_a_suppressed_context_is_no_cause():
    error = wrapped(ManifestError("handled"), RuntimeError("another"))
    error.__cause__, error.__suppress_context__ = None, True
    assert cause_in_words(error) == ("the cause: RuntimeError: another", False)


def run_and_fail(arguments: list[str]) -> str:
    done = subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    return done.stderr.splitlines()[-1]


def test_a_run_on_a_damaged_case_ends_with_one_line(tmp_path):
    bundle = tiny_bundle(tmp_path)
    label = next((tmp_path / "data").glob("labels/*002*"))
    array = np.asanyarray(nib.load(label).dataobj).copy()
    array[0, 0, :3] = 7
    nib.save(nib.Nifti1Image(array, nib.load(label).affine), label)
    line = run_and_fail(command(bundle, tmp_path / "out"))
    assert line.startswith(f"medseg: case phantom_002: {label}: ")
    assert "7 (3 voxels)" in line
    assert not Path(tmp_path / "out" / "checkpoints").exists()
