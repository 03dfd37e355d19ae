"""Checkpoints a training can be resumed from."""

from __future__ import annotations

import hashlib
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from ignite.engine import Engine, Events

from medseg.errors import WeightsError, first_line
from medseg.plan import Plan
from medseg.training.distributed import barrier, is_main_process
from medseg.training.iteration import FiniteSteps
from medseg.training.sampling import ProcessRandomStates
from medseg.volumes.files import set_aside
from medseg.weights.state_dict import save_state

PREFIX = "training_checkpoint_"


def checkpoint_files(directory: str | Path) -> list[Path]:
    """The checkpoints of a folder, oldest epoch first; none where there is no folder."""
    found = (file for file in Path(directory).glob(f"{PREFIX}*.pt") if file.stem.removeprefix(PREFIX).isdecimal())
    return sorted(found, key=lambda file: int(file.stem.removeprefix(PREFIX)))


def write_checkpoint(directory: Path, epoch: int, state: Mapping[str, Any], keep: int) -> Path:
    """Write the state of an epoch and then, not before, remove all but the `keep` newest.

    The file is written under another name, brought to the disk and renamed, so that at any moment of a crash `keep`
    whole checkpoints remain (fewer in the first epochs).
    """
    path = directory / f"{PREFIX}{epoch}.pt"
    save_state(dict(state), path)
    for old in checkpoint_files(directory)[:-keep]:
        old.unlink()
    for left in directory.glob(f".{PREFIX}*.partial"):  # of a training that was killed while it wrote
        left.unlink(missing_ok=True)
    return path


def read_newest(directory: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint and its content; each damaged one on the way is named in a warning.

    Returns:
        None where there is no checkpoint at all.

    Raises:
        WeightsError: there are checkpoints and every one is damaged.
    """
    files = checkpoint_files(directory)
    for file in reversed(files):
        try:
            return file, _read(file)
        except Exception as error:  # torch.load raises half a dozen kinds for one torn file
            warnings.warn(f"{file}: damaged checkpoint, trying the one before ({first_line(error)})", stacklevel=2)
    if files:
        raise WeightsError(f"{directory}: all {len(files)} checkpoints are damaged; start again without --resume True")
    return None


def _read(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()  # the checksums of all records, which torch.load does not promise to compare
    if damaged is not None:
        raise ValueError(f"checksum of {damaged} is wrong")
    return torch.load(path, map_location="cpu", weights_only=True)


WAY_OUT = "or train into another output_dir"


def training_identity(engine: Engine, objects: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data that must not change between a checkpoint and what goes on from it.

    Args:
        engine: a MONAI trainer; its loader's seed and cases are taken where it has a `SeededSampler` and a data set of
            dictionaries with a `case`.
        objects: what the checkpoint holds; their kinds are taken.

    Returns:
        `kinds`: class name by object; `seed`: None without one; `cases`: their number and a digest of their names,
        None where they have none.
    """
    loader = getattr(engine, "data_loader", None)
    return {
        "kinds": {name: type(item).__name__ for name, item in objects.items()},
        "seed": getattr(getattr(loader, "sampler", None), "seed", None),
        "cases": _cases(getattr(loader, "dataset", None)),
    }


def difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What a user changed since the checkpoint, with the way back; None where nothing did."""
    for name, kind in now["kinds"].items():
        before = then.get("kinds", {}).get(name, kind)
        if before != kind:
            return f"its {name} is a {before}, this run's a {kind}; resume with the same configs, {WAY_OUT}"
    seed = then.get("seed")
    if None not in (seed, now["seed"]) and seed != now["seed"]:
        return f"was trained with seed {seed}, now it is {now['seed']}; give --seed {seed}, {WAY_OUT}"
    cases = then.get("cases")
    if cases is not None and now["cases"] is not None and cases != now["cases"]:
        return (
            f"was trained on {cases['number']} cases, and this run's {now['cases']['number']} are not the same; give "
            f"the fold and the data it was started with, {WAY_OUT}"
        )
    return None


def _cases(dataset: Any) -> dict[str, Any] | None:
    data = getattr(getattr(dataset, "dataset", dataset), "data", None)
    if not isinstance(data, list) or not all(isinstance(item, Mapping) and "case" in item for item in data):
        return None
    names = sorted(str(item["case"]) for item in data)
    return {"number": len(names), "sha256": hashlib.sha256("\n".join(names).encode()).hexdigest()}


class Checkpointing:
    """Write the whole training state after every epoch, and pick it up again.

    A checkpoint holds the given objects, the trainer's epoch, the evaluator's best and last metrics, the random states
    of every process, the plan, and what tells the training from others (`training_identity`). It is written after all
    other handlers of the epoch, validation included. On CPU, with a fixed number of threads, a training that is killed
    and resumed ends in the same weights, bit for bit, as one that is not. See `write_checkpoint` for what a crash
    leaves and `read_newest` for damaged files. Among several processes the first one writes and all read.

    Args:
        directory: where checkpoints go, created when missing. One that holds checkpoints is renamed, not overwritten,
            where the training does not resume them.
        objects: name → object with `state_dict`, e.g. network, averaged, optimizer, lr_scheduler, scaler; loaded in
            this order.
        plan: stored with the weights, so a checkpoint says what it is a checkpoint of.
        resume: start from the newest whole checkpoint in `directory`, if there is one. `max_epochs` may have grown. The
            words of JSON, `true` and `false`, mean the same: MONAI's command line hands them on as text.
        every: epochs between checkpoints; the last epoch has one in any case.
        keep: number of checkpoints kept, ≥ 1.
        evaluator: validation engine whose best metric is kept; None for none.
    """

    def __init__(
        self,
        directory: str | Path,
        objects: Mapping[str, Any],
        plan: Plan,
        resume: bool | str = False,
        every: int = 1,
        keep: int = 2,
        evaluator: Engine | None = None,
    ) -> None:
        if every < 1 or keep < 1:
            raise ValueError(f"every and keep must be at least 1, found every={every}, keep={keep}")
        self.directory = Path(directory)
        self.objects = dict(objects)
        self.plan = plan
        self.resume = _flag(resume)
        self.every = every
        self.keep = keep
        self.evaluator = evaluator

    def attach(self, engine: Engine) -> None:
        """Load what there is to resume; save after `engine`'s epochs."""
        found = read_newest(self.directory) if self.resume else None
        if found is not None:
            self._load(engine, *found)
        epoch, iteration = engine.state.epoch, engine.state.iteration

        def start(engine: Engine) -> None:
            if engine.has_event_handler(self._save, Events.EPOCH_COMPLETED):
                return  # run once more, from where the first run ended
            # ignite begins again at 0 if nothing is left to do; put back, it goes straight to its end
            engine.state.epoch, engine.state.iteration = epoch, iteration
            if found is None and is_main_process() and checkpoint_files(self.directory):
                set_aside([Path(self.directory)])
            # registered this late to run after every other handler of the epoch's end
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)

        engine.add_event_handler(Events.STARTED, start)

    def _save(self, engine: Engine) -> None:
        epoch = engine.state.epoch
        if epoch % self.every and epoch != engine.state.max_epochs:
            return
        state = {name: item.state_dict() for name, item in self.objects.items()}
        state["trainer"] = {name: getattr(engine.state, name) for name in ("epoch", "iteration", "epoch_length")}
        state["finite_steps"] = FiniteSteps.of(engine).state_dict()
        state["evaluator"] = {} if self.evaluator is None else _metrics(self.evaluator)
        state["random"] = ProcessRandomStates().state_dict()
        state["plan"] = self.plan.to_dict()
        state["identity"] = training_identity(engine, self.objects)
        if is_main_process():
            write_checkpoint(self.directory, epoch, state, self.keep)
        barrier()

    def _load(self, engine: Engine, path: Path, state: Mapping[str, Any]) -> None:
        self._check(engine, path, state)
        for name, item in self.objects.items():
            try:
                item.load_state_dict(state[name])
            except (RuntimeError, ValueError, KeyError) as error:
                reason = first_line(error).rstrip(": ")
                raise WeightsError(
                    f"{path}: its {name} does not fit this run's ({reason}); resume with the same configs, {WAY_OUT}"
                ) from error
        engine.state.epoch, engine.state.iteration = state["trainer"]["epoch"], state["trainer"]["iteration"]
        if (wanted := engine.state.max_epochs or 0) < engine.state.epoch:
            engine.logger.warning(f"{path}: has {engine.state.epoch} epochs behind it, max_epochs is {wanted}")
        engine.state.max_epochs = max(wanted, engine.state.epoch)
        FiniteSteps.of(engine).load_state_dict(state.get("finite_steps", {}))
        if self.evaluator is not None:
            for name, value in state["evaluator"].items():
                setattr(self.evaluator.state, name, value)
        ProcessRandomStates().load_state_dict(state["random"])
        engine.logger.info(f"resumed from {path} at epoch {engine.state.epoch}")

    def _check(self, engine: Engine, path: Path, state: Mapping[str, Any]) -> None:
        absent = [name for name in (*self.objects, "trainer", "evaluator", "random", "plan") if name not in state]
        if absent:
            raise WeightsError(
                f"{path}: lacks {', '.join(absent)}, which this training needs to go on; train into another output_dir"
            )
        now, then = self.plan.to_dict(), state["plan"]
        changed = [key for key in {**now, **then} if now.get(key) != then.get(key)]
        if changed:
            raise WeightsError(
                f"{self.plan.source}: {changed[0]} differs from the plan the checkpoint was trained with; "
                "train into another output_dir, or restore the plan"
            )
        if changed_by_user := difference(state.get("identity", {}), training_identity(engine, self.objects)):
            raise WeightsError(f"{path}: {changed_by_user}")
        length = state["trainer"]["epoch_length"]
        if engine.state.epoch_length not in (None, length):
            raise WeightsError(
                f"{path}: was trained with {length} steps an epoch, now there are {engine.state.epoch_length}; "
                "restore the batch size, the data and the number of processes, or train into another output_dir"
            )


def _flag(given: bool | str) -> bool:
    if isinstance(given, str):
        if given.lower() not in ("true", "false"):
            raise ValueError(f"resume must be True or False, found {given!r}")
        return given.lower() == "true"
    return bool(given)


def _metrics(evaluator: Engine) -> dict[str, Any]:
    """Best and last metrics of a MONAI evaluator as plain numbers."""
    state = evaluator.state
    kept = {name: getattr(state, name) for name in ("best_metric", "best_metric_epoch") if hasattr(state, name)}
    plain = {name: _number(value) for name, value in kept.items()}
    metrics = {name: _number(value) for name, value in state.metrics.items()}
    return {**plain, "metrics": {name: value for name, value in metrics.items() if value is not None}}


def _number(value: Any) -> float | int | None:
    if (isinstance(value, torch.Tensor) and value.numel() == 1) or hasattr(value, "item"):
        value = value.item()
    return value if isinstance(value, int | float) else None
