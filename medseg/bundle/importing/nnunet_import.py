"""Make a bundle of a model that nnU-Net 2 has trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medseg import weights
from medseg.bundle.folder import BundleFolder
from medseg.bundle.importing.bundle_writer import ImportedModel, readme_head, spacing_in_words, write_bundle
from medseg.bundle.importing.nnunet_folder import CHECKPOINT, NNUNetModel, dataset_number, read_nnunet_folder
from medseg.bundle.importing.nnunet_plan import ignore_label, nnunet_plan, region_values
from medseg.errors import WeightsError
from medseg.plan import Plan
from medseg.volumes.files import file_sha256

REFERENCE = (
    "F. Isensee et al. nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation. "
    "Nature Methods 18, 203-211 (2021). doi:10.1038/s41592-020-01008-z"
)


def import_nnunet(
    source: Path,
    out: Path,
    *,
    folds: Sequence[str] = (),
    checkpoint: str = CHECKPOINT,
    trainer: str | None = None,
) -> BundleFolder:
    """Write a bundle with the networks, the rules and the classes of a model folder; run nothing in it.

    Args:
        source: the folder with plans.json, dataset.json and fold_0, fold_1, ….
        out: the bundle's folder, new or empty.
        folds, checkpoint, trainer: see `read_nnunet_folder`.

    Raises:
        BundleError, WeightsError, PlanError: the folder is not such a model, or something in it cannot be carried over.
    """
    model = read_nnunet_folder(source, folds, checkpoint, trainer)
    plan = nnunet_plan(model, out.resolve().name)
    networks = []
    for name, state in model.folds.items():
        size = 4 * sum(value.numel() for value in state.values()) + 2**20
        network = plan.create_network(max_bytes=size)
        try:
            weights.load_into(network, state)
        except WeightsError as error:
            reason = str(error).removeprefix("a state dict").lstrip(": ")
            raise WeightsError(
                f"{model.files[name]}: the weights do not fit the network of plans.json: {reason}"
            ) from None
        networks.append(network.eval())
    data_set = str(model.plans.get("dataset_name", source.resolve().parent.name))
    origin = {
        "program": "nnU-Net 2",
        "folder": f"{source.resolve().parent.name}/{source.resolve().name}",
        "data_set": data_set,
        "trainer": model.trainer,
        "plans": str(model.plans.get("plans_name", "")),
        "configuration": model.configuration_name,
        "checkpoints": {
            name: {"sha256": file_sha256(file), "file": file.name, "epochs": model.epochs[name]}
            for name, file in model.files.items()
        },
        "references": [REFERENCE],
    }
    imported = ImportedModel(
        plan, networks, [f"fold_{name}" for name in model.folds], origin,
        title=f"{dataset_number(data_set)} {model.configuration_name} of nnU-Net",
        readme=_readme(model, plan, data_set),
        licence=str(model.dataset.get("licence") or model.dataset.get("license") or ""),
        ignore_label=ignore_label(model),
        notes=model.notes,
    )  # fmt: skip
    return write_bundle(imported, out)


def _readme(model: NNUNetModel, plan: Plan, data_set: str) -> str:
    """Return docs/README.md: where the model comes from, what it takes, and what was changed."""
    epochs = ", ".join(f"fold {name}: {count} epochs" for name, count in model.epochs.items())
    tile = " × ".join(str(size) for size in plan.tile)
    spacing = spacing_in_words(plan)
    channels = ", ".join(channel["name"] for channel in plan.channels)
    labels = ", ".join(f"{value} {name}" for name, value in plan.labels.items())
    regions = region_values(model)
    lines = [
        *readme_head(f"{dataset_number(data_set)}: {model.configuration_name} of nnU-Net", plan),
        f"| source | nnU-Net 2, data set {data_set}, configuration {model.configuration_name}, trainer "
        f"{model.trainer}; {epochs} |",
        f"| input | {channels}; normalisation {', '.join(str(entry['scheme']) for entry in plan.normalization)} |",
        f"| labels | {labels} |",
        *([f"| regions | {'; '.join(f'{name}: labels {values}' for name, values in regions.items())} |"]
          if regions else []),
        f"| network | `{plan.network['name']}`, {len(model.folds)} set(s) of weights |",
        f"| tile | {tile}, overlap 0.5, gaussian weights |",
        f"| spacing | {spacing}, along the network's axes |",
        f"| test-time flips | {'axes ' + str(list(plan.mirror_axes)) if plan.mirror_axes else 'none'} |",
        "",
        "## What was kept",
        "",
        "`configs/plan.json` has nnU-Net's own rules as values: the order of the axes, the crop to voxels that are not",
        "zero, the normalisation, and the resampling of image and logits. `medseg predict` repeats these steps",
        "exactly, also the blending of tiles in half precision.",
        "",
        "## What was changed",
        "",
        "- The weights were renamed to the keys of medseg's network. Their values are the same.",
        "- The heads of the deep supervision are left out, because a prediction does not use them.",
        "- The state of the optimiser is left out. A training that goes on starts with a new one.",
        "- Postprocessing that nnU-Net found after its cross-validation is not applied.",
        *[f"- {note}." for note in model.notes],
        "",
        f"Cite: {REFERENCE}",
        "",
    ]  # fmt: skip
    return "\n".join(lines)
