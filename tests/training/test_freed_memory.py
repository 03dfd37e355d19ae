import subprocess
import sys

import pytest

# A process of its own: the setting is the whole process's, and so are its page faults.
CHILD = """
import resource
import torch
from medseg.training.iteration import keep_freed_memory

def step():
    for _ in range(4):
        torch.ones(16 << 20)  # 64 MB, above the size up to which glibc learns to keep blocks

if {kept}:
    assert keep_freed_memory()
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(kept: bool) -> int:
    done = subprocess.run([sys.executable, "-c", CHILD.format(kept=kept)], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_a_second_step_asks_the_system_for_no_memory():
    assert faults(kept=True) < 100
    assert faults(kept=False) > 100
