"""What a training config needs beyond MONAI's engine."""

from medseg.training.averaging import AveragedNetwork, WeightAveraging
from medseg.training.checkpoint import Checkpointing
from medseg.training.initial_weights import load_initial_weights
from medseg.training.iteration_update import EvaluationUpdate, TrainingUpdate
from medseg.training.learning_rate import PolynomialWarmUp
from medseg.training.precision import resolve_precision
from medseg.training.progress import TrainingProgress
from medseg.training.record import TrainingRecord

__all__ = [
    "AveragedNetwork",
    "Checkpointing",
    "EvaluationUpdate",
    "PolynomialWarmUp",
    "TrainingProgress",
    "TrainingRecord",
    "TrainingUpdate",
    "WeightAveraging",
    "load_initial_weights",
    "resolve_precision",
]
