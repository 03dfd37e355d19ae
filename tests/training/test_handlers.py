"""The run handler: what a run starts from, in which order handlers act, and what it leaves."""

import json
from pathlib import Path

import pytest
import torch
from ignite.engine import Events
from training.bundle_runs import tiny_bundle
from training.test_recipes import workflow

from medseg.errors import WeightsError
from medseg.plan import read_plan
from medseg.volumes.files import file_sha256


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("handlers"))


@pytest.fixture
def weights_file(bundle, tmp_path) -> Path:
    torch.manual_seed(5)
    torch.save(read_plan(bundle / "configs" / "plan.json").create_network().state_dict(), tmp_path / "start.pt")
    return tmp_path / "start.pt"


def test_fine_tuning_starts_from_the_given_weights(bundle, tmp_path, weights_file):
    # a learning rate of 0 moves nothing, so the result is what the run started from
    given = {"max_epochs": 1, "learning_rate": 0.0, "init_weights": str(weights_file), "output_dir": str(tmp_path)}
    with pytest.warns(UserWarning, match=r"start\.pt"):
        workflow(bundle, None, **given).run()
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["settings"]["init_weights"] == "start.pt"
    assert record["settings"]["init_weights_sha256"] == file_sha256(weights_file)
    start = torch.load(weights_file, weights_only=True)
    result = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(torch.equal(result[name], value) for name, value in start.items())


def test_a_resumed_run_does_not_start_from_the_initial_weights_again(bundle, tmp_path, weights_file):
    given = {"max_epochs": 1, "output_dir": str(tmp_path)}
    workflow(bundle, None, **given).run()
    trained = torch.load(tmp_path / "model.pt", weights_only=True)
    workflow(bundle, None, **given, init_weights=str(weights_file), resume=True).run()
    again = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(torch.equal(again[name], value) for name, value in trained.items())


def test_absent_initial_weights_are_named(bundle, tmp_path):
    made = workflow(bundle, None, init_weights=str(tmp_path / "absent.pt"), output_dir=str(tmp_path))
    with pytest.raises(RuntimeError) as raised:
        made.run()
    error = raised.value
    while error.__cause__ is not None:
        error = error.__cause__
    assert isinstance(error, WeightsError)
    assert "absent.pt" in str(error)


class Recorder:
    """A handler of a user; notes what the others have done when an epoch ends."""

    def __init__(self, output_dir: Path) -> None:
        self.output_dir = output_dir
        self.found: list[set[str]] = []

    def attach(self, engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._note)

    def _note(self, engine) -> None:
        self.found.append({str(path.relative_to(self.output_dir)) for path in self.output_dir.rglob("*")})


def test_named_handlers_act_before_the_record_and_the_checkpoint_of_the_epoch(bundle, tmp_path):
    made = workflow(bundle, None, max_epochs=1, output_dir=str(tmp_path))
    recorder = Recorder(tmp_path)
    made.parser["train#named_handlers#mine"] = "$@recorder"
    made.parser["recorder"] = recorder
    made.run()
    (found,) = recorder.found
    assert "history.csv" not in found
    assert not any("checkpoint_" in name for name in found)
    assert {"history.csv", "model.pt", "training.json"} <= {path.name for path in tmp_path.iterdir()}
