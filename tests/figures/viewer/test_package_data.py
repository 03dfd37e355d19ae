"""Files that the installed package needs beside its Python files are listed in pyproject.toml."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

import medseg
from medseg.figures import viewer
from medseg.reporting import predictions, report

ROOT = Path(__file__).parents[3]
SCRIPTS = {*viewer.SCRIPTS, *report.SCRIPTS, *predictions.SCRIPTS}
TEMPLATES = {
    "base.html", "report.html", "header.html", "sections.html", "macros.html", "predictions.html",
    "predictions_header.html", "page.html", "cell.html",
}  # fmt: skip
STYLES = {"viewer.css", "report.css"}


def test_every_script_style_and_template_is_package_data() -> None:
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("the tests do not lie beside pyproject.toml")
    globs = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    package = Path(medseg.__file__).parent
    shipped = {path for name, of in globs.items() for glob in of for path in _folder(package, name).glob(glob)}
    needed = [path for part in ("figures", "reporting") for path in (package / part).rglob("*") if path.is_file()]
    needed = [path for path in needed if path.suffix != ".py" and "__pycache__" not in path.parts]
    names = {path.name for path in needed}
    assert SCRIPTS | TEMPLATES | STYLES | {"theme.js"} == names
    assert [path for path in needed if path not in shipped] == []


def _folder(package: Path, name: str) -> Path:
    """Return the folder of a package."""
    return package.joinpath(*name.split(".")[1:])
