"""The command starts fast, because large packages are imported only when they are used."""

import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from cli.commands import write

import medseg

# What neither a prediction nor an evaluation of one NIfTI file needs.
NEVER_NEEDED = {
    "monai",
    "ignite",
    "pandas",
    "sklearn",
    "SimpleITK",
    "pydicom",
    "requests",
    "zarr",
    "ray",
    "tensorboard",
}
HEAVY = {"torch", "monai", "nibabel", "SimpleITK", "scipy", "numpy", "matplotlib"}


@pytest.mark.parametrize(
    "code",
    [
        "import medseg",
        "import medseg.cli",
        "import medseg; medseg.__version__, dir(medseg), medseg.MedsegError, medseg.Plan",
        "from medseg.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
    ],
)
def test_large_packages_are_not_imported_at_start(code):
    probe = f"{code}\nimport sys; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["predict"],
        ["evaluate"],
        ["train"],
        ["doctor"],
        ["plan"],
        ["demo"],
        ["data", "prepare"],
        ["bundle", "promote"],
    ],
)
def test_every_command_has_help_with_an_example(command, capsys):
    from medseg.cli import main

    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert not stop.value.code
    shown = capsys.readouterr().out
    assert "Usage" in shown
    if command and command != ["data"]:
        assert "Example: medseg" in shown


def exit_code_and_imports(arguments: list[object], unwanted: set[str]) -> list[str]:
    """Run a command in a new process; return its exit code and the unwanted modules that it has imported."""
    code = f"""
import sys
from medseg.cli import main
try:
    main({[str(each) for each in arguments]!r})
except SystemExit as stop:
    print(stop.code, *sorted({unwanted!r} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()


def test_evaluate_imports_little(tmp_path):
    label = np.zeros((9, 8, 7), np.uint8)
    label[2:6, 2:6, 2:6] = 1
    for folder, shift in (("predictions", 1), ("references", 0)):
        write(tmp_path / folder / "case.nii.gz", np.roll(label, shift, axis=0), np.diag([1.0, 1.5, 2.0, 1.0]))
    given = ["evaluate", tmp_path / "predictions", tmp_path / "references", "--out", tmp_path / "out"]
    unwanted = {"torch", "openvino", "scipy.stats", "scipy.optimize", "scipy.signal", "matplotlib", *NEVER_NEEDED}
    assert exit_code_and_imports(given, unwanted) == ["0"]
    assert (tmp_path / "out" / "report.html").is_file()


def test_predict_imports_torch_but_not_monai(tmp_path, bundle):
    array = np.random.default_rng(0).normal(size=(13, 12, 11)).astype(np.float32)
    scan = write(tmp_path / "case.nii.gz", array, np.diag([1.0, 1.5, 2.0, 1.0]))
    given = ["predict", bundle, scan, "--out", tmp_path / "out", "--backend", "torch", "--precision", "fp32"]
    unwanted = {
        "torch._dynamo", "torch._inductor", "sympy", "openvino", "yaml", "jinja2", "PIL", "medseg.datasets",
        "scipy.stats", "scipy.optimize", "scipy.signal", "scipy.spatial", "matplotlib", *NEVER_NEEDED,
    }  # fmt: skip
    assert exit_code_and_imports(given, unwanted) == ["0"]
    found = np.asarray(nib.load(tmp_path / "out" / "case.nii.gz").dataobj)
    # This process has imported MONAI, which the result must not depend on.
    np.testing.assert_array_equal(found, medseg.load(bundle, backend="torch").predict(scan).array)
    assert len(np.unique(found)) > 1


def test_evaluate_reports_wrong_paths_without_importing_torch(tmp_path):
    """Importing torch and MONAI takes seconds, so wrong paths are reported before that."""
    (tmp_path / "references").mkdir()
    given = ["evaluate", str(tmp_path / "nowhere"), str(tmp_path / "references"), "--out", str(tmp_path / "out")]
    code = f"""
import sys
from medseg.cli import main
try:
    main({given!r})
except SystemExit as stop:
    print(stop.code, *sorted({{"torch", "monai"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"]
    assert str(tmp_path / "references") in done.stderr
