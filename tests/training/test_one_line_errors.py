"""A bundle run that fails ends with the cause in one line."""

import subprocess
import sys
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from training.bundle_runs import command, environment, tiny_bundle

from medseg.errors import GeometryError, ManifestError
from medseg.training import one_line_errors, resolve_precision
from medseg.training.monai_run import cause_in_words


def wrapped(*errors: Exception) -> Exception:
    """What MONAI makes of the first: each further one raised from the one before."""
    caught: Exception | None = None
    for error in errors:
        try:
            raise error from caught
        except Exception as made:
            caught = made
    assert caught is not None
    return caught


def test_the_outermost_error_of_medseg_is_meant():
    inner, outer = GeometryError("labels/a: shifted"), ManifestError("case a: labels/a: shifted")
    error = wrapped(ValueError("x"), inner, outer, RuntimeError("applying transform"), RuntimeError("Failed to"))
    assert cause_in_words(error) == ("case a: labels/a: shifted", True)


def test_an_exception_of_a_worker_process_is_found_in_its_words():
    error = RuntimeError(
        "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        "medseg.errors.ShapeError: scan.nii.gz must have the label map's shape\n\nThe above exception\nRuntimeError: no"
    )
    assert cause_in_words(wrapped(error, RuntimeError("Failed"))) == (
        "scan.nii.gz must have the label map's shape",
        True,
    )


def test_a_full_disk_and_a_refused_value_need_no_traceback():
    full = OSError(28, "No space left on device", "run/events.out")
    assert cause_in_words(wrapped(full, RuntimeError("Failed"))) == (
        "run/events.out: No space left on device; check the folder, its permissions and its free space",
        True,
    )
    with pytest.raises(ValueError, match="fp99") as refused:
        resolve_precision("fp99", "cpu")
    line, is_enough = cause_in_words(wrapped(refused.value, RuntimeError("Failed")))
    assert line == "precision must be auto, fp32, bf16 or fp16, found 'fp99'"
    assert is_enough


def test_anything_else_is_named_behind_its_traceback():
    error = wrapped(KeyError("image"), RuntimeError("Failed to instantiate"))
    assert cause_in_words(error) == ("the cause: KeyError: 'image'", False)
    assert cause_in_words(wrapped(ValueError("not\nmedseg's")))[0] == "the cause: ValueError: not medseg's"


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (
            "[/pytorch/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:60133. GLHF!",
            "another process of this training has ended; its own message says why",
        ),
        (
            "DataLoader worker (pid 71) is killed by signal: Killed. ",
            "DataLoader worker (pid 71) is killed by signal: Killed; often for want of memory: try fewer --num_workers",
        ),
        (
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB",
            "CUDA out of memory; lower --batch_size, or the patch in plan.json",
        ),
        (
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)",
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000000 bytes; "
            "lower --batch_size, or the patch in plan.json",
        ),
    ],
)
def test_lost_processes_and_memory_are_named_with_a_way_out(said, line):
    assert cause_in_words(wrapped(RuntimeError(said), RuntimeError("Failed"))) == (line, True)


def test_a_connection_that_a_worker_broke_is_no_full_disk():
    class Ended:
        def __len__(self):
            return 1

        def __getitem__(self, index):
            raise ConnectionResetError(104, "Connection reset by peer")

    with pytest.raises(ConnectionResetError) as raised:
        next(iter(torch.utils.data.DataLoader(Ended())))
    line, is_enough = cause_in_words(wrapped(raised.value, RuntimeError("Failed")))
    assert line.startswith("a worker process has ended on the way")
    assert is_enough
    elsewhere = wrapped(ConnectionResetError(104, "Connection reset by peer"))
    assert cause_in_words(elsewhere) == ("the cause: ConnectionResetError: Connection reset by peer", False)


def test_a_suppressed_context_is_no_cause():
    error = wrapped(ManifestError("handled"), RuntimeError("another"))
    error.__cause__, error.__suppress_context__ = None, True
    assert cause_in_words(error) == ("the cause: RuntimeError: another", False)


def test_only_the_bundle_runner_is_changed(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", before := sys.excepthook)
    monkeypatch.setattr(warnings, "formatwarning", usual := warnings.formatwarning)
    one_line_errors(["/usr/bin/pytest"])
    assert (sys.excepthook, warnings.formatwarning) == (before, usual)
    one_line_errors(["/x/site-packages/monai/bundle/__main__.py", "run"])
    assert sys.excepthook is not before
    assert warnings.formatwarning("a case is left out", UserWarning, "x.py", 3) == "UserWarning: a case is left out\n"


def test_a_run_on_a_damaged_case_says_so_and_nothing_else(tmp_path):
    bundle = tiny_bundle(tmp_path)
    label = next((tmp_path / "data").glob("labels/*002*"))
    array = np.asanyarray(nib.load(label).dataobj).copy()
    array[0, 0, :3] = 7
    nib.save(nib.Nifti1Image(array, nib.load(label).affine), label)
    done = subprocess.run(
        command(bundle, tmp_path / "out"), env=environment(), capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"medseg: case phantom_002: {label}: label values 7 (3 voxels) are outside the manifest's 0, 1, 2; "
        "correct the label map, add them to labels, or name ignore_label"
    )
    assert "Traceback" not in done.stdout + done.stderr
    assert not Path(tmp_path / "out" / "checkpoints").exists()
