"""Write an imported model as a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from medseg import weights as weight_files
from medseg.bundle.configs import ENSEMBLE, format_json, inference_config, member_file
from medseg.bundle.folder import RECORD, BundleFolder
from medseg.bundle.golden import GOLDEN, ensemble_sha256, make_golden_sample, sample_as_bytes
from medseg.bundle.importing.imported_training import training_files
from medseg.errors import BundleError
from medseg.networks import Ensemble
from medseg.plan import Plan
from medseg.versions import software_versions
from medseg.volumes.files import check_out_folder, replacing

SCHEMA = "https://project-monai.github.io/schema/meta_schema_20240725.json"
NOTICE = "Research use only. Not a medical device; not for diagnosis or treatment."


@dataclass(frozen=True, eq=False)
class ImportedModel:
    """A model of another program, translated.

    Args:
        plan: its plan.
        networks: the networks with their weights; several are an ensemble.
        member_names: name of each network in its source, e.g. `fold_0`.
        origin: facts about the source for models/model.json.
        title: of the documentation.
        readme: text of docs/README.md.
        licence: what the source states about its licence; "" if nothing.
        ignore_label: value of voxels without annotation in label maps; None if there is none.
        notes: what a user should know, one line each.
    """

    plan: Plan
    networks: Sequence[nn.Module] = field(repr=False)
    member_names: Sequence[str]
    origin: Mapping[str, Any]
    title: str
    readme: str
    licence: str = ""
    ignore_label: int | None = None
    notes: Sequence[str] = ()


def write_bundle(model: ImportedModel, out: Path) -> BundleFolder:
    """Write a bundle: configs, weights, golden sample and documentation.

    Args:
        model: the model.
        out: folder of the bundle, which must not exist or be empty.

    Raises:
        BundleError: the folder contains something.
        VolumeError: a file cannot be written.
    """
    check_out_folder(out)
    if out.is_dir() and any(out.iterdir()):
        raise BundleError(f"{out}: contains files already; give an empty or a new folder with --out")
    if out.is_dir():
        out.rmdir()
    with replacing(out) as temporary:
        _write_all(model, temporary)
    return BundleFolder(out)


def _write_all(model: ImportedModel, out: Path) -> None:
    for part in ("configs", "models", "docs"):
        (out / part).mkdir(parents=True, exist_ok=True)
    members = _write_weights(model, out)
    digests = [each["weights_sha256"] for each in members]
    record = {
        "bundle": model.plan.name,
        "plan_digest": model.plan.digest,
        "weights_sha256": digests[0],
        "imported": dict(model.origin),
        "notes": list(model.notes),
        "versions": software_versions(),
    }
    configs: dict[str, Any] = {
        "configs/plan.json": model.plan.to_dict(),
        "configs/metadata.json": _metadata(model),
        "configs/inference.json": inference_config(model.plan, len(members)),
        RECORD: record,
        **({ENSEMBLE: {"members": members}} if len(members) > 1 else {}),
    }
    for name, content in configs.items():
        _write(out / name, format_json(content) + "\n")
    for name, text in training_files(model.plan).items():
        _write(out / "configs" / name, text)
    _write(out / "docs" / "README.md", model.readme)
    _write(out / "LICENSE", _licence(model))
    network = model.networks[0] if len(model.networks) == 1 else Ensemble(model.networks)
    sample = make_golden_sample(network.eval(), model.plan, ensemble_sha256(digests))
    (out / GOLDEN).write_bytes(sample_as_bytes(sample))


def _write_weights(model: ImportedModel, out: Path) -> list[dict[str, str]]:
    """Write the weights of every network and return their names in the bundle and digests."""
    members = []
    for number, (network, source) in enumerate(zip(model.networks, model.member_names, strict=True), start=1):
        path = out / member_file(number)
        members.append({"file": path.name, "weights_sha256": weight_files.write(path, network), "source": source})
    return members


def _metadata(model: ImportedModel) -> dict[str, Any]:
    from monai import __version__ as monai_version
    from numpy import __version__ as numpy_version
    from torch import __version__ as torch_version

    plan, versions = model.plan, software_versions()
    sizes = {"spatial_shape": [str(size) for size in plan.tile], "dtype": "float32", "is_patch_data": True}
    image = {
        "type": "image", "format": "magnitude", "modality": str(plan.channels[0]["modality"]),
        "num_channels": plan.in_channels, **sizes, "value_range": [-10, 10],
        "channel_def": {str(number): channel["name"] for number, channel in enumerate(plan.channels)},
    }  # fmt: skip
    names = plan.output_names if plan.activation == "softmax" else plan.output_names[1:]
    pred = {
        "type": "image", "format": "segmentation", "num_channels": plan.out_channels, **sizes,
        "value_range": [-100, 100], "channel_def": {str(number): name for number, name in enumerate(names)},
    }  # fmt: skip
    return {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": f"imported from {model.origin['program']}"},
        "monai_version": monai_version,
        "pytorch_version": torch_version.partition("+")[0],
        "numpy_version": numpy_version,
        "required_packages_version": {"medseg": versions["medseg"]},
        "supported_apps": {},
        "name": model.title,
        "task": plan.description,
        "description": plan.description,
        "authors": "see docs/README.md",
        "copyright": "that of the imported weights; see LICENSE",
        "data_source": str(model.origin.get("data_set", "")),
        "data_type": "nifti",
        "image_classes": ", ".join(channel["name"] for channel in plan.channels),
        "label_classes": ", ".join(f"{value} {name}" for name, value in plan.labels.items()),
        "pred_classes": f"{plan.out_channels} channels of logits",
        "eval_metrics": {},
        "intended_use": NOTICE,
        "references": list(model.origin.get("references", ())),
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred}},
    }


def _licence(model: ImportedModel) -> str:
    stated = f"The source states: {model.licence}" if model.licence else "The source states no licence."
    return (
        f"The weights in this bundle were imported from {model.origin['program']} ({model.origin['folder']}).\n"
        f"Their licence is that of their authors. {stated}\n"
    )


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def readme_head(title: str, plan: Plan) -> list[str]:
    """Return the first lines of an imported bundle's documentation: title, description and command."""
    return [
        f"# {title}",
        "",
        f"{plan.description.rstrip('.')}. Research use only. Not a medical device; not for diagnosis or treatment.",
        "",
        "```sh",
        f"medseg predict {plan.name} scans/ --out predictions",
        "```",
        "",
        "| | |",
        "|---|---|",
    ]


def spacing_in_words(plan: Plan) -> str:
    """Return the voxel size of the network's input for the documentation."""
    return "that of the scan" if plan.spacing is None else " × ".join(f"{size:g}" for size in plan.spacing) + " mm"
