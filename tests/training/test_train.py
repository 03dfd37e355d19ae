"""`medseg.training.train`: the same training as MONAI's command, checked first, planned once, and resumed."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from bundle.tiny_bundles import BUNDLES
from training.bundle_runs import environment, tiny_bundle

from medseg.errors import BundleError, ManifestError, MemoryLimitError, OptionError, TrainingError
from medseg.training import train, train_folds
from medseg.training import train as train_function
from medseg.training.checkpoint import checkpoint_files
from medseg.training.monai_run import ERROR_FILE, OF_ANOTHER_PROCESS
from medseg.training.run_process import run_process, sole_run
from medseg.training.time_budget import Costs
from medseg.volumes.files import staged
from medseg.weights import sha256 as weights_file_sha256

MODULE = sys.modules[train_function.__module__]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("train"))


@pytest.fixture(scope="module")
def options(bundle) -> dict[str, str]:
    return {"manifest": str(bundle.parent / "manifest.yaml"), "precision": "fp32"}


def weights_sha256(out_dir: Path) -> str:
    return json.loads((out_dir / "training.json").read_text())["weights_sha256"]


def words_of(command: str, out_dir: Path) -> list[str]:
    """Return the printed command with another output folder."""
    words = shlex.split(command)
    words[words.index("--output_dir") + 1] = str(out_dir)
    return words


def test_wrong_requests_are_refused_before_anything_is_written(bundle, options, tmp_path):
    data, out = bundle.parent / "data", tmp_path / "run"
    cases = [
        ({"data": tmp_path / "nowhere"}, OptionError, "nowhere"),
        ({"hours": 0.0}, OptionError, "--hours"),
        ({"hours": 1.0, "options": {**options, "max_epochs": "3"}}, OptionError, "max_epochs"),
        ({"gpus": 1, "processes": 2}, OptionError, "--processes"),
        ({"processes": 0}, OptionError, "--processes"),
        ({"options": {**options, "output_dir": "x"}}, OptionError, "--out"),
        ({"options": {**options, "learning_rat": "1"}}, OptionError, "learning_rate"),
        ({"options": {**options, "max_epochs": "1.5"}}, OptionError, "1.5"),
        ({"recipes": ["nnunett"]}, OptionError, "nnunet"),
        ({"fold": 7}, TrainingError, "7"),
        ({"data": tmp_path}, TrainingError, "phantom_000"),
    ]
    for changed, kind, fact in cases:
        arguments = {"data": data, "options": options, **changed}
        with pytest.raises(kind, match=fact) as refused:
            train(bundle, out_dir=out, **arguments)
        assert "\n" not in str(refused.value)
        assert not out.exists()
    with pytest.raises(BundleError, match=r"train\.json"):
        train(BUNDLES / "brain_t1_hippocampi_segmentation", data, out)


def test_more_gpus_than_there_are_are_refused(bundle, options, tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(OptionError, match="found 1 GPUs here, expected 2"):
        train(bundle, bundle.parent / "data", tmp_path / "run", options=options, gpus=2)


def test_all_folds_need_two_folds(bundle, options, tmp_path):
    manifest = yaml.safe_load((bundle.parent / "manifest.yaml").read_text())
    (tmp_path / "one.yaml").write_text(yaml.safe_dump({**manifest, "folds": {0: manifest["cases"]}, "test_fold": 0}))
    given = {**options, "manifest": str(tmp_path / "one.yaml")}
    with pytest.raises((OptionError, ManifestError), match="0 folds"):
        train_folds(bundle, bundle.parent / "data", tmp_path / "run", options=given)


def costs(**changed) -> Costs:
    given = {"num_workers": 0, "num_cases": 4, "num_validation_cases": 1, "steps_per_epoch": 4, "start_seconds": 9.0}
    given |= {"step_seconds": 0.1, "sample_seconds": 0.0, "epoch_seconds": 0.1, "checkpoint_seconds": 0.1}
    given |= {"checkpoint_interval": 1, "validation_seconds": 1.0, "validation_interval": 8, "validates_epochs": True}
    return Costs(**{**given, "end_seconds": 1.0, **changed})


@pytest.fixture
def planned(bundle, options, tmp_path, monkeypatch):
    """Plan a training from given costs, and return its schedule and what was reported, instead of running it."""

    def plan(measured: Costs, **arguments) -> tuple[dict, list[str]]:
        class PlannedError(Exception):
            pass

        def stop(request, command):
            raise PlannedError

        lines: list[str] = []
        monkeypatch.setattr(MODULE, "_probe", lambda request, options, seconds: measured)
        monkeypatch.setattr(MODULE, "_run", stop)
        arguments = {"options": options, **arguments}
        with pytest.raises(PlannedError):
            train(bundle, bundle.parent / "data", tmp_path / "run", report=lines.append, **arguments)
        return json.loads((tmp_path / "run" / "schedule.json").read_text()), lines

    return plan


def test_a_budget_sets_the_epochs_and_the_validation_interval(planned):
    schedule, lines = planned(costs(num_workers=2), hours=1.0)
    epochs, interval = (int(schedule["options"][name]) for name in ("max_epochs", "val_interval"))
    assert 0.9 * 3600 < costs().seconds(epochs, interval) <= 0.97 * 3600
    assert epochs % interval == 0
    assert schedule["options"]["num_workers"] == "2"
    command = next(line for line in lines if line.startswith("command: "))
    assert f"--max_epochs {epochs} --val_interval {interval}" in command
    assert command.endswith("--resume True")


def test_a_planned_schedule_is_kept_and_not_planned_again(planned):
    first, _ = planned(costs(), hours=1.0)
    again, lines = planned(costs(step_seconds=99.0), hours=1.0)
    assert again == first
    assert f"--max_epochs {first['max_epochs']}" in lines[-1]


def test_another_training_in_the_folder_is_refused_with_what_differs(planned, bundle, options, tmp_path):
    planned(costs(), hours=1.0)
    for changed, fact in (
        ({"fold": 0}, "fold"),
        ({"hours": 2.0}, "hours"),
        ({"options": {**options, "seed": "3"}}, "options"),
        ({"recipes": ["nnunet"]}, "recipes"),
    ):
        arguments = {"hours": 1.0, "options": options, **changed}
        with pytest.raises(TrainingError, match=f"{tmp_path / 'run'}.*{fact}"):
            train(bundle, bundle.parent / "data", tmp_path / "run", **arguments)


def test_cases_that_do_not_fit_into_memory_are_kept_in_mapped_files(planned, monkeypatch):
    monkeypatch.setattr(MODULE, "available_bytes", lambda: 10 * 10**9)
    schedule, lines = planned(costs(memory_bytes=12 * 10**9, case_bytes=8 * 10**9, disk_bytes=10**6))
    assert any("mapped files" in line for line in lines)
    assert [Path(file).name for file in schedule["recipes"]] == ["recipe_mapped_cases.json"]
    assert "recipe_mapped_cases.json" in lines[-1]


def test_a_training_that_needs_too_much_memory_or_disk_is_refused(bundle, options, tmp_path, monkeypatch):
    monkeypatch.setattr(MODULE, "available_bytes", lambda: 10 * 10**9)
    for measured, kind, fact in (
        (costs(memory_bytes=12 * 10**9), MemoryLimitError, r"12\.0 GB.*10\.0 GB"),
        (costs(disk_bytes=10**18), OptionError, "disk"),
    ):
        monkeypatch.setattr(MODULE, "_probe", lambda request, options, seconds, found=measured: found)
        with pytest.raises(kind, match=fact):
            train(bundle, bundle.parent / "data", tmp_path / "run", options=options)
        assert not (tmp_path / "run").exists()


def test_the_batch_is_divided_among_the_processes(planned):
    schedule, lines = planned(costs(), processes=2, recipes=["nnunet"])
    assert schedule["options"]["batch_size"] == "1"  # the recipe's is 2
    assert lines[-1].startswith("command: CUDA_VISIBLE_DEVICES=''")
    assert "--nproc_per_node=2" in lines[-1]
    assert lines[-1].index("recipe_nnunet.json") < lines[-1].index("multi_gpu_train.json")


def test_a_batch_that_cannot_be_divided_is_reported(planned):
    schedule, lines = planned(costs(), processes=2)
    assert "batch_size" not in schedule["options"]
    assert any(line.startswith("batch: 2 processes") and "together 2" in line for line in lines)


def test_a_failure_of_the_process_is_one_line(tmp_path):
    code = f"import os, sys; open(os.environ[{ERROR_FILE!r}], 'w').write(sys.argv[1]); sys.exit(1)"
    lines = f"{OF_ANOTHER_PROCESS}\nrun/model.pt: No space left on device\n"
    with pytest.raises(TrainingError) as failed:
        run_process([sys.executable, "-c", code, lines], {})
    assert str(failed.value) == "run/model.pt: No space left on device"
    with pytest.raises(TrainingError, match="SIGKILL"):
        run_process([sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"], {})


@pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be locked")
def test_two_runs_never_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("medseg.training.run_process._LOCK_SECONDS", 0.3)
    with sole_run(tmp_path / "run"), pytest.raises(TrainingError, match="another training"), sole_run(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()
    with sole_run(tmp_path / "run"):
        (tmp_path / "run" / "file").touch()
    assert (tmp_path / "run" / "file").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be locked")
def test_a_run_can_write_files_that_belong_together(tmp_path):
    """Both lock the folder of the run, in two processes; a thread shows what would wait for ever."""

    def write() -> None:
        with staged(tmp_path / "run" / "training.json") as temporary:
            temporary.write_text("{}")

    with sole_run(tmp_path / "run"):
        writing = threading.Thread(target=write, daemon=True)
        writing.start()
        writing.join(timeout=20)
        assert not writing.is_alive()
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["training.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be locked")
def test_a_process_of_a_run_keeps_its_lock(tmp_path, monkeypatch):
    monkeypatch.setattr("medseg.training.run_process._LOCK_SECONDS", 0.3)
    with sole_run(tmp_path / "run"):
        process = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        with pytest.raises(TrainingError, match="another training"), sole_run(tmp_path / "run"):
            pass
    finally:
        process.kill()
        process.wait()
    with sole_run(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux ends processes with their parent")
def test_a_process_ends_with_its_parent(tmp_path):
    code = """
import sys
from medseg.training.run_process import run_process
run_process([sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"], {})
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert parent.stderr is not None
    child = int(parent.stderr.readline())
    parent.kill()
    parent.wait()
    parent.stderr.close()
    end = time.monotonic() + 20
    while Path(f"/proc/{child}/stat").exists() and Path(f"/proc/{child}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < end
        time.sleep(0.05)


def wait_for_checkpoint(process: subprocess.Popen, out_dir: Path) -> bool:
    """Return True as soon as the training has written a checkpoint, and False if it ended before."""
    while process.poll() is None:
        if checkpoint_files(out_dir / "checkpoints"):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
def test_killed_and_repeated_with_a_budget_is_repeated_bit_for_bit_by_its_record(bundle, options, tmp_path):
    words = [f"{name}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "medseg", "train", str(bundle), "--data", str(bundle.parent / "data"), *words]
    command += ["--out", str(tmp_path / "killed"), "--json"]
    for hours in ("0.012", "0.05", "0.2"):  # a busy machine refuses the shorter ones, because no epoch would fit
        command = [*command, "--hours", hours]
        process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if wait_for_checkpoint(process, tmp_path / "killed"):
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    schedule = (tmp_path / "killed" / "schedule.json").read_text()
    assert not (tmp_path / "killed" / "training.json").exists()

    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    (result,) = json.loads(done.stdout)["runs"]
    assert (tmp_path / "killed" / "schedule.json").read_text() == schedule
    record = json.loads((tmp_path / "killed" / "training.json").read_text())
    changes = record["settings"]["schedule_changes"]  # a busy machine changes its speed
    assert result["epochs"] == (changes[-1][1] if changes else json.loads(schedule)["max_epochs"]) > 1
    assert record["resumed_at_epoch"]

    words = words_of(result["command"], tmp_path / "whole")
    budget = words.index("--train#handlers#0#budget_seconds")
    words[budget : budget + 2] = ["--train#handlers#0#schedule_changes", str(changes)]
    subprocess.run(words, env=environment(), check=True)
    assert result["weights_sha256"] == weights_sha256(tmp_path / "killed") == weights_sha256(tmp_path / "whole")

    # a finished training is not repeated, but can be promoted later
    again = subprocess.run([*command, "--promote"], env=environment(), capture_output=True, text=True, check=True)
    assert json.loads(again.stdout)["runs"] == [result]
    assert weights_file_sha256(bundle / "models" / "model.pt") == result["weights_sha256"]
    assert (bundle / "models" / "fingerprint.json").is_file()


@pytest.mark.slow
def test_interrupted_by_the_keyboard_it_says_how_to_go_on(bundle, options, tmp_path):
    words = [f"{name}={value}" for name, value in {**options, "num_workers": "0", "max_epochs": "500"}.items()]
    command = [sys.executable, "-m", "medseg", "train", str(bundle), "--data", str(bundle.parent / "data"), *words]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "run")],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # shells let background processes, such as this test, ignore the signal
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert wait_for_checkpoint(process, tmp_path / "run")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130
    assert b"Traceback" not in said
    last = [line for line in said.decode().splitlines() if line.startswith("medseg:")]
    assert str(tmp_path / "run") in last[0]
    assert "continues" in last[0]
    assert checkpoint_files(tmp_path / "run" / "checkpoints")
