"""Medical volumetric segmentation on MONAI.

The names below are imported when they are first used, so that `import medseg` takes milliseconds. Type checkers and
editors see the imports under `TYPE_CHECKING`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medseg import (
        bundle,
        cohort,
        datasets,
        doctor,
        errors,
        evaluation,
        figures,
        inference,
        losses,
        networks,
        plan,
        planning,
        reporting,
        training,
        transforms,
        volumes,
        weights,
    )
    from medseg.bundle import load, load_network
    from medseg.datasets import Manifest, read_manifest
    from medseg.errors import MedsegError
    from medseg.evaluation import Evaluation, evaluate
    from medseg.inference import CaseResult, Predictor, Segmentation, SlicePredictor
    from medseg.inference.predict_files import predict_files
    from medseg.plan import Plan, read_plan
    from medseg.reporting import WrittenReport, write_prediction_report, write_report
    from medseg.volumes import Grid, Volume, read_label_map, read_volume, write_volume

__version__ = "0.1.0"

__all__ = [
    "CaseResult",
    "Evaluation",
    "Grid",
    "Manifest",
    "MedsegError",
    "Plan",
    "Predictor",
    "Segmentation",
    "SlicePredictor",
    "Volume",
    "WrittenReport",
    "__version__",
    "bundle",
    "cohort",
    "datasets",
    "doctor",
    "errors",
    "evaluate",
    "evaluation",
    "figures",
    "inference",
    "load",
    "load_network",
    "losses",
    "networks",
    "plan",
    "planning",
    "predict_files",
    "read_label_map",
    "read_manifest",
    "read_plan",
    "read_volume",
    "reporting",
    "training",
    "transforms",
    "volumes",
    "weights",
    "write_prediction_report",
    "write_report",
    "write_volume",
]

_HOMES = {
    "CaseResult": "inference",
    "Evaluation": "evaluation",
    "Grid": "volumes",
    "Manifest": "datasets",
    "MedsegError": "errors",
    "Plan": "plan",
    "Predictor": "inference",
    "Segmentation": "inference",
    "SlicePredictor": "inference",
    "Volume": "volumes",
    "WrittenReport": "reporting",
    "evaluate": "evaluation",
    "load": "bundle",
    "load_network": "bundle",
    "predict_files": "inference",
    "read_label_map": "volumes",
    "read_manifest": "datasets",
    "read_plan": "plan",
    "read_volume": "volumes",
    "write_prediction_report": "reporting",
    "write_report": "reporting",
    "write_volume": "volumes",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"medseg.{_HOMES[name]}"), name)
    if name in __all__:
        return import_module(f"medseg.{name}")
    raise AttributeError(f"module 'medseg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
