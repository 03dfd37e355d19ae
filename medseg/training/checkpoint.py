"""Checkpoints a training can be resumed from."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from medseg.errors import WeightsError
from medseg.plan import Plan
from medseg.training.checkpoint_files import read_newest, set_aside, write_checkpoint
from medseg.training.finite_steps import FiniteSteps
from medseg.training.identity import WAY_OUT, difference, training_identity
from medseg.training.processes import barrier, is_main_process
from medseg.training.random_states import ProcessRandomStates


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
            if found is None and is_main_process() and (earlier := set_aside(self.directory)):
                warnings.warn(f"{self.directory}: holds another training, renamed to {earlier.name}", stacklevel=2)
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
                reason = str(error).splitlines()[0].rstrip(": ")
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
