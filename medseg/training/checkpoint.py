"""Checkpoints a training can be resumed from."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver

from medseg.errors import WeightsError
from medseg.plan import Plan


class Checkpointing:
    """Write the whole training state after every epoch, and pick it up again.

    Files are written under a temporary name and renamed, and the previous one is removed afterwards, so a kill at any
    moment leaves a complete checkpoint. Each holds the given objects, the trainer, the random states and the plan.

    Args:
        directory: where checkpoints go, created when missing.
        objects: name → object with `state_dict`, e.g. network, averaged, optimizer, lr_scheduler.
        plan: stored with the weights, so a checkpoint says what it is a checkpoint of.
        resume: start from the newest checkpoint in `directory`, if there is one.
        every: epochs between checkpoints.
        keep: number of checkpoints kept.
    """

    def __init__(
        self,
        directory: str | Path,
        objects: Mapping[str, Any],
        plan: Plan,
        resume: bool = False,
        every: int = 1,
        keep: int = 2,
    ) -> None:
        self.directory = Path(directory)
        self.objects = dict(objects)
        self.plan = plan
        self.resume = resume
        self.every = every
        self.keep = keep

    def attach(self, engine: Engine) -> None:
        """Save after `engine`'s epochs; load before its first one when asked to."""
        state = {**self.objects, "trainer": engine, "random": RandomStates(), "plan": _PlanState(self.plan)}
        saver = Checkpoint(
            state,
            DiskSaver(str(self.directory), atomic=True, create_dir=True, require_empty=False),
            filename_prefix="training",
            n_saved=self.keep,
            global_step_transform=lambda trainer, _: trainer.state.epoch,
        )
        if self.resume:
            newest = latest_checkpoint(self.directory)
            if newest is not None:
                # ignite's engine refuses a smaller max_epochs and keeps the saved one: extend to what was asked for
                wanted = engine.state.max_epochs
                Checkpoint.load_objects(state, _read(newest))
                engine.state.max_epochs = max(wanted or 0, engine.state.epoch)
                engine.logger.info(f"resumed from {newest} at epoch {engine.state.epoch}")
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.every), saver)


class RandomStates:
    """The states of Python's, NumPy's and torch's global generators as one object with `state_dict`."""

    def state_dict(self) -> dict[str, Any]:
        name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002  the state MONAI draws from
        state = {
            "python": random.getstate(),
            "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached),
            "torch": torch.get_rng_state(),
        }
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state_all()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        random.setstate(_as_tuples(state["python"]))
        name, keys, position, has_gauss, cached = state["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
        torch.set_rng_state(state["torch"])
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda"])


class _PlanState:
    """The plan as an object a checkpoint can hold; loading checks that it is still the same one."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def state_dict(self) -> dict[str, Any]:
        return self.plan.to_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        changed = [key for key, value in self.plan.to_dict().items() if state.get(key) != value]
        if changed:
            raise WeightsError(
                f"{self.plan.source}: {changed[0]} differs from the plan the checkpoint was trained with; "
                "train into another output_dir, or restore the plan"
            )


def latest_checkpoint(directory: str | Path) -> Path | None:
    """The newest checkpoint in a folder, None where there is none."""
    found = sorted(Path(directory).glob("training_checkpoint_*.pt"), key=lambda file: int(file.stem.rsplit("_", 1)[1]))
    return found[-1] if found else None


def _read(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsError(
            f"{path}: not a readable checkpoint ({type(error).__name__}); delete it to resume from the one before"
        ) from error


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list | tuple) else value
