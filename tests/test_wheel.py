"""A built wheel contains everything that the package reads at run time."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PROBE = """
import json
from importlib.resources import files
import medseg
from medseg.datasets import list_manifests, read_manifest
bundle = files("medseg.bundle") / "phantom_cells_segmentation"
print(json.dumps({
    "package": medseg.__file__,
    "manifests": list_manifests(),
    "num_cases": len(read_manifest("phantom_cells").cases),
    "plan": medseg.read_plan(bundle / "configs" / "plan.json").name,
}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel from a copy of the repository and unpack it as pip would."""
    source, out = tmp_path_factory.mktemp("source") / "medseg", tmp_path_factory.mktemp("installed")
    ignored = shutil.ignore_patterns(
        ".*", "tests", "benchmarks", "build", "site", "demo", "runs", "*.egg-info", "__pycache__"
    )
    shutil.copytree(REPOSITORY, source, ignore=ignored)
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    command = [sys.executable, "-W", "ignore", "-c", build, str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = out.glob("medseg-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(out / "site")
    return out / "site"


def test_the_installed_package_finds_its_data(installed: Path, tmp_path: Path) -> None:
    probe = f"import sys; sys.path.insert(0, {str(installed)!r})\n{PROBE}"
    done = subprocess.run([sys.executable, "-c", probe], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert Path(found["package"]).is_relative_to(installed)
    assert found["manifests"] == ["em_membrane", "hippocampus", "phantom_cells"]
    assert (found["num_cases"], found["plan"]) == (26, "phantom_cells_segmentation")


def test_data_files_of_the_package_are_in_the_wheel(installed: Path) -> None:
    package = REPOSITORY / "medseg"
    files = [path.relative_to(package) for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert [str(path) for path in files if not (installed / "medseg" / path).is_file()] == []
