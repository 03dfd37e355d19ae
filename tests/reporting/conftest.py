from collections.abc import Iterator

import pytest
from reporting import chromium


@pytest.fixture(scope="session")
def browser(tmp_path_factory) -> Iterator[chromium.Chromium]:
    """A headless Chromium without WebGL; tests that need it are skipped where there is none."""
    reason = chromium.missing()
    if reason:
        pytest.skip(reason)
    running = chromium.Chromium(tmp_path_factory.mktemp("chromium"))
    yield running
    running.close()
