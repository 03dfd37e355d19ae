"""The command starts fast, because large packages are imported only when they are used."""

import subprocess
import sys

import numpy as np
import pytest
from cli.commands import write

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


def test_evaluate_imports_neither_torch_nor_monai(tmp_path):
    label = np.zeros((9, 8, 7), np.uint8)
    label[2:6, 2:6, 2:6] = 1
    for folder in ("predictions", "references"):
        write(tmp_path / folder / "case.nii.gz", label, np.diag([1.0, 1.5, 2.0, 1.0]))
    given = ["evaluate", str(tmp_path / "predictions"), str(tmp_path / "references"), "--out", str(tmp_path / "out")]
    code = f"""
import sys
from medseg.cli import main
try:
    main({given!r})
except SystemExit as stop:
    print(stop.code, *sorted({{"torch", "monai", "ignite", "openvino"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0"
    assert (tmp_path / "out" / "report.html").is_file()


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
