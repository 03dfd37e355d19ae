from pathlib import Path

import numpy as np
import pytest
from reporting.browser import READY, Browser, browser
from reporting.evaluations import small_evaluation

from medseg.reporting import write_report

__all__ = ["browser"]


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the report of six cases, all of which can be opened."""
    folder = tmp_path_factory.mktemp("page")
    result, images = small_evaluation(folder, 6, shape=(24, 20, 16), affine=np.diag([1.0, 1.0, 2.0, 1.0]))
    return write_report(result, folder / "report.html", images=images).path


@pytest.fixture
def opened(browser: Browser, page: Path) -> Browser:
    """Open the worst case of that report in a browser."""
    browser.open(page)
    browser.click("#choices button[data-case='0']")
    browser.wait(READY.format(0))
    return browser
