"""Read and write models/int8.json: what `medseg bundle quantize` has measured, so that a network can run in int8."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medseg.bundle.folder import BundleFolder
from medseg.bundle.golden import LOW_PRECISION, Tolerance
from medseg.errors import BundleError
from medseg.inference.backends.quantization import Ranges
from medseg.volumes import replacing

INT8 = "models/int8.json"
SCHEMA_VERSION = 1
QUANTIZE_AGAIN = "run `medseg bundle quantize` again"
# int8 may differ from fp32 by so much on the golden sample: a wrong result differs by about 1. The shipped bundles
# differ by 0.01 to 0.03 standard deviations, and on at most 0.3 % of the voxels.
MOST = Tolerance(logits=0.1, labels=0.03)


@dataclass(frozen=True)
class Int8Model:
    """Describe the int8 computation of a bundle's weights, as it was measured.

    Args:
        weights_sha256: digest of each network's weights.
        ranges: smallest and largest value of the inputs of its convolutions, per network.
        golden_difference: from fp32 on the golden sample, as measured together with the Dice.
        measured: cases, Dice, time and versions, for people.
    """

    weights_sha256: Sequence[str]
    ranges: Sequence[Ranges]
    golden_difference: Tolerance
    measured: Mapping[str, Any]

    @property
    def tolerance(self) -> Tolerance:
        """Difference from fp32 that is allowed on another machine.

        The Dice was measured with this difference. Another machine computes the same integers, so it may add only as
        much as any low precision: another rounding of what is not int8 (0.007 to 0.009 between bf16 and fp32).
        """
        found = self.golden_difference
        return Tolerance(found.logits + LOW_PRECISION.logits, found.labels + LOW_PRECISION.labels)


def write_int8_model(folder: BundleFolder, model: Int8Model) -> None:
    """Write the file atomically."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "weights_sha256": list(model.weights_sha256),
        "golden_difference": vars(model.golden_difference),
        "measured": dict(model.measured),
        "ranges": [{name: list(ends) for name, ends in r.items()} for r in model.ranges],
    }
    with replacing(folder.path / INT8) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_int8_model(folder: BundleFolder) -> Int8Model | None:
    """Read the file; None if the bundle has none.

    Raises:
        BundleError: it is damaged.
    """
    path = folder.inside(INT8)
    if not path.is_file():
        return None
    content = folder.read_json(INT8)
    try:
        if content["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version {content['schema_version']}, expected {SCHEMA_VERSION}")
        digests, members = content["weights_sha256"], content["ranges"]
        ranges = [{name: (float(low), float(high)) for name, (low, high) in each.items()} for each in members]
        if not ranges or len(digests) != len(ranges) or not all(isinstance(digest, str) for digest in digests):
            raise ValueError("expected ranges for each weights file")
        for name, (low, high) in (item for each in ranges for item in each.items()):
            if not (math.isfinite(low) and math.isfinite(high) and low <= 0 <= high):
                raise ValueError(f"range {low} to {high} of {name!r}, expected finite numbers around 0")
        difference = content["golden_difference"]
        found = Tolerance(float(difference["logits"]), float(difference["labels"]))
        if not (0 <= found.logits <= MOST.logits and 0 <= found.labels <= MOST.labels):
            raise ValueError(f"golden difference {vars(found)}, expected at most {vars(MOST)}")
        return Int8Model(digests, ranges, found, dict(content["measured"]))
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BundleError(f"{path}: not written by medseg or damaged ({error}); {QUANTIZE_AGAIN}") from None
