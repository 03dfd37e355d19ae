"""Refusing a case whose files cannot be trained on, before a transform hides what is wrong with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

from monai.transforms import Transform

from medseg.datasets import Manifest, case_problems
from medseg.errors import ManifestError, PlanError


class CheckCased(Transform):
    """First of a case's transforms: let it pass as it is, or say in one line what is wrong with its files.

    MONAI's transforms take a label map that is shifted against its scan, or that holds a value nobody declared, and the
    training goes on with wrong labels; other errors come late and do not name the case. The rules are those of
    `medseg data prepare`: every file whole, finite and of the manifest's dimension, one grid for all of them up to half
    a voxel, no label value that the manifest lacks. Being deterministic it is done once a case, where cases are cached.

    Args:
        manifest: the data set.
        label_values: the values the network is trained on, the plan's; each value of the manifest must be among them.
            None where the label map is remapped afterwards.
        spatial_dims: of the files; None takes the manifest's. 3 where a 2D network is given volumes to cut into slices.

    Raises:
        PlanError: the manifest has label values that the plan lacks.
        ManifestError: (call) a case cannot be used; names the case and the file.
    """

    def __init__(
        self, manifest: Manifest, label_values: Iterable[int] | None = None, spatial_dims: int | None = None
    ) -> None:
        self.manifest = manifest if spatial_dims is None else dataclasses.replace(manifest, spatial_dims=spatial_dims)
        known = None if label_values is None else set(label_values)
        lacking = [name for name, value in manifest.labels.items() if known is not None and value not in known]
        if lacking:
            shown = ", ".join(f"{name} ({manifest.labels[name]})" for name in lacking)
            raise PlanError(
                f"the plan has no label for {shown} of {manifest.name}; add it to labels in plan.json, or map it to "
                "another value in the configs and give CheckCased no label_values"
            )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        roles = [role for role in ("image", "label", "instances") if role in data]
        files = {role: _paths(data[role]) for role in roles}
        problems = case_problems(self.manifest, files, str(data.get("case", files["image"][0])))
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise ManifestError(problems[0] + more)
        return dict(data)


def _paths(value: Any) -> list[Path]:
    return [Path(part) for part in (value if isinstance(value, list | tuple) else [value])]
