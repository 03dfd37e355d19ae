"""Plan a bundle for a data set: fingerprint, rules, estimates of the work, and the files."""

from medseg.planning.data_fingerprint import DataFingerprint, IntensityStatistics, LabelFacts, measure_dataset
from medseg.planning.estimate import (
    WorkEstimate,
    grids_of,
    prediction_estimate,
    prepared_bytes,
    training_estimate,
)
from medseg.planning.planned_training import Decision, PlannedTraining, Wishes
from medseg.planning.planner import PlannedBundle, plan_bundle
from medseg.planning.rules import plan_training

__all__ = [
    "DataFingerprint",
    "Decision",
    "IntensityStatistics",
    "LabelFacts",
    "PlannedBundle",
    "PlannedTraining",
    "Wishes",
    "WorkEstimate",
    "grids_of",
    "measure_dataset",
    "plan_bundle",
    "plan_training",
    "prediction_estimate",
    "prepared_bytes",
    "training_estimate",
]
