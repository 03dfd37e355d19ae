import subprocess
import sys

import medseg


def test_only_public_names_are_listed():
    names = dir(medseg)
    assert names == sorted(set(names))
    assert not [name for name in names if name.startswith("_") and name != "__version__"]
    assert all(getattr(medseg, name) is not None for name in names)


def test_the_command_line_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "medseg", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"medseg {medseg.__version__}"
