"""What a training config needs beyond MONAI's engine."""

from medseg.training.averaging import AveragedNetwork, WeightAveraging
from medseg.training.batch_augmentation import BatchAugmentation
from medseg.training.checked_cases import CheckCased
from medseg.training.checkpoint import Checkpointing
from medseg.training.deep_supervision import DeepSupervision
from medseg.training.finite_steps import FiniteSteps
from medseg.training.history import TrainingHistory
from medseg.training.initial_weights import load_initial_weights
from medseg.training.iteration_update import EvaluationUpdate, TrainingUpdate
from medseg.training.learning_rate import PolynomialWarmUp
from medseg.training.mapped_cases import MappedCases
from medseg.training.one_line_errors import one_line_errors
from medseg.training.overrides import refuse_unknown_overrides
from medseg.training.precision import gradient_scaler, resolve_precision
from medseg.training.precision_choice import PrecisionChoice, PrecisionProbe
from medseg.training.processes import ShareSampler, distribute, end_processes, process_device, start_processes
from medseg.training.progress import TrainingProgress
from medseg.training.record import TrainingRecord
from medseg.training.sampling import SampleIndex, SeededSampler, SeededSamples
from medseg.training.tensorboard import TensorBoardHistory

__all__ = [
    "AveragedNetwork",
    "BatchAugmentation",
    "CheckCased",
    "Checkpointing",
    "DeepSupervision",
    "EvaluationUpdate",
    "FiniteSteps",
    "MappedCases",
    "PolynomialWarmUp",
    "PrecisionChoice",
    "PrecisionProbe",
    "SampleIndex",
    "SeededSampler",
    "SeededSamples",
    "ShareSampler",
    "TensorBoardHistory",
    "TrainingHistory",
    "TrainingProgress",
    "TrainingRecord",
    "TrainingUpdate",
    "WeightAveraging",
    "distribute",
    "end_processes",
    "gradient_scaler",
    "load_initial_weights",
    "one_line_errors",
    "process_device",
    "refuse_unknown_overrides",
    "resolve_precision",
    "start_processes",
]
