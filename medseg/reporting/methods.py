"""A methods paragraph to copy into a paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def methods_paragraph(summary: Mapping[str, Any]) -> str:
    """How the numbers were made, in the words reviewers look for."""
    names = [metric["title"] for metric in summary["metrics"]]
    titles = list(dict.fromkeys(names))
    tolerances = sorted(set(summary["tolerance_mm"].values()))
    tolerance = f"{tolerances[0]:g} mm" if len(tolerances) == 1 else f"{tolerances[0]:g} to {tolerances[-1]:g} mm"
    draws, level = summary["bootstrap"]["draws"], round(100 * summary["interval_level"])
    few = " Intervals of fewer than 20 patients are uncertain themselves." if summary["num_patients"] < 20 else ""
    left_out = f" {summary['num_left_out']} cases were left out." if summary["num_left_out"] else ""
    compared = (
        " Methods were compared case by case: mean paired difference with its bootstrap interval, and the Wilcoxon "
        "signed-rank test over patients with Holm's correction."
        if "comparison" in summary
        else ""
    )
    num_cases, num_patients, version = summary["num_cases"], summary["num_patients"], summary["versions"]["medseg"]
    return (
        f"Predictions of {num_cases} cases of {num_patients} patients were compared with reference label maps on their "
        f"own grids with medseg {version} (metrics after Maier-Hein et al. 2024): {', '.join(titles)}. "
        f"The normalised surface Dice (NSD) used a tolerance of {tolerance}; HD95 is the larger of the two directed "
        f"area-weighted 95th percentiles of surface distance.{left_out} Empty masks: {summary['policy']}. Values are "
        f"means over cases for each structure and the unweighted mean over structures, with {level} % percentile "
        f"intervals from {draws:,} bootstrap draws of patients (seed {summary['bootstrap']['seed']}).{few}{compared} "
        f"Data SHA-256 {summary['inputs_sha256']}."
    )
