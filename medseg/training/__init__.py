"""Components of a training config beyond MONAI's engines."""

from medseg.training.batch_augmentation import BatchAugmentation
from medseg.training.bundle_training import TrainingRun, train, train_folds
from medseg.training.checkpoint import CheckpointHandler
from medseg.training.distillation import Teacher
from medseg.training.distributed import ShareSampler, distribute, end_processes, process_device, start_processes
from medseg.training.handlers import TrainingProgressHandler, TrainingRunHandler
from medseg.training.history import TrainingHistoryHandler
from medseg.training.iteration import FiniteSteps, SupervisedUpdate, resolve_precision
from medseg.training.monai_run import prepare_run
from medseg.training.network_wrappers import AveragedNetwork, DeepSupervision
from medseg.training.record import TrainingRecordHandler
from medseg.training.sampling import SampleIndex, SeededDataLoader, SeededSampler, SeededSamples
from medseg.training.schedule import PolynomialWarmUp
from medseg.training.tensorboard import TensorBoardHandler
from medseg.training.training_cases import IGNORED, LoadCased, MappedCases, partial_labels

__all__ = [
    "IGNORED",
    "AveragedNetwork",
    "BatchAugmentation",
    "CheckpointHandler",
    "DeepSupervision",
    "FiniteSteps",
    "LoadCased",
    "MappedCases",
    "PolynomialWarmUp",
    "SampleIndex",
    "SeededDataLoader",
    "SeededSampler",
    "SeededSamples",
    "ShareSampler",
    "SupervisedUpdate",
    "Teacher",
    "TensorBoardHandler",
    "TrainingHistoryHandler",
    "TrainingProgressHandler",
    "TrainingRecordHandler",
    "TrainingRun",
    "TrainingRunHandler",
    "distribute",
    "end_processes",
    "partial_labels",
    "prepare_run",
    "process_device",
    "resolve_precision",
    "start_processes",
    "train",
    "train_folds",
]
