"""Evaluation that cannot flatter: metrics a case and label, their statistics, and one policy for empty masks."""

from medseg.evaluation.case import LabelScore, score_case
from medseg.evaluation.confusion import Confusion, confusion
from medseg.evaluation.evaluation import Evaluation, evaluate
from medseg.evaluation.mean_case_dice import MeanCaseDice
from medseg.evaluation.overlap import case_dice
from medseg.evaluation.pairs import Problem
from medseg.evaluation.policy import POLICY, Outcome
from medseg.evaluation.surface import SurfaceDistances, surface_distances

__all__ = [
    "POLICY",
    "Confusion",
    "Evaluation",
    "LabelScore",
    "MeanCaseDice",
    "Outcome",
    "Problem",
    "SurfaceDistances",
    "case_dice",
    "confusion",
    "evaluate",
    "score_case",
    "surface_distances",
]
