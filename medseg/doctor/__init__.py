"""Check a data set before a network is trained on it: every problem at once, and a corrected copy on request."""

from medseg.doctor.examine import Examination, examine
from medseg.doctor.findings import Finding

__all__ = ["Examination", "Finding", "examine"]
