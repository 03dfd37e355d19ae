from collections.abc import Iterator

import pytest
from reporting.chromium import Chromium, started


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """A headless Chromium without WebGL; tests that need it are skipped where there is none."""
    yield from started(tmp_path_factory.mktemp("chromium"))
