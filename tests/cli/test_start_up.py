"""The command answers fast because nothing heavy is imported before it is needed."""

import subprocess
import sys

import pytest

HEAVY = {"torch", "monai", "nibabel", "SimpleITK", "scipy", "numpy", "matplotlib"}


@pytest.mark.parametrize(
    "code", ["import medseg", "import medseg.cli", "import medseg; medseg.__version__, dir(medseg)"]
)
def test_nothing_heavy_is_imported_early(code):
    probe = f"{code}\nimport sys; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_lazy_names_are_found():
    import medseg

    assert {"load", "load_network", "read_plan", "networks", "transforms"} <= set(dir(medseg))
    assert medseg.read_plan is medseg.plan.read_plan
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = medseg.nothing


@pytest.mark.parametrize(
    "command", [[], ["predict"], ["evaluate"], ["demo"], ["data", "prepare"], ["bundle", "promote"]]
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


def test_evaluate_answers_what_is_wrong_with_the_files_without_torch(tmp_path):
    """Typed before a coffee, refused before the coffee: torch and monai take seconds to import."""
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
    assert "no reference with an image suffix" in done.stderr
