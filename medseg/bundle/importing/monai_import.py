"""Make a bundle of medseg from a MONAI bundle, such as those of MONAI's model zoo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from medseg import weights
from medseg.bundle.folder import BundleFolder
from medseg.bundle.importing.bundle_writer import ImportedModel, readme_head, spacing_in_words, write_bundle
from medseg.bundle.importing.monai_config import Component, InertConfig, find_config, read_config
from medseg.bundle.importing.monai_plan import monai_plan
from medseg.errors import BundleError, WeightsError
from medseg.plan import Plan
from medseg.volumes.files import file_sha256, read_json

METADATA, WEIGHTS = "configs/metadata.json", "models/model.pt"
MAX_LICENCE = 100_000  # characters


@dataclass(frozen=True, eq=False)
class MonaiBundle:
    """A bundle of MONAI.

    Args:
        path: its folder.
        config: its inference config.
        metadata: content of metadata.json.
        file: the weights.
        state: state dict of the network.
    """

    path: Path
    config: InertConfig
    metadata: Mapping[str, Any]
    file: Path
    state: Mapping[str, Tensor] = field(repr=False)


def is_monai_bundle(path: Path) -> bool:
    """Return True for the folder of a MONAI bundle, also without its inference config."""
    return find_config(path) is not None or (path / METADATA).is_file()


def import_monai(source: Path, out: Path, *, checkpoint: str | None = None) -> BundleFolder:
    """Write a bundle with the network and the rules of a MONAI bundle; run nothing in it.

    Args:
        source: the folder with `configs/inference.json` (or `.yaml`), `configs/metadata.json` and `models/model.pt`.
        out: the bundle's folder, new or empty.
        checkpoint: name of the weights in `models`; None takes those that the config loads.

    Raises:
        BundleError, WeightsError, PlanError, NetworkError: the folder is not such a bundle, or something in it cannot
            be carried over.
    """
    file = find_config(source)
    if (source / "configs" / "plan.json").is_file():
        raise BundleError(f"{source}: is a bundle of medseg already; use it as it is")
    if file is None:
        raise BundleError(f"{source}: found no configs/inference.json or .yaml; give the folder of a MONAI bundle")
    config = read_config(file)
    metadata = read_json(source / METADATA, BundleError)
    if not isinstance(metadata, dict):
        raise BundleError(f"{source / METADATA}: must hold a JSON object; found {type(metadata).__name__}")
    plan = monai_plan(config, metadata, source / METADATA, out.resolve().name)
    weights_file = _weights_file(source, config, checkpoint)
    model = MonaiBundle(source, config, metadata, weights_file, weights.read(weights_file))
    size = sum(value.numel() * max(4, value.element_size()) for value in model.state.values()) + 2**20
    network = plan.create_network(max_bytes=size, initialize=False)
    try:
        weights.load_into(network, model.state)
    except WeightsError as error:
        reason = str(error).removeprefix("a state dict").lstrip(": ")
        raise WeightsError(f"{weights_file}: the weights do not fit network_def of {file.name}: {reason}") from None
    title = str(metadata.get("name") or source.resolve().name)
    origin = {
        "program": "MONAI bundle",
        "folder": source.resolve().name,
        "name": title,
        "version": str(metadata.get("version", "")),
        "monai_version": str(metadata.get("monai_version", "")),
        "data_set": str(metadata.get("data_source", "")),
        "weights": {"file": weights_file.relative_to(source).as_posix(), "sha256": file_sha256(weights_file)},
        "references": [str(reference) for reference in metadata.get("references") or ()],
    }
    imported = ImportedModel(
        plan, [network.eval()], [weights_file.name], origin, title=title, readme=_readme(model, plan, title),
        licence=_licence(model),
    )  # fmt: skip
    return write_bundle(imported, out)


def _weights_file(source: Path, config: InertConfig, checkpoint: str | None) -> Path:
    """Return the weights that a bundle loads.

    Raises:
        BundleError: they lie outside of the bundle.
        WeightsError: there is no such file.
    """
    name = WEIGHTS if checkpoint is None else f"models/{checkpoint}"
    loader = _checkpoint_loader(config) if checkpoint is None else None
    if loader is not None and "load_path" in loader.arguments:
        name = str(loader.take("load_path"))
        root = str(config.value("bundle_root")) if "bundle_root" in config else "."
        name = name.removeprefix(f"{root}/")
    file = source / name
    if not file.resolve().is_relative_to(source.resolve()):
        raise BundleError(
            f"{file}: lies outside of the bundle; copy the weights to models/ and name them with --checkpoint"
        )
    if not file.is_file():
        hint = ""
        if (source / "large_files.yml").is_file():
            hint = "get the large files with `python -m monai.bundle download_large_files`, or "
        raise WeightsError(f"{file}: no such file; {hint}name another file of models/ with --checkpoint")
    return file


def _checkpoint_loader(config: InertConfig) -> Component | None:
    """Return the component that loads the weights: a part of the config, or one of its handlers."""
    candidates = [(key, value) for key, value in config.content.items() if isinstance(value, Mapping)]
    for key, value in config.content.items():
        if isinstance(value, list):
            candidates += [(f"{key}#{number}", item) for number, item in enumerate(value)]
    for where, value in candidates:
        target = value.get("_target_") if isinstance(value, Mapping) else None
        if isinstance(target, str) and target.rpartition(".")[2] == "CheckpointLoader":
            return config.component(value, where)
    return None


def _licence(model: MonaiBundle) -> str:
    """Return what the bundle states about its licence, with the text of its LICENSE."""
    stated = str(model.metadata.get("copyright") or "")
    file = model.path / "LICENSE"
    if not file.is_file():
        return stated
    text = file.read_text(encoding="utf-8", errors="replace")[:MAX_LICENCE].strip()
    return f"{stated}\n\nLICENSE of the source:\n\n{text}" if stated else f"\n\n{text}"


def _readme(model: MonaiBundle, plan: Plan, title: str) -> str:
    """Return docs/README.md: where the model comes from, what it takes, and what was changed."""
    tile = " × ".join(str(size) for size in plan.tile)
    spacing = spacing_in_words(plan)
    schemes = [step["scheme"] for step in plan.normalization[0].get("steps", [plan.normalization[0]])]
    restored = {
        None: "logits, interpolated linearly",
        "probabilities": "probabilities, interpolated linearly",
        "labels": "labels of the nearest voxel",
    }[plan.restoring]
    references = [f"- {reference}" for reference in model.metadata.get("references") or ()]
    lines = [
        *readme_head(title, plan),
        f"| source | MONAI bundle `{model.path.resolve().name}`, version {model.metadata.get('version', 'unknown')}, "
        f"weights {model.file.name} |",
        f"| authors | {model.metadata.get('authors', 'not stated')} |",
        f"| data | {model.metadata.get('data_source', 'not stated')} |",
        f"| input | {', '.join(channel['name'] for channel in plan.channels)}; normalisation {', '.join(schemes)} |",
        f"| labels | {', '.join(f'{value} {name}' for name, value in plan.labels.items())} |",
        f"| network | `{plan.network['name']}` |",
        f"| tile | {tile}, overlap {plan.overlap:g}, {plan.blending} weights, padding {plan.padding or 'with 0'} |",
        f"| grid | {plan.orientation}, {spacing} |",
        f"| restored to the scan | {restored} |",
        "",
        "## What was kept",
        "",
        f"The network, its weights, and the values of `{model.config.file.name}`: orientation, spacing, intensities,",
        "sliding window, activation, and the way back to the scan's grid. They are in `configs/plan.json`.",
        "",
        "## What was changed",
        "",
        "- Nothing of the source was run. Its scripts, its handlers and the expressions in its config were left out.",
        "- The network runs in fp32 on every device, also if the source asks for mixed precision on a GPU.",
        "- Segmentations are written with the scan's own header and in the smallest type that holds the labels.",
        *(["", "## References", "", *references] if references else []),
        "",
    ]
    return "\n".join(lines)
