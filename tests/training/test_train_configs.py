"""The training configs of all bundles: one shape, few components, and what MONAI's other programs expect of them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from bundle.tiny_bundles import BUNDLES
from monai.bundle import ConfigParser, ConfigWorkflow

BUNDLE_NAMES = sorted(file.parents[1].name for file in BUNDLES.glob("*/configs/train.json"))
MOST_TARGETS = 15
OPTIONS = {
    "dataset_dir", "output_dir", "fold", "seed", "max_epochs", "num_workers", "precision", "resume", "init_weights"
}  # fmt: skip


def read(bundle: str, *names: str) -> dict[str, Any]:
    files = [str(BUNDLES / bundle / "configs" / f"{name}.json") for name in names]
    return ConfigParser.load_config_files(files)


def paths_in(config: Any, prefix: str = "") -> set[str]:
    """Every key of a config with the keys it lies in; lists end a path."""
    if not isinstance(config, dict):
        return set()
    return {prefix + key for key in config} | {
        path for key, value in config.items() for path in paths_in(value, f"{prefix}{key}#")
    }


@pytest.mark.parametrize("bundle", BUNDLE_NAMES)
def test_a_reader_meets_few_components_of_medseg(bundle):
    text = (BUNDLES / bundle / "configs" / "train.json").read_text()
    assert len(set(re.findall(r'"_target_": "(medseg[\w.]+)"', text))) <= MOST_TARGETS


@pytest.mark.parametrize("bundle", BUNDLE_NAMES)
def test_what_a_reader_looks_for_is_at_the_top(bundle):
    config = read(bundle, "train")
    names = list(config)
    assert set(names[: names.index("plan")]) >= OPTIONS
    for name in ("batch_size", "learning_rate", "patch", "network_def", "loss"):
        assert names.index(name) < names.index("device")
    assert config["patch"] == "$@plan.patch"


def test_all_bundles_have_the_same_shape():
    def shape(bundle: str) -> set[str]:
        # the transforms, the network and the loss are a bundle's own
        own = "#.*_transforms#|^network_def#|^loss#|^trained_network#|^spacing$|^margin$"
        return {path for path in paths_in(read(bundle, "train")) if not re.search(own, path)}

    first, *others = map(shape, BUNDLE_NAMES)
    assert all(other == first for other in others)


@pytest.mark.parametrize("config", ["train", "multi_gpu_train", "evaluate", "inference"])
@pytest.mark.parametrize("bundle", BUNDLE_NAMES)
def test_every_config_has_one_entry_to_prepare_its_run(bundle, config):
    content = json.loads((BUNDLES / bundle / "configs" / f"{config}.json").read_text())
    (entry,) = content["initialize"]
    assert entry.startswith("$medseg.training.prepare_run(@output_dir")


@pytest.mark.parametrize(
    "name", ["unet2015", "plateau", "nnunet", "mapped_cases", "device_augmentation", "distillation"]
)
def test_a_recipe_is_the_same_in_every_bundle(name):
    texts = {file.read_text() for file in BUNDLES.glob(f"*/configs/recipe_{name}.json")}
    assert len(texts) == 1


def overlays() -> list[Path]:
    names = ("recipe_*.json", "multi_gpu_train.json", "evaluate.json", "paper.json")
    return sorted(file for name in names for file in BUNDLES.glob(f"*/configs/{name}"))


@pytest.mark.parametrize("file", overlays(), ids=lambda file: f"{file.parents[1].name}-{file.stem}")
def test_overlays_address_names_that_exist_and_no_list_index(file):
    config = read(file.parents[1].name, "train")
    for key in json.loads(file.read_text()):
        *parents, _ = key.split("#")
        assert not any(part.isdecimal() for part in key.split("#"))
        inner: Any = config
        for part in parents:
            inner = inner[part]
        assert isinstance(inner, dict)


@pytest.mark.parametrize("bundle", BUNDLE_NAMES)
def test_other_programs_find_lists_of_handlers_they_can_extend(bundle):
    """MONAI Label inserts a CheckpointLoader and reads `_target_` of each handler; `--tracking` appends one."""
    config = read(bundle, "train")
    for handlers in (config["train"]["handlers"], config["validate"]["handlers"]):
        assert isinstance(handlers, list)
        assert all("_target_" in handler for handler in handlers)


@pytest.mark.parametrize("bundle", BUNDLE_NAMES)
def test_experiment_tracking_reaches_the_handlers(bundle, tmp_path):
    settings = {
        "handlers_id": {
            "trainer": {"id": "train#trainer", "handlers": "train#handlers"},
            "validator": {"id": "validate#evaluator", "handlers": "validate#handlers"},
        },
        "configs": {
            "trainer": {"_target_": "StatsHandler", "name": "trainer"},
            "validator": {"_target_": "StatsHandler", "name": "validator"},
            "save_execute_config": False,
        },
    }
    workflow = ConfigWorkflow(
        workflow_type="train",
        config_file=str(BUNDLES / bundle / "configs" / "train.json"),
        logging_file=False,
        tracking=settings,
        output_dir=str(tmp_path),
    )
    assert workflow.parser["train#handlers"][-1]["name"] == "trainer"
    assert workflow.parser["validate#handlers"][-1]["name"] == "validator"
