"""Options of a run: unknown names and values that cannot be used end it in one line."""

import json
import subprocess
from pathlib import Path

import pytest
from bundle.tiny_bundles import BUNDLES
from training.bundle_runs import command, environment, tiny_bundle

from medseg.training.run_options import refuse_wrong_options

CONFIGS = BUNDLES / "phantom_cells_segmentation" / "configs"
RUN = ["/x/site-packages/monai/bundle/__main__.py", "run"]
FILES = ["--config_file", str(CONFIGS / "train.json"), "--meta_file", str(CONFIGS / "metadata.json")]


@pytest.mark.parametrize(
    ("given", "facts"),
    [
        (["--fodl", "2"], r"--fodl.*--fold\?"),
        (["--max-epoch=3"], r"--max_epoch\b.*--max_epochs\?"),
        (["--config_fil", "x"], r"--config_file\?"),
        (["--zzzz", "x"], r"--zzzz.*bundle_root, .*precision"),
        (["--train#trainr#amp", "True"], r"--train#trainr#amp.*train#trainr in .*train\.json"),
        (["--train::handlers::99::prob", "1"], r"train#handlers#99"),
        (["--train#trainer#max_epoch", "2"], r"--train#trainer#max_epoch.*SupervisedTrainer.*max_epochs\?"),
        (["--train#random_transforms#noise#sigma", "2"], r"RandGaussianNoised.*std"),
    ],
)
def test_unknown_options_end_the_run_in_one_line(given, facts):
    with pytest.raises(SystemExit, match=facts) as raised:
        refuse_wrong_options([*RUN, *FILES, *given])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["--fold", "2", "--max-epochs=3", "--learning_rate", "1e-3"],
        ["--update#average_decay", "0.9", "--update#max_grad_norm", "12", "--loss#batch_dice", "True"],
        ["--train#trainer#amp", "True", "--train::random_transforms::deform::prob", "1"],
        ["--run_id", "run", "--logging_file", "x", "--workflow_type", "train"],
    ],
)
def test_known_options_pass(given):
    refuse_wrong_options([*RUN, *FILES, *given])


def test_options_of_all_overlaid_configs_are_known():
    recipe = CONFIGS / "recipe_device_augmentation.json"
    refuse_wrong_options(
        [*RUN, "--config_file", str([str(CONFIGS / "train.json"), str(recipe)]), "--update#augment#seed", "0"]
    )
    with pytest.raises(SystemExit, match="update#augment"):
        refuse_wrong_options([*RUN, *FILES, "--update#augment#seed", "0"])


def test_an_arguments_file_is_read_as_well(tmp_path):
    arguments = tmp_path / "arguments.json"
    arguments.write_text(f'{{"config_file": "{CONFIGS / "train.json"}", "fodl": 2}}')
    with pytest.raises(SystemExit, match="--fodl"):
        refuse_wrong_options([*RUN, "--args_file", str(arguments)])


def test_without_a_config_there_is_nothing_to_compare_with():
    refuse_wrong_options([*RUN, "--fodl", "2"])


@pytest.mark.parametrize(
    ("name", "text", "facts"),
    [
        ("output_dir", "2024_11_27", ["20241127", "./2024_11_27"]),
        ("output_dir", "True", ["text", "./True"]),
        ("dataset_dir", "(1,2)", ["text"]),
        ("manifest", "17", ["text", "./17"]),
        ("output_dir", "/tmp/a#b", ["/tmp/a#b", "::"]),
        ("dataset_dir", "a#b", ["a#b", "::"]),
        ("batch_size", "0", ["whole number", "at least 1"]),
        ("batch_size", "2.0", ["whole number"]),
        ("train#dataloader#batch_size", "-2", ["at least 1"]),
        ("validate::dataloader::batch_size", "0", ["at least 1"]),
        ("num_workers", "-1", ["at least 0"]),
        ("num_workers", "two", ["whole number"]),
        ("learning_rate", "fast", ["number above 0"]),
        ("learning_rate", "-0.1", ["number above 0"]),
        ("optimizer#lr", "0", ["number above 0"]),
        ("learning_rate", "1e999", ["number above 0"]),
        ("seed", "abc", ["whole number", "4294967295"]),
        ("seed", "-1", ["whole number"]),
        ("val_interval", "0", ["at least 1"]),
        ("checkpoint_interval", "0", ["at least 1"]),
        ("max_epochs", "1.5", ["whole number"]),
        ("max_epochs", "True", ["whole number"]),
        ("train#trainer#max_epochs", "0", ["at least 1"]),
        ("fold", "None", ["fold, or all"]),
        ("fold", "first", ["fold, or all"]),
        ("fold", "[1,2]", ["fold, or all"]),
        ("update#max_grad_norm", "None", ["$None"]),
        ("resume", "yes", ["True or False"]),
        ("resume", "1", ["True or False"]),
        ("precision", "fp8", ["auto", "fp32"]),
        ("device", "cuda:99", ["device of this machine"]),
        ("device", "gpu", ["device of this machine"]),
        ("patch", "[16,16,0]", ["sizes of at least 1"]),
        ("patch", "16", ["sizes of at least 1"]),
        ("init_weights", "{folder}", ["file with the weights"]),
        ("init_weights", "{folder}/absent.pt", ["file with the weights"]),
        ("update#average_decay", "much", ["finite number"]),
        ("train#random_transforms#deform#flip", "0", ["list"]),
        ("network_def", "UNet", ["object"]),
    ],
)
def test_wrong_values_end_the_run_in_one_line(tmp_path, name, text, facts):
    text = text.format(folder=tmp_path)
    for given in ([f"--{name}", text], [f"--{name}={text}"]):
        with pytest.raises(SystemExit) as raised:
            refuse_wrong_options([*RUN, *FILES, *given])
        line = str(raised.value)
        assert line.startswith(f"option --{name}: ")
        assert "\n" not in line
        assert [fact for fact in [*facts, text] if fact not in line] == []


@pytest.mark.parametrize(
    "given",
    [
        ["--output_dir", "./2024_11_27", "--fold", "all", "--seed", "0", "--num_workers", "0", "--device", "cpu"],
        ["--output_dir", "'2024_11_27'", "--batch_size", "@num_workers", "--max_epochs", "$2 + 1"],
        ["--patch", "[8, 8, 8]", "--learning_rate", "1", "--resume", "--precision", "bf16"],
        ["--resume=False", "--init_weights", "", "--update#max_grad_norm", "$None"],
        ["--network_def", "$medseg.networks.create('unet3d_cicek2016', 1, 3)", "--loss#class_weight", "[1, 2, 3]"],
        ["--plan", "%other.json#plan"],
    ],
)
def test_usable_values_pass(given):
    refuse_wrong_options([*RUN, *FILES, *given])


def test_values_of_an_arguments_file_are_checked(tmp_path):
    arguments = tmp_path / "arguments.json"
    arguments.write_text(json.dumps({"config_file": str(CONFIGS / "train.json"), "batch_size": 0}))
    with pytest.raises(SystemExit, match=r"--batch_size.*at least 1; found 0"):
        refuse_wrong_options([*RUN, "--args_file", str(arguments)])
    refuse_wrong_options([*RUN, "--args_file", str(arguments), "--batch_size", "2"])


@pytest.mark.parametrize("given", [["--fodl", "2"], ["--max_epochs", "1.5"], ["--device", "cuda:99"]])
def test_a_run_with_a_wrong_option_ends_before_it_starts(tmp_path, given):
    arguments = [*command(tiny_bundle(tmp_path), tmp_path / "out"), *given]
    done = subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert given[0] in done.stderr.splitlines()[-1]
    assert not Path(tmp_path / "out").exists()
