import os
import tempfile
from pathlib import Path

import pytest

# Intra-op threads of several test processes would fight over the cores of a small machine, and sums depend on them.
os.environ.setdefault("OMP_NUM_THREADS", "2")
# oneDNN's AMX kernels let a NaN left in memory into bf16 products whose inner dimension is no multiple of 32
# (github.com/uxlfoundation/oneDNN/issues/5717); the tests' narrow networks are all such tails. The kernels of AVX-512
# are used instead: this is an upper bound, so older processors keep theirs.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
# compiled models are kept in the user's cache, which is none of the tests' business
os.environ.setdefault("MEDSEG_CACHE_DIR", tempfile.mkdtemp(prefix="medseg-cache-"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data beside the checkout; tests that need it are skipped where it is absent."""
    root = Path(os.environ.get("MEDSEG_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"{root} is absent: the shared data set is not on this machine")
    return root
