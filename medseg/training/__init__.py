"""What a training config needs beyond MONAI's engine."""

from medseg.training.batch_augmentation import BatchAugmentation
from medseg.training.checkpoint import Checkpointing
from medseg.training.distributed import ShareSampler, distribute, end_processes, process_device, start_processes
from medseg.training.history import TrainingHistory, TrainingProgress
from medseg.training.iteration import EvaluationUpdate, FiniteSteps, TrainingUpdate
from medseg.training.monai_run import one_line_errors, refuse_unknown_overrides
from medseg.training.network_wrappers import AveragedNetwork, DeepSupervision, WeightAveraging, load_initial_weights
from medseg.training.precision import PrecisionChoice, PrecisionProbe, gradient_scaler, resolve_precision
from medseg.training.record import TrainingRecord
from medseg.training.sampling import SampleIndex, SeededSampler, SeededSamples
from medseg.training.schedule import PolynomialWarmUp
from medseg.training.tensorboard import TensorBoardHistory
from medseg.training.training_cases import CheckCased, MappedCases

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
