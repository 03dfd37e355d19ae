import hashlib
import json

import numpy as np
import pytest
import torch
from ignite.engine import Engine

from medseg.training import TrainingRecordHandler
from medseg.training.record import data_checksum, recorded_command, without_folders


def test_plain_weights_and_their_record_are_written(tmp_path, plan):
    (tmp_path / "a.nii.gz").write_bytes(b"image")
    (tmp_path / "b.nii.gz").write_bytes(b"label")
    cases = [{"case": "x", "image": [str(tmp_path / "a.nii.gz")], "label": str(tmp_path / "b.nii.gz")}]
    network = plan.create_network()
    engine = Engine(lambda engine, batch: None)
    engine.state.device = torch.device("cpu")
    TrainingRecordHandler(tmp_path / "run", network, plan, cases, {"seed": 7, "precision": "fp32"}).attach(engine)
    engine.run([0, 1, 2], max_epochs=2)

    saved = torch.load(tmp_path / "run" / "model.pt", weights_only=True)
    assert all(torch.equal(saved[name], value) for name, value in network.state_dict().items())
    first = (tmp_path / "run" / "model.pt").read_bytes()
    engine = Engine(lambda engine, batch: None)
    engine.state.device = torch.device("cpu")
    TrainingRecordHandler(tmp_path / "again", network, plan, cases, {}).attach(engine)
    engine.run([0, 1, 2], max_epochs=2)
    assert (tmp_path / "again" / "model.pt").read_bytes() == first  # equal weights are equal files
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert record["weights_sha256"] == hashlib.sha256((tmp_path / "run" / "model.pt").read_bytes()).hexdigest()
    assert (record["epochs"], record["steps"], record["settings"]["seed"]) == (2, 6, 7)
    assert (record["processes"], record["resumed_at_epoch"]) == (1, None)
    assert record["plan_digest"] == plan.digest
    lines = "".join(
        f"{n} {hashlib.sha256(b).hexdigest()}\n" for n, b in (("a.nii.gz", b"image"), ("b.nii.gz", b"label"))
    )
    assert record["data_sha256"] == hashlib.sha256(lines.encode()).hexdigest()


def test_initial_weights_are_recorded_by_their_checksum(tmp_path, plan):
    initial = tmp_path / "first" / "model.pt"
    initial.parent.mkdir()
    initial.write_bytes(b"weights")
    engine = Engine(lambda engine, batch: None)
    engine.state.device = torch.device("cpu")
    settings = {"init_weights": str(initial)}
    TrainingRecordHandler(tmp_path / "run", plan.create_network(), plan, [], settings).attach(engine)
    engine.run([0], max_epochs=1)
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert record["initial_weights_sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert str(tmp_path) not in json.dumps(record)


def test_a_metric_without_a_value_is_null(tmp_path, plan):
    evaluator = Engine(lambda engine, batch: None)
    evaluator.state.metrics = {
        "val_mean_dice": float("nan"),
        "val_mean_dice_a": np.float32(0.5),
        "curve": torch.zeros(2),
    }
    engine = Engine(lambda engine, batch: None)
    engine.state.device = torch.device("cpu")
    TrainingRecordHandler(tmp_path, plan.create_network(), plan, [], {}, evaluator).attach(engine)
    engine.run([0], max_epochs=1)
    text = (tmp_path / "training.json").read_text()
    assert json.loads(text)["validation"] == {"val_mean_dice": None, "val_mean_dice_a": 0.5}
    assert "NaN" not in text  # no JSON


def test_the_command_names_no_folder_of_the_machine():
    given = ["run", "--config_file", "['/home/me/b/configs/train.json','/home/me/b/configs/recipe_nnunet.json']"]
    given += ["--dataset_dir", "/data/hippocampus", "--output_dir=/runs/a b", "--bundle_root", "/home/me/b"]
    given += ["--fold", "all", "--init_weights", "/runs/first/model.pt", "--patch", "[32, 48, 32]", "--resume", "True"]
    assert recorded_command(given) == (
        "python -m monai.bundle run --config_file "
        "'['\"'\"'configs/train.json'\"'\"','\"'\"'configs/recipe_nnunet.json'\"'\"']' --dataset_dir DATA "
        "--output_dir=RUN --bundle_root . --fold all --init_weights model.pt --patch '[32, 48, 32]' --resume True"
    )
    assert recorded_command(["run", "--config_file", "configs/train.json"]).endswith("--config_file configs/train.json")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/runs/first/model.pt", "model.pt"),
        ("C:\\runs\\first\\model.pt", "model.pt"),
        ("../runs/model.pt", "../runs/model.pt"),
        ("1/2", "1/2"),
        ("", ""),
        (0.5, 0.5),
    ],
)
def test_only_absolute_paths_are_shortened(value, expected):
    assert without_folders(value) == expected


def test_the_data_checksum_depends_on_contents_and_not_on_folders(tmp_path):
    for folder, content in (("one", b"1"), ("two", b"1"), ("three", b"2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "scan.nii.gz").write_bytes(content)
    sums = [data_checksum([{"image": tmp_path / f / "scan.nii.gz"}]) for f in ("one", "two", "three")]
    assert sums[0] == sums[1] != sums[2]


def test_the_data_checksum_does_not_depend_on_the_order_of_scan_and_label_map(tmp_path):
    """Both often have the same name, and the order of a set of paths changes from run to run."""

    def data(images: str, labels: str) -> str:
        cases = []
        for number in range(12):
            files = {"image": tmp_path / images / f"{number}.nii.gz", "label": tmp_path / labels / f"{number}.nii.gz"}
            for role, file in files.items():
                file.parent.mkdir(exist_ok=True)
                file.write_bytes(f"{role} {number}".encode())
            cases.append(files)
        return data_checksum(cases)

    assert data("images", "labels") == data("zebra", "ant") == data("scans", "references")


def test_an_earlier_result_is_kept_under_another_name(tmp_path, plan):
    for content in (b"first", b"second"):
        (tmp_path / "model.pt").write_bytes(content)
        engine = Engine(lambda engine, batch: None)
        engine.state.device = torch.device("cpu")
        TrainingRecordHandler(tmp_path, plan.create_network(), plan, [], {}).attach(engine)
        with pytest.warns(UserWarning, match=r"model\.pt: .*model_\d"):
            engine.run([0], max_epochs=1)
    assert (tmp_path / "model_1.pt").read_bytes() == b"first"
    assert (tmp_path / "model_2.pt").read_bytes() == b"second"
    assert torch.load(tmp_path / "model.pt", weights_only=True)


@pytest.mark.parametrize("is_removed", [True, False])
def test_a_training_whose_data_was_changed_or_removed_is_finished(tmp_path, plan, is_removed):
    image = tmp_path / "a.nii.gz"
    image.write_bytes(b"image")

    def step(engine, batch):
        if is_removed:
            image.unlink(missing_ok=True)
        else:
            image.write_bytes(b"other")

    engine = Engine(step)
    engine.state.device = torch.device("cpu")
    cases = [{"case": "a", "image": str(image)}]
    TrainingRecordHandler(tmp_path / "run", plan.create_network(), plan, cases, {}).attach(engine)
    with pytest.warns(UserWarning, match=r"a\.nii\.gz: was changed or removed"):
        engine.run([0], max_epochs=1)
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert record["data_sha256"] is None
    assert record["weights_sha256"] == hashlib.sha256((tmp_path / "run" / "model.pt").read_bytes()).hexdigest()
