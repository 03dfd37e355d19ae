"""Each recipe is an overlay of train.json: its components train, and its checkpoints resume."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigWorkflow
from training.bundle_runs import tiny_bundle

from medseg.bundle import promote
from medseg.losses import DeepSupervisionLoss, WeightedCrossEntropyLoss
from medseg.training import DeepSupervision
from medseg.training.history import read_history


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("recipes"))


def workflow(bundle: Path, recipe: str | None, **overrides: object) -> ConfigWorkflow:
    names = ["train"] if recipe is None else ["train", f"recipe_{recipe}"]
    options = {
        "bundle_root": str(bundle),
        "dataset_dir": str(bundle.parent / "data"),
        "manifest": str(bundle.parent / "manifest.yaml"),
        "output_dir": str(bundle.parent / (recipe or "plain")),
        "precision": "fp32",
        **overrides,
    }
    made = ConfigWorkflow(
        workflow_type="train",
        config_file=[str(bundle / "configs" / f"{name}.json") for name in names],
        meta_file=str(bundle / "configs" / "metadata.json"),
        logging_file=False,
        **options,
    )
    made.initialize()
    return made


def trained(bundle: Path, recipe: str, **overrides: object) -> ConfigWorkflow:
    made = workflow(bundle, recipe, **overrides)
    before = {name: value.clone() for name, value in made.parser.get_parsed_content("network").state_dict().items()}
    made.run()
    after = torch.load(bundle.parent / recipe / "model.pt", weights_only=True)
    assert after.keys() == before.keys()  # no wrapper's names, no extra heads
    assert any(not torch.equal(after[name], before[name]) for name in after)
    # without averaging the result is the network itself
    network = made.parser.get_parsed_content("network").state_dict()
    assert all(torch.equal(after[name], network[name]) for name in after)
    return made


def test_unet2015(bundle):
    made = trained(bundle, "unet2015", max_epochs=1)
    optimizer = made.parser.get_parsed_content("optimizer")
    assert isinstance(optimizer, torch.optim.SGD)
    assert (optimizer.defaults["momentum"], optimizer.param_groups[0]["lr"]) == (0.99, 0.001)
    assert isinstance(made.trainer.loss_function, WeightedCrossEntropyLoss)


def test_plateau_follows_the_validation_dice(bundle):
    made = trained(bundle, "plateau", max_epochs=2, **{"lr_scheduler#patience": 1, "lr_scheduler#threshold": 10.0})
    rows = read_history(bundle.parent / "plateau" / "history.csv")
    assert len([row for row in rows if "val_mean_dice" in row]) == 8  # four steps an epoch, each validated
    scheduler = made.parser.get_parsed_content("lr_scheduler")
    # nothing grows elevenfold: the second bad validation in a row, the 3rd, 5th and 7th of 8, lowers the rate
    assert scheduler.best == pytest.approx(rows[0]["val_mean_dice"])
    assert rows[-1]["learning_rate"] == pytest.approx(1e-5 * 0.1**3)
    resumed = workflow(bundle, "plateau", max_epochs=3, resume=True)
    resumed.run()
    assert resumed.parser.get_parsed_content("lr_scheduler").best == scheduler.best
    assert json.loads((bundle.parent / "plateau" / "training.json").read_text())["resumed_at_epoch"] == 2


def test_nnunet(bundle):
    made = trained(bundle, "nnunet", max_epochs=1)
    assert isinstance(made.trainer.network, DeepSupervision)
    assert isinstance(made.trainer.loss_function, DeepSupervisionLoss)
    assert made.trainer.optimizer.defaults["nesterov"]
    state = torch.load(bundle.parent / "nnunet" / "checkpoints" / "training_checkpoint_1.pt", weights_only=True)
    assert any(name.startswith("heads.1") for name in state["network"])  # a resumed training needs the extra heads


def test_mapped_cases_give_the_weights_of_cached_ones(bundle):
    records = []
    for recipe in (None, "mapped_cases"):
        workflow(bundle, recipe, max_epochs=1).run()
        records.append(json.loads((bundle.parent / (recipe or "plain") / "training.json").read_text()))
    assert records[0]["weights_sha256"] == records[1]["weights_sha256"]
    assert len(list((bundle.parent / "mapped_cases" / "prepared").glob("*.pt"))) == 5  # one is for validation


def test_augmentation_on_the_device(bundle):
    made = workflow(bundle, "device_augmentation", max_epochs=1)
    made.run()
    content = made.parser.get_parsed_content
    with_samples = content("train#preprocessing").transforms
    on_device = content("update").augment.transforms
    random = [type(step) for step in content("train#random_transforms").values()]
    assert [type(step) for step in on_device] == random
    assert not set(random) & {type(step) for step in with_samples}
    assert [type(step).__name__ for step in with_samples][-2:] == ["RandCropByLabeld", "SelectItemsd"]


def test_distillation_changes_the_loss_and_not_the_checkpoint(bundle):
    workflow(bundle, None, max_epochs=1).run()
    taught = shutil.copytree(bundle, bundle.parent / "teacher")
    promote(taught, bundle.parent / "plain")
    made = trained(bundle, "distillation", max_epochs=1, teachers=[str(taught)], **{"update#average_decay": 0})
    teacher = made.parser.get_parsed_content("update").teacher
    assert (len(teacher.networks), teacher.weight) == (1, 0.5)
    plain, distilled = (
        torch.load(bundle.parent / name / "checkpoints" / "training_checkpoint_1.pt", weights_only=True)
        for name in ("plain", "distillation")
    )
    assert plain["update"].keys() == distilled["update"].keys()
    rows = [read_history(bundle.parent / name / "history.csv")[0]["loss"] for name in ("plain", "distillation")]
    assert rows[0] != rows[1]
