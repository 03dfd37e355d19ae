"""Train a bundle: check everything, plan the schedule, and run MONAI's workflow in a process of its own.

`train` writes no weights itself. It runs `python -m monai.bundle run` on the bundle's configs, alone or under torchrun,
and reports this command, so that anybody can run the same training without it.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from medseg.datasets import open_folds
from medseg.errors import MedsegError, MemoryLimitError, OptionError, TrainingError
from medseg.machine import available_bytes
from medseg.training.checkpoint import checkpoint_files
from medseg.training.record import RECORD_NAME, WEIGHTS_NAME
from medseg.training.run_process import LostProcessError, run_process, sole_run
from medseg.training.time_budget import Costs, Schedule, duration, plan_schedule
from medseg.training.training_request import FREE_OPTIONS, TrainingRequest
from medseg.volumes.files import check_out_folder, read_json, replacing

SCHEDULE_NAME = "schedule.json"
PROBE_SECONDS = 10.0
ALL_FOLDS = "all-folds"
_PROBE_FOLDER = ".probe"
_MAPPED = "mapped_cases"
_BUDGET = "budget_seconds"
# The cases of a training may take this share of the available memory; the run as a whole this one.
_SHARE_OF_CASES, _SHARE_OF_RUN = 0.5, 0.95


@dataclass(frozen=True)
class TrainingRun:
    """A finished training.

    Args:
        out_dir: its folder.
        command: the command that was run, to be given to a shell.
        weights: the trained weights.
        weights_sha256: their digest.
        manifest: the manifest of the data set.
        epochs: number of epochs.
        validation: metrics of the last validation, by name.
        minutes: what the last run took; a resumed training counts from there.
    """

    out_dir: Path
    command: str
    weights: Path
    weights_sha256: str
    manifest: Path
    epochs: int
    validation: dict[str, float | None]
    minutes: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}


def train(
    bundle: str | Path,
    data: str | Path,
    out_dir: str | Path | None = None,
    *,
    fold: int | str | None = None,
    hours: float | None = None,
    options: Mapping[str, str] | None = None,
    recipes: Sequence[str] = (),
    gpus: int | None = None,
    processes: int | None = None,
    report: Callable[[str], None] = print,
    probe_seconds: float = PROBE_SECONDS,
    elapsed_seconds: float = 0.0,
) -> TrainingRun:
    """Train a bundle with MONAI's workflow, `python -m monai.bundle run`.

    Options, folders and cases are checked first. A probe then runs the workflow for a few steps. It shows the memory
    and the disk space that the training needs, the number of worker processes that is fastest, and the number of epochs
    that a time budget allows. What was decided is stored in `schedule.json` in `out_dir`, so that the same call
    continues a training that was interrupted, with the same schedule, and ends in the same weights. A finished training
    is not repeated.

    Args:
        bundle: folder of the bundle.
        data: folder of the data set.
        out_dir: folder of the run; None takes `runs/<bundle>/fold_<fold>`.
        fold: fold to validate on, or "all" to train on all of them; None takes the bundle's.
        hours: time for everything, the probe included; the number of epochs is chosen to fit. None keeps the bundle's.
        options: text of further options of `python -m monai.bundle run`, by name, e.g. `{"loss#batch_dice": "True"}`.
        recipes: configs that are laid over `train.json`: `nnunet` for `configs/recipe_nnunet.json`, or a file.
        gpus: number of GPUs, one process for each.
        processes: number of processes on the CPU.
        report: gets each line about the progress.
        probe_seconds: how long the probe measures each setting, at least.
        elapsed_seconds: what is already spent of the time, e.g. by the start of the command.

    Returns:
        The finished run.

    Raises:
        BundleError: the folder is no bundle with a training.
        OptionError: an option, folder or number cannot be used.
        MemoryLimitError: the training needs more memory than there is.
        TrainingError: the training failed, or `out_dir` holds another one.
        KeyboardInterrupt: it was interrupted; the message says how to go on.
    """
    started = time.monotonic() - elapsed_seconds
    request = TrainingRequest.read(bundle, data, out_dir, fold, hours, options or {}, recipes, gpus, processes)
    check_out_folder(request.out_dir)
    with sole_run(request.out_dir):
        shutil.rmtree(request.out_dir / _PROBE_FOLDER, ignore_errors=True)  # of a command that was killed
        schedule = _stored_schedule(request)
        if schedule is None:
            schedule = _new_schedule(request, started, probe_seconds, report)
        command = request.command(schedule)
        report(f"command: {request.in_shell(command)}")
        if not _is_finished(request.out_dir, schedule):
            _run(request, command)
        run = _finished_run(request, request.in_shell(command))
        if schedule["expected_seconds"] is not None and run.epochs != int(schedule["max_epochs"]):
            report(f"time: {run.epochs} epochs instead of {schedule['max_epochs']}, because the speed changed")
        return run


def train_folds(
    bundle: str | Path,
    data: str | Path,
    out_dir: str | Path | None = None,
    *,
    hours: float | None = None,
    options: Mapping[str, str] | None = None,
    recipes: Sequence[str] = (),
    gpus: int | None = None,
    processes: int | None = None,
    report: Callable[[str], None] = print,
    probe_seconds: float = PROBE_SECONDS,
    elapsed_seconds: float = 0.0,
) -> list[TrainingRun]:
    """Train a bundle once for each fold, one after the other. The test fold is never used.

    Args:
        bundle, data, options, recipes, gpus, processes, report, probe_seconds, elapsed_seconds: see `train`.
        out_dir: each run gets a folder `fold_<number>` in it; None takes `runs/<bundle>`.
        hours: time for all folds.

    Returns:
        The finished runs, by fold.

    Raises:
        MedsegError: as `train`; the data set may also have no folds.
    """
    parent = Path("runs", Path(bundle).resolve().name) if out_dir is None else Path(out_dir)
    first = TrainingRequest.read(bundle, data, parent, None, None, options or {}, recipes, None, None)
    manifest = first.manifest()
    folds = open_folds(manifest)
    if len(folds) < 2:
        raise OptionError(
            f"{manifest.name}: has {len(folds)} folds besides the test fold, and all-folds needs at least two; "
            "train one network with --fold all"
        )
    runs = []
    for number, fold in enumerate(folds, start=1):
        report(f"fold {fold} ({number} of {len(folds)})")
        each = None if hours is None else hours / len(folds)
        run = train(
            bundle, data, parent / f"fold_{fold}", fold=fold, hours=each, options=options, recipes=recipes, gpus=gpus,
            processes=processes, report=report, probe_seconds=probe_seconds,
            elapsed_seconds=elapsed_seconds if number == 1 else 0.0,
        )  # fmt: skip
        runs.append(run)
    return runs


def _stored_schedule(request: TrainingRequest) -> dict[str, Any] | None:
    """Return the schedule of the training that was started in the run's folder, or None if there is none.

    Raises:
        TrainingError: the folder holds another training.
    """
    file = request.out_dir / SCHEDULE_NAME
    elsewhere = "give another folder with --out, or remove this one"
    if not file.is_file():
        if (request.out_dir / RECORD_NAME).is_file() or checkpoint_files(request.out_dir / "checkpoints"):
            raise TrainingError(
                f"{request.out_dir}: holds a training without {SCHEDULE_NAME}, which medseg train cannot continue; "
                f"continue it with its own command, {elsewhere}"
            )
        return None
    schedule = read_json(file, TrainingError)
    then, now = schedule["request"], request.identity()
    changed = [name for name in now if then.get(name) != now[name]]
    if changed:
        name = changed[0]
        raise TrainingError(
            f"{request.out_dir}: holds a training with another value of {name}; found {then.get(name)}, now "
            f"{now[name]}; repeat the first command to continue it, {elsewhere}"
        )
    given = {name: text for name, text in request.options.items() if name in FREE_OPTIONS}
    planned = {name: text for name, text in schedule["options"].items() if name not in given}
    max_epochs = int(given.get("max_epochs", schedule["max_epochs"]))
    return {**schedule, "options": planned, "max_epochs": max_epochs}


def _new_schedule(
    request: TrainingRequest, started: float, probe_seconds: float, report: Callable[[str], None]
) -> dict[str, Any]:
    """Check the data, probe the training, plan it and store the plan."""
    options = request.monai_options({})
    numbers = [len(request.value(f"{part}#dataset#data")) for part in ("train", "validate")]
    report(f"cases: {numbers[0]} for training, {numbers[1]} for validation; fold {request.fold}")
    planned = _batch_of_each_process(request, report)
    epochs, interval = (request.value(name) for name in ("max_epochs", "val_interval"))
    is_interval_given = "val_interval" in request.options
    recipes: list[str] = []
    costs = expected = None
    if request.hours is not None or "num_workers" not in request.options:
        costs = _probe(request, {**options, **planned}, probe_seconds)
        recipes, costs = _fit_memory(request, costs, report)
        if "num_workers" not in request.options:
            planned["num_workers"] = str(costs.num_workers)
        report(
            f"probe: {costs.step_seconds:.2f} s per step, {costs.steps_per_epoch} steps per epoch, "
            f"{costs.num_workers} worker processes; {_gigabytes(costs.memory_bytes)} of memory, "
            f"{_gigabytes(costs.disk_bytes)} on disk"
        )
        _check_disk(request.out_dir, costs)
        if request.hours is None:
            plan = Schedule(int(epochs), int(costs.validation_interval), costs.seconds(int(epochs)))
        else:
            left = 3600 * request.hours - (time.monotonic() - started)
            has_share = not is_interval_given and isinstance(epochs, int) and costs.validates_epochs
            plan = plan_schedule(costs, left, costs.validation_interval / epochs if has_share else None)
            epochs, interval = plan.max_epochs, plan.val_interval
            planned["max_epochs"] = str(epochs)
            if has_share:
                planned["val_interval"] = str(interval)
            planned |= _budget_option(request, left)
        expected = plan.seconds
        report(f"schedule: {epochs} epochs, about {duration(expected)}")
    if not is_interval_given and request.hours is None and isinstance(interval, int) and interval > epochs:
        planned["val_interval"] = str(epochs)  # the last weights are validated, at least
    schedule = {
        "request": request.identity(),
        "options": planned,
        "recipes": recipes,
        "max_epochs": int(epochs),
        "expected_seconds": None if expected is None else round(expected, 1),
        "costs": None if costs is None else costs.to_dict(),
    }
    with replacing(request.out_dir / SCHEDULE_NAME) as temporary:
        temporary.write_text(json.dumps(schedule, indent=2) + "\n", encoding="utf-8")
    return schedule


def _budget_option(request: TrainingRequest, seconds: float) -> dict[str, str]:
    """Return the option that lets the run itself keep the time, if steps get slower or faster than in the probe."""
    handlers = request.parser(request.monai_options({}))["train#handlers"]
    for number, handler in enumerate(handlers if isinstance(handlers, list) else ()):
        if str(handler.get("_target_", "")).endswith("TrainingRunHandler"):
            return {f"train#handlers#{number}#{_BUDGET}": f"{seconds:.0f}"}
    return {}


def _batch_of_each_process(request: TrainingRequest, report: Callable[[str], None]) -> dict[str, str]:
    """Divide the batch among the processes, so that several train as one would."""
    number = request.num_processes
    if number == 1 or "batch_size" in request.options:
        return {}
    batch = int(request.value("batch_size"))
    if batch % number == 0:
        return {"batch_size": str(batch // number)}
    report(
        f"batch: {number} processes cannot share a batch of {batch}, so each takes {batch}, together {number * batch}; "
        "the learning rate stays"
    )
    return {}


def _probe(request: TrainingRequest, options: Mapping[str, str], seconds: float) -> Costs:
    """Measure the training in a process of its own."""
    folder = request.out_dir / _PROBE_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    asked = {
        "options": dict(options),
        "out_dir": str(folder),
        "seconds": seconds,
        "launched": time.time(),
        "result": str(folder / "costs.json"),
    }
    try:
        (folder / "request.json").write_text(json.dumps(asked), encoding="utf-8")
        command = [*request.launcher, "-m", "medseg.training.probe", str(folder / "request.json")]
        run_process(command, {**request.environment, "TQDM_DISABLE": "1"}, is_quiet=True)
        return Costs(**read_json(folder / "costs.json", TrainingError))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fit_memory(request: TrainingRequest, costs: Costs, report: Callable[[str], None]) -> tuple[list[str], Costs]:
    """Keep the cases in mapped files if they are too large for the memory.

    Returns:
        Further recipes, and the costs with them.

    Raises:
        MemoryLimitError: the training needs more memory than there is.
    """
    available = available_bytes()
    rest = costs.memory_bytes - costs.case_bytes
    is_too_large = costs.case_bytes > _SHARE_OF_CASES * available or costs.memory_bytes > _SHARE_OF_RUN * available
    recipes = []
    if is_too_large and rest > 0 and not _uses_mapped_files(request):
        file = request.bundle / "configs" / f"recipe_{_MAPPED}.json"
        if file.is_file():
            recipes = [str(file)]
            report(f"memory: the cases take {_gigabytes(costs.case_bytes)}, so they are kept in mapped files")
            costs = replace(costs, memory_bytes=rest, disk_bytes=costs.disk_bytes + costs.case_bytes)
    if costs.memory_bytes > _SHARE_OF_RUN * available:
        raise MemoryLimitError(
            f"{request.bundle}: its training needs about {_gigabytes(costs.memory_bytes)} of memory; found "
            f"{_gigabytes(available)} free; lower batch_size, or the patch in plan.json, or close other programs"
        )
    return recipes, costs


def _uses_mapped_files(request: TrainingRequest) -> bool:
    return "MappedCases" in str(request.parser(request.monai_options({}))["train#dataset#_target_"])


def _check_disk(out_dir: Path, costs: Costs) -> None:
    folder = next(path for path in (out_dir, *out_dir.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    if costs.disk_bytes > free:
        raise OptionError(
            f"{out_dir}: the training needs {_gigabytes(costs.disk_bytes)} on disk; found {_gigabytes(free)} free; "
            "free some space, or give another folder with --out"
        )


def _run(request: TrainingRequest, command: Sequence[str]) -> None:
    try:
        run_process(command, request.environment)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; {_what_is_kept(request.out_dir)}") from None
    except TrainingError as error:
        raise TrainingError(
            f"{error}; {_what_is_kept(request.out_dir)}" if isinstance(error, LostProcessError) else str(error)
        ) from None


def _what_is_kept(out_dir: Path) -> str:
    files = checkpoint_files(out_dir / "checkpoints")
    if not files:
        return f"{out_dir} holds no checkpoint yet, so the same command starts again"
    epoch = files[-1].stem.rpartition("_")[2]
    return f"{out_dir} holds epoch {epoch}; the same command continues from there"


def _is_finished(out_dir: Path, schedule: Mapping[str, Any]) -> bool:
    if not all((out_dir / name).is_file() for name in (RECORD_NAME, WEIGHTS_NAME)):
        return False
    is_own_time = any(name.endswith(_BUDGET) for name in schedule["options"])  # it may have changed its epochs
    max_epochs = 0 if is_own_time else int(schedule["max_epochs"])
    with contextlib.suppress(MedsegError, TypeError, AttributeError):
        return int(read_json(out_dir / RECORD_NAME, TrainingError).get("epochs", 0)) >= max_epochs
    return False


def _finished_run(request: TrainingRequest, command: str) -> TrainingRun:
    out_dir, manifest = request.out_dir, request.manifest()
    record = read_json(out_dir / RECORD_NAME, TrainingError)
    return TrainingRun(
        out_dir,
        command,
        out_dir / WEIGHTS_NAME,
        record["weights_sha256"],
        Path(manifest.path or manifest.name),
        record["epochs"],
        record["validation"],
        record["minutes"],
    )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
