"""Show that cases 2k-1 and 2k of the Decathlon's hippocampus data are the two sides of one head.

Three properties of each case that a crop keeps from its head are compared within the candidate pairs (2k-1, 2k) and
within neighbours that cannot be pairs (2k, 2k+1): the 99th percentile of intensity, the stored data type, and the
correlation of the centred crops. The last line ranks the partner among all other cases by that correlation.

    python benchmarks/hippocampus_pairs.py DATA        # the folder with images/hippocampus_*.nii.gz
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

CROP = (28, 40, 28)  # voxels of 1 mm that all crops have around their centre


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder that holds images/hippocampus_*.nii.gz")
    cases = read_cases(parser.parse_args().data / "images")
    print(f"{len(cases)} cases")
    print(f"{'':28}{'pairs (2k-1, 2k)':>20}{'neighbours (2k, 2k+1)':>24}")
    pairs, neighbours = (consecutive(sorted(cases), first_is_odd) for first_is_odd in (True, False))
    rows = {
        "number": lambda found: f"{len(found)}",
        "99th percentile differs by": lambda found: percentile_difference(cases, found),
        "same stored data type": lambda found: f"{sum(cases[a][1] == cases[b][1] for a, b in found)} of {len(found)}",
        "correlation of centred crops": lambda found: (
            f"{np.mean([correlation(cases[a][2], cases[b][2]) for a, b in found]):.2f}"
        ),
    }
    for name, value in rows.items():
        print(f"{name:28}{value(pairs):>20}{value(neighbours):>24}")
    ranks = [partner_rank(cases, a, b) for a, b in pairs] + [partner_rank(cases, b, a) for a, b in pairs]
    print(f"partner among the 3 most similar of {len(cases) - 1}: {sum(rank <= 3 for rank in ranks)} of {len(ranks)}")


def read_cases(folder: Path) -> dict[int, tuple[float, str, np.ndarray]]:
    """Read per case number: the 99th percentile of intensity, the stored data type, and the standardised centre."""
    cases = {}
    for path in sorted(folder.glob("hippocampus_*.nii.gz")):
        image = nib.load(path)
        voxels = np.asarray(image.dataobj, dtype=np.float64)
        number = int(re.findall(r"\d+", path.name)[0])
        cases[number] = (float(np.percentile(voxels, 99)), str(image.get_data_dtype()), centre(voxels))
    return cases


def centre(voxels: np.ndarray) -> np.ndarray:
    """Return the central crop of `CROP` voxels with mean 0 and standard deviation 1, padded with the crop's edge."""
    short = [max(want - have, 0) for want, have in zip(CROP, voxels.shape, strict=True)]
    voxels = np.pad(voxels, [(n // 2, n - n // 2) for n in short], mode="edge")
    starts = [(have - want) // 2 for want, have in zip(CROP, voxels.shape, strict=True)]
    crop = voxels[tuple(slice(s, s + n) for s, n in zip(starts, CROP, strict=True))]
    return (crop - crop.mean()) / crop.std()


def consecutive(numbers: Sequence[int], first_is_odd: bool) -> list[tuple[int, int]]:
    """Return the consecutive numbers (n, n + 1) whose first is odd, or even."""
    present = set(numbers)
    return [(n, n + 1) for n in numbers if n + 1 in present and (n % 2 == 1) == first_is_odd]


def percentile_difference(cases: dict[int, tuple[float, str, np.ndarray]], found: list[tuple[int, int]]) -> str:
    """Return the median and the maximum relative difference of the 99th percentiles, as text."""
    ratios = [max(cases[a][0], cases[b][0]) / min(cases[a][0], cases[b][0]) for a, b in found]
    largest = f"{100 * (max(ratios) - 1):.0f} %" if max(ratios) < 2 else f"factor {max(ratios):.0f}"
    return f"{100 * (np.median(ratios) - 1):.0f} %, max {largest}"


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return the correlation coefficient of two standardised crops."""
    return float((a * b).mean())


def partner_rank(cases: dict[int, tuple[float, str, np.ndarray]], case: int, partner: int) -> int:
    """Return the rank (1 = most similar) of the partner among all other cases, by correlation with `case`."""
    own = correlation(cases[case][2], cases[partner][2])
    return 1 + sum(
        correlation(cases[case][2], other[2]) > own for n, other in cases.items() if n not in (case, partner)
    )


if __name__ == "__main__":
    main()
