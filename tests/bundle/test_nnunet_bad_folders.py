"""Folders that cannot be imported are refused in one line that names the file, and nothing in them is run."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundle.nnunet_models import CASES, write_model

from medseg.bundle import import_bundle
from medseg.errors import BundleError, MedsegError, WeightsError

CASE = replace(CASES["plain"], folds=1)
CHECKPOINT = Path("fold_0") / "checkpoint_final.pth"


@pytest.fixture
def model(tmp_path) -> Path:
    return write_model(CASE, tmp_path / "model")


def refusal(model: Path, kind: type[MedsegError] = BundleError, **options: Any) -> str:
    out = model.parent / "imported"
    with pytest.raises(kind) as caught:
        import_bundle(model, out, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert not out.exists() or not any(out.iterdir())
    return message


def change(file: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def change_checkpoint(model: Path, **values: Any) -> None:
    checkpoint = torch.load(model / CHECKPOINT, weights_only=False)
    torch.save({**checkpoint, **values}, model / CHECKPOINT)


def configuration(content: dict[str, Any]) -> dict[str, Any]:
    return content["configurations"]["3d_fullres"]


class Canary:
    """Create a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("key", ["logging", "network_weights", "init_args", "extra"])
def test_pickled_objects_are_refused_and_not_run(model, tmp_path, key):
    canary = tmp_path / "canary"
    change_checkpoint(model, **{key: {"x": Canary(canary)}})
    assert "checkpoint_final.pth" in refusal(model, WeightsError)
    assert not canary.exists()


def test_a_plain_pickle_is_refused_and_not_run(model, tmp_path):
    canary = tmp_path / "canary"
    (model / CHECKPOINT).write_bytes(pickle.dumps(Canary(canary), protocol=2))
    assert "checkpoint_final.pth" in refusal(model, WeightsError)
    assert not canary.exists()


def test_checkpoints_of_numpy_1_are_read(model, tmp_path):
    file = model / CHECKPOINT
    import zipfile

    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    import_bundle(model, tmp_path / "imported")


@pytest.mark.parametrize("part", [0.3, 0.9])
def test_a_truncated_checkpoint_is_refused(model, part):
    content = (model / CHECKPOINT).read_bytes()
    (model / CHECKPOINT).write_bytes(content[: int(part * len(content))])
    assert "checkpoint_final.pth" in refusal(model, WeightsError)


def test_a_folder_without_plans_is_refused(model, tmp_path):
    (model / "plans.json").unlink()
    assert "plans.json" in refusal(model)
    (model / "dataset.json").unlink()
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "empty" in refusal(empty)


def test_a_folder_of_models_names_them(model, tmp_path):
    assert str(model) in refusal(tmp_path)


def test_a_model_of_version_1_is_refused(model):
    (model / "plans.json").rename(model / "plans.pkl")
    assert "nnU-Net 1" in refusal(model)


@pytest.mark.parametrize("key", ["configurations", "transpose_forward", "image_reader_writer"])
def test_plans_of_an_unknown_version_are_refused(model, key):
    change(model / "plans.json", lambda content: content.pop(key))
    assert key in refusal(model)


@pytest.mark.parametrize("key", ["patch_size", "resampling_fn_data", "normalization_schemes", "architecture"])
def test_configurations_of_an_unknown_version_are_refused(model, key):
    change(model / "plans.json", lambda content: configuration(content).pop(key))
    assert key in refusal(model)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda c: c.update(previous_stage="3d_lowres"), "cascade"),
        (lambda c: c["architecture"].update(network_class_name="mine.TransUNet"), "mine.TransUNet"),
        (lambda c: c["architecture"]["arch_kwargs"].update(squeeze_excitation=True), "squeeze_excitation"),
        (lambda c: c["architecture"]["arch_kwargs"].update(norm_op="torch.nn.GroupNorm"), "GroupNorm"),
        (lambda c: c["architecture"]["arch_kwargs"].update(nonlin="torch.nn.Mish"), "Mish"),
        (lambda c: c.update(preprocessor_name="MyPreprocessor"), "MyPreprocessor"),
        (lambda c: c.update(normalization_schemes=["MyNormalization"]), "MyNormalization"),
        (lambda c: c.update(resampling_fn_data="my_resampling"), "my_resampling"),
        (lambda c: c["resampling_fn_probabilities_kwargs"].update(order=3), "order 3"),
    ],
)
def test_what_cannot_be_carried_over_is_named(model, edit, named):
    change(model / "plans.json", lambda content: edit(configuration(content)))
    message = refusal(model)
    assert named in message
    assert "plans.json" in message


def test_an_unknown_trainer_is_named_and_can_be_confirmed(model, tmp_path):
    change_checkpoint(model, trainer_name="nnUNetTrainerOfMine")
    assert "--trainer nnUNetTrainerOfMine" in refusal(model)
    import_bundle(model, tmp_path / "imported", trainer="nnUNetTrainerOfMine")


def test_weights_that_do_not_fit_are_refused_with_the_first_key(model):
    change(model / "plans.json", lambda content: configuration(content)["architecture"]["arch_kwargs"].update(
        features_per_stage=[4, 8, 20]))  # fmt: skip
    message = refusal(model, WeightsError)
    assert "checkpoint_final.pth" in message
    assert "20" in message


def test_missing_folds_are_named(model):
    assert "fold_3" in refusal(model, folds=["3"])
    (model / "fold_1").mkdir()
    assert "fold_1" in refusal(model)
    assert "checkpoint_best.pth" in refusal(model, folds=["0"], checkpoint="checkpoint_best.pth")


def test_a_changed_class_map_is_refused(model):
    change(
        model / "dataset.json", lambda content: content.update(labels={"background": 0, "posterior": 1, "anterior": 2})
    )
    message = refusal(model)
    assert "dataset.json" in message
    assert "posterior" in message


def test_changed_plans_are_noted(model, tmp_path):
    change(model / "plans.json", lambda content: configuration(content).update(spacing=[2.0, 1.0, 1.0]))
    bundle = import_bundle(model, tmp_path / "imported").path
    assert "spacing" in json.loads((bundle / "models" / "model.json").read_text())["notes"][0]


def test_a_checkpoint_of_another_program_is_refused(model):
    torch.save({"state_dict": {"a": torch.zeros(2)}}, model / CHECKPOINT)
    assert "network_weights" in refusal(model, WeightsError)
    torch.save({"network_weights": {"a": torch.zeros(1).expand(10**9)}, "trainer_name": "x", "init_args": {}},
               model / CHECKPOINT)  # fmt: skip
    assert "checkpoint_final.pth" in refusal(model, WeightsError)


def test_a_folder_with_files_is_not_overwritten(model, tmp_path):
    out = tmp_path / "imported"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match="imported"):
        import_bundle(model, out)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


def test_scalars_of_numpy_are_data(model):
    change_checkpoint(model, extra=[np.float64(1), np.float32(2), np.int64(3)])
    import_bundle(model, model.parent / "imported")
