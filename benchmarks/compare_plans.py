"""Plan the same fingerprints with nnU-Net's own planner and with medseg, and print both plans side by side.

    python benchmarks/compare_plans.py [--data SHARED] [--record tests/planning/nnunet_plans.json] [--missing]

The fingerprints are those of real data sets (`--data`, measured by medseg) and of the ten Decathlon tasks, generated
from their published sizes. nnU-Net gets them as its `dataset_fingerprint.json`, with its axes reversed, and plans for
its usual 8 GB of GPU memory, as medseg does here. `--record` stores both plans with nnU-Net's version for the tests;
nnU-Net's plans that the file has already are not made again, and with `--missing` medseg's are not, either.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from planning.fingerprints import DECATHLON, decathlon, fingerprint

from medseg.datasets import Manifest, read_manifest
from medseg.datasets.manifest_content import parse_manifest
from medseg.planning import DataFingerprint, PlannedTraining, Wishes, measure_dataset, plan_training
from medseg.planning.planner import training_costs
from medseg.volumes import Grid, read_label_map

GIGABYTE = 1000**3


def nnunet_plans(data: DataFingerprint) -> dict[str, Any]:
    """Return the plans that nnU-Net's ExperimentPlanner makes of a fingerprint."""
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        folders = {name: Path(folder) / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
        os.environ |= {name: str(path) for name, path in folders.items()}
        from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

        name = "Dataset001_Compared"
        for path in folders.values():
            (path / name).mkdir(parents=True)
        modality = {"RGB": "rgb_to_0_1"}
        depth = (1,) if data.spatial_dims == 2 else ()
        channels = {str(n): modality.get(m, m) for n, (_, m) in enumerate(data.channels)}
        cases = {f"case{n}": {"images": ["image.nii.gz"], "label": "label.nii.gz"} for n in range(data.num_cases)}
        content = {
            "channel_names": channels,
            "labels": {name: facts.value for name, facts in data.labels.items()},
            "numTraining": data.num_cases,
            "file_ending": ".png" if data.spatial_dims == 2 else ".nii.gz",
            "overwrite_image_reader_writer": "NaturalImage2DIO" if data.spatial_dims == 2 else "SimpleITKIO",
            "dataset": cases,
        }
        levels = {
            str(n): {
                "mean": i.mean, "std": i.std, "min": i.minimum, "max": i.maximum, "median": i.median,
                "percentile_00_5": i.lower, "percentile_99_5": i.upper,
            }
            for n, i in enumerate(data.intensities or ())
        }  # fmt: skip
        measured = {
            "spacings": [[999.0] * len(depth) + list(map(float, s[::-1])) for s in data.spacings],
            "shapes_after_crop": [[*depth, *s[::-1]] for s in data.nonzero_shapes],
            "foreground_intensity_properties_per_channel": levels,
            "median_relative_size_after_cropping": data.nonzero_fraction,
        }
        (folders["nnUNet_raw"] / name / "dataset.json").write_text(json.dumps(content))
        (folders["nnUNet_preprocessed"] / name / "dataset_fingerprint.json").write_text(json.dumps(measured))
        planner = ExperimentPlanner(name)
        planner.lowres_creation_threshold = 0  # its search takes a minute per task
        return planner.plan_experiment()


def summary_of_nnunet(plans: dict[str, Any], dims: int) -> dict[str, Any]:
    """Return the values of nnU-Net's plans that both programs have, with axes ordered as in medseg."""
    configuration = plans["configurations"]["3d_fullres" if dims == 3 else "2d"]
    network = configuration["architecture"]["arch_kwargs"]
    forward = plans["transpose_forward"]
    # stored axes are transposed slices-first axes; undo both
    order = [forward.index(axis) for axis in range(3)][::-1] if dims == 3 else [1, 0]
    turn = lambda values: [values[axis] for axis in order]  # noqa: E731
    return {
        "spacing": [round(float(s), 4) for s in turn(configuration["spacing"])],
        "patch": [int(n) for n in turn(configuration["patch_size"])],
        "batch": int(configuration["batch_size"]),
        "stages": int(network["n_stages"]),
        "channels": list(network["features_per_stage"]),
        "strides": [turn(step) for step in network["strides"][1:]],
        "kernels": [turn(kernel) for kernel in network["kernel_sizes"]],
        "normalization": configuration["normalization_schemes"],
        "uses_nonzero": configuration["use_mask_for_norm"],
    }


def summary_of_medseg(planned: PlannedTraining) -> dict[str, Any]:
    """Return the same values of a plan of medseg."""
    plan, arguments = planned.plan, planned.plan.network["arguments"]
    return {
        "spacing": None if plan.spacing is None else [round(s, 4) for s in plan.spacing],
        "patch": list(plan.patch),
        "batch": planned.settings.batch_size,
        "stages": len(arguments["channels"]),
        "channels": arguments["channels"],
        "strides": arguments["strides"],
        "kernels": arguments["kernel_sizes"],
        "normalization": [entry["scheme"] for entry in plan.normalization],
        "uses_nonzero": [entry.get("foreground") == "nonzero" for entry in plan.normalization],
    }


def plan_of_medseg(data: DataFingerprint, device: str = "cuda", memory: int = 8 * GIGABYTE) -> PlannedTraining:
    """Return medseg's plan of a fingerprint."""
    wishes = Wishes(memory, device, hours=24)  # type: ignore[arg-type]
    grids = [
        Grid(shape, np.diag([*spacing, *[1.0] * (4 - len(spacing))]))
        for shape, spacing in zip(data.shapes, data.spacings, strict=True)
    ]
    costs = training_costs(wishes, grids, "bf16", flops_per_second=2e13 if device == "cuda" else 1e11)
    return plan_training(data, wishes, costs, "compared", data.num_cases * 4 // 5)


def real_fingerprints(root: Path) -> dict[str, Callable[[], DataFingerprint]]:
    """Return functions that measure the real data sets of a folder."""

    def of_manifest(name: str) -> DataFingerprint:
        return measure_dataset(read_manifest(name), root / name)

    def spinal_cord() -> DataFingerprint:
        cord = one_case("t2s_uncropped", "{case}.nii.gz", "{case}_gmseg_manual.nii.gz", "MR", [1])
        return measure_dataset(cord, root / "spinal_cord")

    def ct_sample() -> DataFingerprint:
        stored = read_label_map(root / "ct_abdomen" / "example_seg.nii.gz").array
        values = [int(value) for value in np.unique(stored) if value]
        ct = one_case("example", "{case}_ct_sm.nii.gz", "{case}_seg.nii.gz", "CT", values)
        return measure_dataset(ct, root / "ct_abdomen")

    return {
        "hippocampus (208 cases)": partial(of_manifest, "hippocampus"),
        "EM slices, 2D": partial(of_manifest, "em_membrane"),
        "spinal cord, T2*": spinal_cord,
        "CT sample, 41 labels": ct_sample,
    }


def one_case(case: str, image: str, label: str, modality: str, values: Sequence[int]) -> Manifest:
    """Return the manifest of a single case."""
    content = {
        "schema_version": 1,
        "name": case,
        "spatial_dims": 3,
        "channels": [{"name": modality.lower(), "modality": modality}],
        "labels": {"background": 0, **{f"label {value}": value for value in values}},
        "files": {"image": image, "label": label},
        "cases": [case],
    }
    return parse_manifest(content, Path("manifest.yaml"))


def generated_fingerprints() -> dict[str, DataFingerprint]:
    """Return the fingerprints that need no data."""
    found = {f"Decathlon {task}": decathlon(task) for task in DECATHLON}
    found["EM stack, 8 slices"] = fingerprint("em stack", [(512, 512, 8)] * 3, [(4.0, 4.0, 50.0)] * 3, 1, "EM", 1)
    found["RGB pictures, 12 classes"] = fingerprint(
        "rgb", [(480, 360)] * 367, [(1.0, 1.0)] * 367, 3, "RGB", 11, has_physical_spacing=False
    )
    found["skull-stripped brain"] = replace(
        fingerprint("brain", [(240, 240, 155)] * 100, [(1.0, 1.0, 1.0)] * 100, 4, "MR", 3),
        nonzero_shapes=[(138, 170, 138)] * 100,
    )
    return found


def all_fingerprints(shared: Path | None = None) -> dict[str, Callable[[], DataFingerprint]]:
    """Return functions that return the generated fingerprints, and those of the real data sets of a folder."""
    generated = generated_fingerprints()
    found = {name: partial(generated.__getitem__, name) for name in generated}
    return found | ({} if shared is None else real_fingerprints(shared))


def row(name: str, ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Return one line of the table."""

    def size(values: Any) -> str:
        return "as stored" if values is None else " × ".join(f"{v:g}" for v in values)

    cells = [name]
    for key in ("spacing", "patch"):
        cells += [size(theirs[key]), "same" if ours[key] == theirs[key] else size(ours[key])]
    for key in ("batch", "stages"):
        cells += [str(theirs[key]), "same" if ours[key] == theirs[key] else str(ours[key])]
    is_same = ours["strides"] == theirs["strides"] and ours["kernels"] == theirs["kernels"]
    cells.append("same" if is_same else "differ")
    cells += [", ".join(dict.fromkeys(theirs["normalization"])), ", ".join(dict.fromkeys(ours["normalization"]))]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print the table, and record nnU-Net's plans if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--missing", action="store_true", help="keep medseg's plans that the record has")
    given = parser.parse_args()
    record: dict[str, Any] = {"nnunetv2": version("nnunetv2"), "plans": {}, "medseg": {}}
    if given.record and given.record.is_file():
        found = json.loads(given.record.read_text(encoding="utf-8"))
        record = found if found["nnunetv2"] == record["nnunetv2"] else record
    print(
        "| data | spacing: nnU-Net | medseg | patch: nnU-Net | medseg | batch: nnU-Net | medseg | stages: nnU-Net | "
        "medseg | strides and kernels | normalisation: nnU-Net | medseg |"
    )
    print("|---" * 12 + "|")
    for name, fingerprint_of in all_fingerprints(given.data).items():
        is_known = given.missing and name in record["medseg"]
        if not is_known or name not in record["plans"]:
            data = fingerprint_of()
            record["medseg"][name] = summary_of_medseg(plan_of_medseg(data))
            if name not in record["plans"]:
                record["plans"][name] = summary_of_nnunet(nnunet_plans(data), data.spatial_dims)
            if given.record:
                given.record.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(row(name, record["medseg"][name], record["plans"][name]), flush=True)


if __name__ == "__main__":
    main()
