import locale
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Threads of several test processes would compete for the cores of a small machine, and sums depend on their number.
os.environ.setdefault("OMP_NUM_THREADS", "2")
# Compiled models are stored in the user's cache, which the tests must not change.
os.environ.setdefault("MEDSEG_CACHE_DIR", tempfile.mkdtemp(prefix="medseg-cache-"))
LOCALE = locale.setlocale(locale.LC_ALL)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of the real data beside the checkout; skip the test if it does not exist."""
    root = Path(os.environ.get("MEDSEG_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"{root}: the shared data is not on this machine")
    return root


@pytest.fixture(autouse=True)
def kept_locale() -> Iterator[None]:
    """Restore the locale, which ITK sets to ASCII when a test writes a DICOM file."""
    locale.setlocale(locale.LC_ALL, LOCALE)
    yield
    locale.setlocale(locale.LC_ALL, LOCALE)
