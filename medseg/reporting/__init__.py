"""Write an evaluation as one HTML page that opens from disk, with a viewer and without a network."""

from medseg.reporting.report import WrittenReport, write_report

__all__ = ["WrittenReport", "write_report"]
