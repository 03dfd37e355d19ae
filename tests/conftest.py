import os
import tempfile
from pathlib import Path

import pytest

# Intra-op threads of several test processes would fight over the cores of a small machine, and sums depend on them.
os.environ.setdefault("OMP_NUM_THREADS", "2")
# compiled models are kept in the user's cache, which is none of the tests' business
os.environ.setdefault("MEDSEG_CACHE_DIR", tempfile.mkdtemp(prefix="medseg-cache-"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data beside the checkout; tests that need it are skipped where it is absent."""
    root = Path(os.environ.get("MEDSEG_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"{root} is absent: the shared data set is not on this machine")
    return root
