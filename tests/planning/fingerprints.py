"""Fingerprints of data sets that cannot be had here, generated from their published sizes and voxel sizes."""

from __future__ import annotations

from medseg.planning import DataFingerprint, IntensityStatistics, LabelFacts

CT_LEVELS = IntensityStatistics(
    mean=60.0, std=40.0, minimum=-1024.0, lower=-80.0, median=60.0, upper=180.0, maximum=900
)
MR_LEVELS = IntensityStatistics(mean=300.0, std=100.0, minimum=0.0, lower=20.0, median=300.0, upper=700.0, maximum=2000)

# Median size and voxel size (slices first, as nnU-Net stores them), 10th percentile of the slice distance where it
# differs, cases, channels and labels of the ten tasks of the Medical Segmentation Decathlon: Isensee et al. 2021,
# doi:10.1038/s41592-020-01008-z, supplementary note 1, and Antonelli et al. 2022, doi:10.1038/s41467-022-30695-9.
DECATHLON = {
    "01 brain tumour": ((138, 169, 138), (1.0, 1.0, 1.0), 1.0, 484, 4, "MR", 3),
    "02 heart": ((115, 320, 232), (1.37, 1.25, 1.25), 1.37, 20, 1, "MR", 1),
    "03 liver": ((432, 512, 512), (1.0, 0.7676, 0.7676), 0.8, 131, 1, "CT", 2),
    "04 hippocampus": ((36, 50, 35), (1.0, 1.0, 1.0), 1.0, 260, 1, "MR", 2),
    "05 prostate": ((20, 320, 319), (3.6, 0.62, 0.62), 3.6, 32, 2, "MR", 2),
    "06 lung": ((252, 512, 512), (1.24, 0.785, 0.785), 1.0, 63, 1, "CT", 1),
    "07 pancreas": ((93, 512, 512), (2.5, 0.8027, 0.8027), 2.5, 281, 1, "CT", 2),
    "08 hepatic vessel": ((49, 512, 512), (5.0, 0.8, 0.8), 1.5, 303, 1, "CT", 2),
    "09 spleen": ((90, 512, 512), (5.0, 0.793, 0.793), 1.6, 41, 1, "CT", 1),
    "10 colon": ((95, 512, 512), (5.0, 0.78, 0.78), 3.0, 126, 1, "CT", 1),
}


def decathlon(task: str) -> DataFingerprint:
    """Return the fingerprint of a task: nine cases in ten of the median, the others with thinner slices."""
    shape, spacing, thin, cases, channels, modality, structures = DECATHLON[task]
    few = max(1, round(0.15 * cases))
    # right, anterior, superior: the axes of the plan
    shapes = [shape[::-1]] * (cases - few) + [(shape[2], shape[1], round(shape[0] * spacing[0] / thin))] * few
    spacings = [spacing[::-1]] * (cases - few) + [(spacing[2], spacing[1], thin)] * few
    return fingerprint(task, shapes, spacings, channels, modality, structures)


def fingerprint(
    name: str,
    shapes: list[tuple[int, ...]],
    spacings: list[tuple[float, ...]],
    channels: int = 1,
    modality: str = "MR",
    structures: int = 2,
    **values: object,
) -> DataFingerprint:
    """Return a fingerprint in which every case holds every label."""
    labels = {"background": LabelFacts(0, len(shapes), 0.9)}
    labels |= {f"structure {n}": LabelFacts(n, len(shapes), 0.1 / structures, 1.0) for n in range(1, structures + 1)}
    levels = CT_LEVELS if modality == "CT" else MR_LEVELS
    given = {"nonzero_shapes": shapes, "largest_values": [255.0] * channels} | values
    return DataFingerprint(
        name=name,
        spatial_dims=len(shapes[0]),
        channels=[(f"channel {n}", modality) for n in range(channels)],
        labels=labels,
        shapes=shapes,
        spacings=spacings,
        intensities=[levels] * channels,
        **given,  # type: ignore[arg-type]
    )
