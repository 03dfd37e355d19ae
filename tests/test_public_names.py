"""The public names exist at run time, and editors and type checkers see them."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import medseg

REPOSITORY = Path(__file__).parents[1]
SUBPACKAGES = [name for name in medseg.__all__ if isinstance(getattr(medseg, name), ModuleType)]


def static_imports() -> dict[str, str]:
    """Return the module of each name that `medseg/__init__.py` imports for type checkers only."""
    tree = ast.parse(Path(medseg.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def test_listed_static_and_lazy_names_agree() -> None:
    assert dir(medseg) == sorted(set(medseg.__all__))
    assert {*static_imports(), "__version__"} == {*medseg.__all__}
    for name, module in static_imports().items():
        home = sys.modules[module] if module != "medseg" else medseg
        assert getattr(medseg, name) is getattr(home, name), name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'nothing'"):
        _ = medseg.nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", medseg.__all__)
def test_public_objects_are_documented(name: str) -> None:
    if name != "__version__":
        assert inspect.getdoc(getattr(medseg, name))


def test_load_takes_the_arguments_of_the_predictor() -> None:
    given_by_load = {"network", "plan", "golden_check", "int8_ranges", "bundle", "weights_sha256", "fingerprint"}
    given_by_load |= {"calibration"}
    predictor = inspect.signature(medseg.Predictor).parameters
    load = inspect.signature(medseg.load).parameters
    assert {*predictor} - {*load} == given_by_load
    shared = {*predictor} & {*load}
    assert {name: load[name].default for name in shared} == {name: predictor[name].default for name in shared}


@pytest.mark.parametrize("name", [name for name in medseg.__all__ if name not in SUBPACKAGES and name[0] != "_"])
def test_signatures_are_explicit(name: str) -> None:
    value = getattr(medseg, name)
    if not isinstance(value, type) or not issubclass(value, Exception):
        kinds = {parameter.kind for parameter in inspect.signature(value).parameters.values()}
        assert not kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}


def test_type_checkers_know_the_type_of_every_name(tmp_path: Path) -> None:
    names = [f"medseg.{name}" for name in static_imports() if name not in SUBPACKAGES]
    names += [f"medseg.{package}.{name}" for package in SUBPACKAGES for name in public_names(package)]
    script = tmp_path / "names.py"
    script.write_text("import medseg\n" + "\n".join(f"reveal_type({name})" for name in names), encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", str(script)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    types = {int(line): found for line, found in re.findall(r':(\d+): note: Revealed type is "(.*)"', done.stdout)}
    assert len(types) == len(names)
    assert [name for line, name in enumerate(names, start=2) if types[line] == "Any"] == []


def public_names(package: str) -> list[str]:
    return list(getattr(getattr(medseg, package), "__all__", ()))


def test_the_command_line_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "medseg", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"medseg {medseg.__version__}"
