"""Write an evaluation as one HTML page that opens from disk, with a viewer and without a network."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medseg.reporting.report import WrittenReport, write_report

__all__ = ["WrittenReport", "write_report"]


# Other pages use the frame and the styles of this package without torch, which the report imports.
def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("medseg.reporting.report"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
