"""Compare predicted label maps with reference label maps: metrics, intervals, paired comparison, challenge scores."""

from typing import TYPE_CHECKING, Any

from medseg.evaluation.challenges.brats import LesionwiseScore, brats_score
from medseg.evaluation.challenges.em import EMScore, em_score, partition_scores
from medseg.evaluation.comparison import PairedDifference, compare
from medseg.evaluation.instances import InstanceScore, connected_components, instance_score
from medseg.evaluation.metrics import EMPTY_MASK_POLICY, Metric, Outcome
from medseg.evaluation.overlap import Confusion, case_dice, confusion
from medseg.evaluation.pairs import Problem
from medseg.evaluation.run import Evaluation, evaluate
from medseg.evaluation.scoring import LabelScore, score_case
from medseg.evaluation.statistics import ClusterBootstrap, Estimate, holm, median, signed_rank_p
from medseg.evaluation.surface import SurfaceDistances, surface_distances

if TYPE_CHECKING:
    from medseg.evaluation.mean_case_dice import MeanCaseDice

__all__ = [
    "EMPTY_MASK_POLICY",
    "ClusterBootstrap",
    "Confusion",
    "EMScore",
    "Estimate",
    "Evaluation",
    "InstanceScore",
    "LabelScore",
    "LesionwiseScore",
    "MeanCaseDice",
    "Metric",
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
    """Import the ignite metric on first use, because ignite imports torch, which comparing files does not need."""
    if name == "MeanCaseDice":
        from medseg.evaluation.mean_case_dice import MeanCaseDice

        return MeanCaseDice
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
