"""Segment thousands of scans on the machines of a Ray cluster. Needs the extra `medseg[ray]`."""

from medseg.cohort.inputs import CohortCase, find_cohort
from medseg.cohort.ledger import Ledger
from medseg.cohort.predict_cohort import CohortProgress, predict

__all__ = ["CohortCase", "CohortProgress", "Ledger", "find_cohort", "predict"]
