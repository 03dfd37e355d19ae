"""Take one training step of each paper's own network, with the options of docs/training.md."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from bundle.tiny_bundles import BUNDLES
from monai.bundle import ConfigWorkflow

from medseg.datasets import generate_phantoms, read_manifest

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text().partition("## The paper's size")[2]
# the published count less what three input channels, or another number of classes, take more
PARAMETERS = {
    "hippocampus_unet3d": 19_069_955 - 2 * 32 * 27,
    "phantom_cells": 19_069_955 - 2 * 32 * 27,
    "hippocampus_unetplusplus": 26_198_636,
    "hippocampus_unetr": 92_645_619,
}


def overrides(bundle: str) -> dict[str, str]:
    """Return the options that the page gives for the bundle's paper."""
    (command,) = re.findall(rf"cd bundles/{bundle}_segmentation\n(.*?)\n(?:cd |```)", PAGE, re.DOTALL)
    words = shlex.split(command.replace("\\\n", " ").replace("\\$", "$"))
    return {name.removeprefix("--"): value for name, value in zip(words[4::2], words[5::2], strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("bundle", PARAMETERS)
def test_one_step_of_the_papers_network(bundle, tmp_path):
    generate_phantoms(tmp_path, num_cases=2, seed=5, shape=(24, 24, 16))
    manifest = yaml.safe_load(read_manifest("phantom_cells").path.read_text(encoding="utf-8"))
    manifest |= {"cases": ["phantom_000", "phantom_001"], "folds": {1: ["phantom_000"], 2: ["phantom_001"]}}
    (tmp_path / "manifest.yaml").write_text(yaml.safe_dump({**manifest, "test_fold": None}))
    small = {"patch": "[16, 16, 16]"}  # where the network does not fix the patch
    given = small | overrides(bundle) | {"dataset_dir": str(tmp_path), "output_dir": str(tmp_path / "run")}
    folder = BUNDLES / f"{bundle}_segmentation"
    made = ConfigWorkflow(
        workflow_type="train",
        config_file=str(folder / given.pop("config_file")),
        meta_file=str(folder / "configs" / "metadata.json"),
        logging_file=False,
        bundle_root=str(folder),
        **{name: yaml.safe_load(value) for name, value in given.items()},
        manifest=str(tmp_path / "manifest.yaml"),
        max_epochs=1,
        precision="fp32",
        **{"train#trainer#epoch_length": 1, "train#handlers": []},
    )
    made.initialize()
    network = made.parser.get_parsed_content("network")
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[bundle]
    before = [p.detach().clone() for p in network.parameters()]
    made.run()
    assert torch.isfinite(made.trainer.state.output["loss"])
    moved = [not torch.equal(p, q) for p, q in zip(network.parameters(), before, strict=True)]
    assert sum(moved) >= len(moved) - 2
