"""A misspelt option of `python -m monai.bundle run` is refused in one line; every other one is let through."""

import json

import pytest
from bundle.tiny_bundles import BUNDLES
from monai.bundle import ConfigParser

from medseg.training import refuse_unknown_overrides

CONFIGS = BUNDLES / "phantom_cells_segmentation" / "configs"
RUN = ["/x/site-packages/monai/bundle/__main__.py", "run"]
FILES = ["--config_file", str(CONFIGS / "train.json"), "--meta_file", str(CONFIGS / "metadata.json")]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--fodl", "2"], r"option --fodl: unknown.* did you mean --fold\?"),
        (["--max-epoch=3"], r"option --max_epoch: unknown.* did you mean --max_epochs\?"),
        (["--config_fil", "x"], r"did you mean --config_file\?"),
        (["--zzzz", "x"], r"option --zzzz: unknown; the configs have bundle_root, .*precision"),
        (["--train#trainr#amp", "True"], r"option --train#trainr#amp: there is no train#trainr in .*train\.json"),
        (["--train::handlers::99::prob", "1"], r"there is no train#handlers#99"),
    ],
)
def test_unknown_ones_end_the_run(given, says):
    with pytest.raises(SystemExit, match=says) as raised:
        refuse_unknown_overrides([*RUN, *FILES, *given])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["--fold", "2", "--max-epochs=3", "--learning_rate", "-1"],
        ["--averaged#decay", "0.9", "--train#trainer#amp", "True", "--train::random_transforms::0::prob", "1"],
        ["--run_id", "run", "--logging_file", "x", "--workflow_type", "train"],
    ],
)
def test_known_ones_pass(given):
    refuse_unknown_overrides([*RUN, *FILES, *given])


def test_every_key_of_all_laid_over_configs_is_known():
    files = [str(CONFIGS / name) for name in ("train.json", "multi_gpu_train.json")]
    refuse_unknown_overrides([*RUN, "--config_file", str(files), "--rank", "0"])
    with pytest.raises(SystemExit, match="--rank"):
        refuse_unknown_overrides([*RUN, *FILES, "--rank", "0"])


def test_an_arguments_file_is_read_as_well(tmp_path):
    arguments = tmp_path / "arguments.json"
    arguments.write_text(f'{{"config_file": "{CONFIGS / "train.json"}", "fodl": 2}}')
    with pytest.raises(SystemExit, match="--fodl"):
        refuse_unknown_overrides([*RUN, "--args_file", str(arguments)])


def test_only_the_bundle_runner_is_looked_at():
    refuse_unknown_overrides(["/usr/bin/pytest", "--fodl"])
    refuse_unknown_overrides(["/x/monai/bundle/__main__.py", "verify_metadata", "--fodl"])
    refuse_unknown_overrides([*RUN, "--fodl", "2"])  # no config to compare with: MONAI says so itself


def every_bundle() -> list[str]:
    return sorted(folder.name for folder in BUNDLES.glob("*_segmentation"))


@pytest.mark.parametrize("config", ["train", "multi_gpu_train", "evaluate"])
@pytest.mark.parametrize("bundle", every_bundle())
def test_the_bundles_ask_before_anything_else(bundle, config):
    steps = json.loads((BUNDLES / bundle / "configs" / f"{config}.json").read_text())["initialize"]
    assert steps[:3] == [
        "$medseg.training.refuse_unknown_overrides()",
        "$medseg.training.one_line_errors()",
        "$medseg.volumes.check_out_folder(@output_dir)",
    ]


@pytest.mark.parametrize("bundle", every_bundle())
def test_one_choice_of_precision_serves_training_validation_checkpoints_and_record(bundle):
    config = ConfigParser.load_config_file(str(BUNDLES / bundle / "configs" / "train.json"))
    handlers = {handler["_target_"].rpartition(".")[2]: handler for handler in config["train"]["handlers"]}
    assert config["precision_choice"]["precision"] == "@precision"
    assert [
        config["train"]["trainer"]["iteration_update"]["precision"],
        config["validate"]["evaluator"]["iteration_update"]["precision"],
        handlers["Checkpointing"]["objects"]["precision"],
        handlers["TrainingRecord"]["precision"],
    ] == 4 * ["@precision_choice"]


@pytest.mark.parametrize("config", ["train.json", "evaluate.json", "inference.json", "multi_gpu_train.json"])
def test_every_config_of_a_bundle_asks_before_it_runs(config):
    content = json.loads((CONFIGS / config).read_text())
    refused = "$medseg.training.refuse_unknown_overrides()"
    assert content.get("initialize", [refused])[0] == refused
