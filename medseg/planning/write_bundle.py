"""Write a planned bundle from the package's one template."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from medseg.bundle.configs import format_json, inference_config
from medseg.bundle.train_config import copied_files, evaluate_config, format_train, template_text, train_config
from medseg.datasets import Manifest
from medseg.errors import OptionError
from medseg.plan import Plan
from medseg.planning.data_fingerprint import DataFingerprint
from medseg.planning.estimate import WorkEstimate, duration, size_text
from medseg.planning.planned_training import PlannedTraining
from medseg.versions import installed_version
from medseg.volumes import check_out_folder, replacing

SCHEMA = "https://project-monai.github.io/schema/meta_schema_20240725.json"
INTENDED_USE = "Research use only. Not a medical device; not for diagnosis or treatment."
VERSION = "0.1.0"
REFERENCES = {
    "unet_isensee2021": "F. Isensee et al. nnU-Net: a self-configuring method for deep learning-based biomedical image "
    "segmentation. Nature Methods 18 (2021). doi:10.1038/s41592-020-01008-z",
    "unet_residual_encoder": "F. Isensee et al. nnU-Net Revisited. MICCAI 2024. arXiv:2404.09556",
    "unet3d_cicek2016": "O. Cicek et al. 3D U-Net: Learning Dense Volumetric Segmentation from Sparse Annotation. "
    "MICCAI 2016. arXiv:1606.06650",
    "unetplusplus_zhou2018": "Z. Zhou et al. UNet++: A Nested U-Net Architecture for Medical Image Segmentation. DLMIA "
    "2018. arXiv:1807.10165",
    "unetr_hatamizadeh2021": "A. Hatamizadeh et al. UNETR: Transformers for 3D Medical Image Segmentation. WACV 2022. "
    "arXiv:2103.10504",
}


@dataclass(frozen=True)
class BundleContent:
    """All that a bundle is written from.

    Args:
        planned: plan, settings, reasons and warnings.
        fingerprint: of the data set.
        manifest: the data set.
        manifest_text: the YAML of its manifest.
        estimates: of preparing, training and predicting, by name.
        device: "cpu" or "cuda".
        precision: of the convolutions on that device.
    """

    planned: PlannedTraining
    fingerprint: DataFingerprint
    manifest: Manifest
    manifest_text: str
    estimates: Mapping[str, WorkEstimate]
    device: str
    precision: str


def check_new_folder(folder: Path) -> None:
    """Refuse to write a bundle into a folder that already holds something.

    Raises:
        OptionError: the folder is not empty, or cannot be written.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise OptionError(f"{folder}: the folder is not empty; give a new one with --out, or remove it")
    check_out_folder(folder)


def write_bundle(folder: Path, content: BundleContent) -> None:
    """Write all files of a bundle, atomically: the folder is complete or absent.

    Args:
        folder: a new or empty folder.
        content: what to write.

    Raises:
        OptionError: the folder is not empty.
        VolumeError: it cannot be written.
    """
    check_new_folder(folder)
    if folder.is_dir():
        folder.rmdir()
    with replacing(folder) as temporary:
        for name, text in bundle_files(content).items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


def bundle_files(content: BundleContent) -> dict[str, str]:
    """Return the text of every file of a bundle, by its path in the bundle."""
    plan, settings = content.planned.plan, content.planned.settings
    configs = {
        "plan.json": format_json(plan.to_dict()) + "\n",
        "metadata.json": format_json(metadata(content)) + "\n",
        "train.json": format_train(train_config(plan, settings)),
        "evaluate.json": format_json(evaluate_config(plan)) + "\n",
        "inference.json": format_json(inference_config(plan)) + "\n",
        "manifest.yaml": content.manifest_text,
        **copied_files(plan, settings),
    }
    licence = content.manifest.licence or "not stated by the data set"
    citations = "".join(f"  {citation}\n" for citation in content.manifest.citations)
    return {
        **{f"configs/{name}": text for name, text in configs.items()},
        "docs/README.md": readme(content),
        "docs/data_license.txt": f"Licence of the training data: {licence}\n"
        + (f"\nPlease cite:\n{citations}" if citations else ""),
        "LICENSE": template_text("LICENSE"),
    }


def metadata(content: BundleContent) -> dict[str, Any]:
    """Return the metadata.json of a planned bundle."""
    plan, manifest = content.planned.plan, content.manifest
    structures = list(plan.structures)
    predicted = plan.output_names[1:] if plan.activation == "sigmoid" else plan.output_names
    modalities = list(dict.fromkeys(channel["modality"] for channel in plan.channels))
    channels = ", ".join(channel["name"] for channel in plan.channels)
    shape = [f"{divisor}*n" for divisor in divisors(plan)]
    tensor = {"type": "image", "spatial_shape": shape, "dtype": "float32", "is_patch_data": True}
    schemes = [entry["scheme"] for entry in plan.normalization]
    inputs = {
        **tensor, "format": "magnitude", "modality": ", ".join(modalities), "num_channels": plan.in_channels,
        "value_range": [-10, 10],
        "channel_def": {
            str(n): f"{channel['name']}, {scheme}"
            for n, (channel, scheme) in enumerate(zip(plan.channels, schemes, strict=True))
        },
    }  # fmt: skip
    outputs = {
        **tensor, "format": "segmentation", "num_channels": plan.out_channels, "value_range": [-100, 100],
        "channel_def": {str(n): name for n, name in enumerate(predicted)},
    }  # fmt: skip
    packages = {package: installed_version(package) for package in ("medseg", "nibabel", "pytorch-ignite")}
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "changelog": {VERSION: "planned, not trained yet"},
        "monai_version": installed_version("monai"),
        "pytorch_version": installed_version("torch").partition("+")[0],
        "numpy_version": installed_version("numpy"),
        "required_packages_version": packages,
        "supported_apps": {},
        "name": title(plan),
        "task": f"Segmentation of {', '.join(structures[:8])}{' and others' if len(structures) > 8 else ''}",
        "description": manifest.description or f"Segmentation of {manifest.name}.",
        "authors": "unknown",
        "copyright": "the authors of the bundle",
        "data_source": manifest.source.page or manifest.source.url or manifest.name,
        "data_type": "image files",
        "image_classes": f"{plan.in_channels} channels: {channels}",
        "label_classes": ", ".join(
            f"{value} {name}" for name, value in sorted(plan.labels.items(), key=lambda i: i[1])
        ),
        "pred_classes": f"{plan.out_channels} channels of logits: {', '.join(predicted)}",
        "eval_metrics": {},
        "intended_use": INTENDED_USE,
        "references": [REFERENCES[plan.network["name"]], *manifest.citations],
        "network_data_format": {"inputs": {"image": inputs}, "outputs": {"pred": outputs}},
    }


def divisors(plan: Plan) -> list[int]:
    """Return the number by which each axis of a tile must be divisible."""
    arguments = plan.network["arguments"]
    if "strides" in arguments:
        sizes = [1] * plan.spatial_dims
        for step in arguments["strides"]:
            sizes = [size * own for size, own in zip(sizes, step, strict=True)]
        return sizes
    return [2 ** len(arguments["channels"])] * plan.spatial_dims


def title(plan: Plan) -> str:
    """Return a title for a bundle, from its name."""
    words = plan.name.removesuffix("_segmentation").replace("_", " ").strip()
    return f"{words[:1].upper()}{words[1:]} segmentation"


def readme(content: BundleContent) -> str:
    """Return the docs/README.md of a planned bundle."""
    environment = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(template_text("README.md.jinja"))
    estimates = [
        {
            "name": name, "memory": size_text(work.memory_bytes), "disk": size_text(work.disk_bytes),
            "time": "unknown" if work.seconds is None else duration(work.seconds),
        }
        for name, work in content.estimates.items()
    ]  # fmt: skip
    sentence = content.manifest.description.strip() or f"A network for {content.manifest.name}."
    return template.render(
        title=title(content.planned.plan),
        description=sentence if sentence.endswith(".") else f"{sentence}.",
        num_cases=content.fingerprint.num_cases,
        warnings=content.planned.warnings,
        facts=facts(content.fingerprint),
        decisions=[{key: _cell(text) for key, text in vars(d).items()} for d in content.planned.decisions],
        estimates=estimates,
        device="a GPU" if content.device == "cuda" else "the CPU of this machine",
        precision=content.precision,
    )


def facts(fingerprint: DataFingerprint) -> list[tuple[str, str]]:
    """Return what was measured in the data, as names and texts."""
    import numpy as np

    shapes, spacings = np.array(fingerprint.shapes), np.array(fingerprint.spacings)

    def range_of(table: Any, unit: str) -> str:
        middle = " × ".join(f"{v:.4g}" for v in np.median(table, axis=0))
        low, high = (" × ".join(f"{v:.4g}" for v in bound) for bound in (table.min(axis=0), table.max(axis=0)))
        return f"{middle} {unit} in every case" if low == high else f"median {middle} {unit} ({low} to {high})"

    rows = [
        ("channels", ", ".join(f"{name} ({modality})" for name, modality in fingerprint.channels)),
        ("size", range_of(shapes, "voxels")),
        ("voxel size", range_of(spacings, "mm") if fingerprint.has_physical_spacing else "none, pictures"),
    ]
    for name, label in list(fingerprint.labels.items())[:60]:
        rows.append((_cell(name), f"in {label.cases} cases, {label.fraction:.2%} of the voxels"))
    if len(fingerprint.labels) > 60:
        rows.append(("…", f"{len(fingerprint.labels) - 60} more labels"))
    return rows


def _cell(text: str) -> str:
    """Return a text that cannot end a cell of a Markdown table."""
    return str(text).replace("|", "\\|")


def path_from_bundle(folder: Path, target: Path) -> str:
    """Return the value of a config that finds a folder from the bundle's own, wherever the process runs."""
    try:
        relative = os.path.relpath(target.resolve(), folder.resolve())
    except ValueError:  # another drive of Windows
        return str(target.resolve())
    text = "/" + Path(relative).as_posix()
    if any(mark in text for mark in "@#%'\"\\"):  # MONAI would take them for references
        return str(target.resolve())
    return f"$@bundle_root + '{text}'"
