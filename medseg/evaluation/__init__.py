"""Evaluation that cannot flatter: metrics a case and label, their statistics, and one policy for empty masks."""

from typing import TYPE_CHECKING, Any

from medseg.evaluation.case import LabelScore, score_case
from medseg.evaluation.challenges.brats import LesionwiseScore, brats_score
from medseg.evaluation.challenges.em import EMScore, em_score, partition_scores
from medseg.evaluation.comparison import PairedDifference, compare
from medseg.evaluation.evaluation import Evaluation, evaluate
from medseg.evaluation.instances import InstanceScore, connected_components, instance_score
from medseg.evaluation.metrics import POLICY, Outcome
from medseg.evaluation.overlap import Confusion, case_dice, confusion
from medseg.evaluation.pairs import Problem
from medseg.evaluation.statistics import ClusterBootstrap, Estimate, holm, median, signed_rank_p
from medseg.evaluation.surface import SurfaceDistances, surface_distances

if TYPE_CHECKING:
    from medseg.evaluation.mean_case_dice import MeanCaseDice

__all__ = [
    "POLICY",
    "ClusterBootstrap",
    "Confusion",
    "EMScore",
    "Estimate",
    "Evaluation",
    "InstanceScore",
    "LabelScore",
    "LesionwiseScore",
    "MeanCaseDice",
    "Outcome",
    "PairedDifference",
    "Problem",
    "SurfaceDistances",
    "brats_score",
    "case_dice",
    "compare",
    "confusion",
    "connected_components",
    "em_score",
    "evaluate",
    "holm",
    "instance_score",
    "median",
    "partition_scores",
    "score_case",
    "signed_rank_p",
    "surface_distances",
]


def __getattr__(name: str) -> Any:
    """The metric of training, whose ignite brings torch along: comparing files needs neither."""
    if name == "MeanCaseDice":
        from medseg.evaluation.mean_case_dice import MeanCaseDice

        return MeanCaseDice
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
