"""What a training config needs beyond MONAI's engine."""

from medseg.training.averaging import AveragedNetwork, WeightAveraging
from medseg.training.checkpoint import Checkpointing
from medseg.training.initial_weights import load_initial_weights
from medseg.training.iteration_update import EvaluationUpdate, TrainingUpdate
from medseg.training.learning_rate import PolynomialWarmUp
from medseg.training.precision import resolve_precision
from medseg.training.processes import ShareSampler, distribute, end_processes, process_device, start_processes
from medseg.training.progress import TrainingProgress
from medseg.training.record import TrainingRecord
from medseg.training.sampling import SampleIndex, SeededSampler, SeededSamples

__all__ = [
    "AveragedNetwork",
    "Checkpointing",
    "EvaluationUpdate",
    "PolynomialWarmUp",
    "SampleIndex",
    "SeededSampler",
    "SeededSamples",
    "ShareSampler",
    "TrainingProgress",
    "TrainingRecord",
    "TrainingUpdate",
    "WeightAveraging",
    "distribute",
    "end_processes",
    "load_initial_weights",
    "process_device",
    "resolve_precision",
    "start_processes",
]
