"""Write evaluations and predictions as HTML pages that open from disk, with a viewer and without a network."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medseg.reporting.html_page import WrittenReport
    from medseg.reporting.predictions import check_report_file, write_prediction_report
    from medseg.reporting.report import write_report

__all__ = ["WrittenReport", "check_report_file", "write_prediction_report", "write_report"]

_MODULES = {"check_report_file": "predictions", "write_prediction_report": "predictions"}


# Other pages use the frame and the styles of this package without torch, which the reports import.
def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f"medseg.reporting.{_MODULES.get(name, 'report')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
