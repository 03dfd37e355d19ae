"""Check the arguments of a training, and turn them into the command of MONAI's workflow."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from medseg.datasets import Manifest, read_manifest
from medseg.errors import BundleError, OptionError, TrainingError, did_you_mean
from medseg.training.monai_run import cause_in_words
from medseg.training.run_options import check_options, typed_options
from medseg.volumes.files import read_json

# Options that `train` sets itself, and what to give instead.
_RESERVED = {
    "dataset_dir": "--data",
    "output_dir": "--out",
    "fold": "--fold",
    "bundle_root": "the folder of the bundle",
    "config_file": "--recipe",
    "resume": "the same command, which resumes by itself",
    "args_file": "the options one by one",
    "meta_file": "nothing, because the bundle's own is used",
    "logging_file": "nothing, because the bundle's own is used",
}
# Options that do not change what a started training computes.
FREE_OPTIONS = ("max_epochs", "num_workers", "val_interval", "checkpoint_interval")


@dataclass(frozen=True)
class TrainingRequest:
    """The arguments of one call of `train`, checked."""

    bundle: Path
    data: Path
    out_dir: Path
    fold: int | str
    hours: float | None
    options: dict[str, str]
    recipes: tuple[str, ...]
    gpus: int | None
    processes: int | None

    @staticmethod
    def read(
        bundle: str | Path,
        data: str | Path,
        out_dir: str | Path | None,
        fold: int | str | None,
        hours: float | None,
        options: Mapping[str, str],
        recipes: Sequence[str],
        gpus: int | None,
        processes: int | None,
    ) -> TrainingRequest:
        """Check what needs no config: folders, names and numbers."""
        bundle, data = Path(bundle), Path(data)
        train_file = bundle / "configs" / "train.json"
        if not train_file.is_file():
            raise BundleError(
                f"{train_file}: no such file; give a bundle that can be trained, such as medseg plan writes"
            )
        if not data.is_dir():
            raise OptionError(f"{data}: no such folder of data; correct --data")
        if hours is not None and not (math.isfinite(hours) and hours > 0):
            raise OptionError(f"--hours: must be a number above 0; found {hours}")
        if hours is not None and "max_epochs" in options:
            raise OptionError("max_epochs and --hours both set the number of epochs; give one of them")
        if gpus is not None and processes is not None:
            raise OptionError("--gpus and --processes both set the number of processes; give one of them")
        for name, number in (("--gpus", gpus), ("--processes", processes)):
            if number is not None and number < 1:
                raise OptionError(f"{name}: must be at least 1; found {number}")
        if gpus is not None:
            _check_gpus(gpus)
        for name in options:
            if name in _RESERVED:
                raise OptionError(f"{name}: is set by medseg train; give {_RESERVED[name]}")
        if fold is None:
            fold = read_json(train_file, BundleError).get("fold", "all")
        out_dir = Path("runs", bundle.resolve().name, f"fold_{fold}") if out_dir is None else Path(out_dir)
        files = tuple(_recipe_file(bundle, recipe) for recipe in recipes)
        request = TrainingRequest(bundle, data, out_dir, fold, hours, dict(options), files, gpus, processes)
        check_options(request.monai_options({}))
        return request

    @property
    def num_processes(self) -> int:
        """Number of processes that train together."""
        return self.gpus or self.processes or 1

    def monai_options(self, schedule: Mapping[str, str], recipes: Sequence[str] = ()) -> dict[str, str]:
        """Return all options of `python -m monai.bundle run` by name.

        Args:
            schedule: further options, which were planned.
            recipes: further configs.
        """
        configs = self.bundle / "configs"
        files = [str(configs / "train.json"), *dict.fromkeys((*self.recipes, *recipes))]
        if self.num_processes > 1:
            files.append(str(configs / "multi_gpu_train.json"))
            if not (configs / "multi_gpu_train.json").is_file():
                raise BundleError(f"{files[-1]}: no such file, but several processes need it; train with one process")
        standard = {"meta_file": configs / "metadata.json", "logging_file": configs / "logging.conf"}
        return {
            "config_file": files[0] if len(files) == 1 else repr(files),
            **{name: str(file) for name, file in standard.items() if file.is_file()},
            "bundle_root": _as_word(self.bundle),
            "dataset_dir": _as_word(self.data),
            "output_dir": _as_word(self.out_dir),
            "fold": str(self.fold),
            **schedule,
            **self.options,
        }

    def parser(self, options: Mapping[str, str]) -> ConfigParser:
        """Return the configs with all options, to read values from."""
        values = typed_options(options)
        parser = ConfigParser()
        files = values.pop("config_file")
        parser.read_config([files] if isinstance(files, str) else files)
        if "meta_file" in values:
            parser.read_meta(values.pop("meta_file"))
        values.pop("logging_file", None)
        parser.update(pairs=values)
        return parser

    def value(self, name: str, options: Mapping[str, str] | None = None) -> Any:
        """Return the value of a config's key.

        Raises:
            MedsegError: it cannot be computed; the line says why.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the run itself warns again
                return self.parser(self.monai_options({}) if options is None else options).get_parsed_content(name)
        except Exception as error:  # MONAI wraps what a component raises
            cause = cause_in_words(error)[0]
            raise TrainingError(cause) from error

    def manifest(self) -> Manifest:
        """Return the manifest of the training's data set."""
        return read_manifest(self.value("manifest"))

    def identity(self) -> dict[str, Any]:
        """Return what must be equal for a started training to be continued."""
        kept = {name: text for name, text in self.options.items() if name not in FREE_OPTIONS}
        files = [Path(file).name for file in self.recipes]
        return {
            "bundle": self.bundle.resolve().name,
            "fold": str(self.fold),
            "hours": self.hours,
            "options": kept,
            "recipes": files,
            "processes": self.num_processes,
        }

    @property
    def launcher(self) -> list[str]:
        """The beginning of a command that starts a Python module in as many processes as requested."""
        if self.num_processes == 1:
            return [sys.executable]
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={self.num_processes}"]

    @property
    def environment(self) -> dict[str, str]:
        """Variables that the processes need besides the present ones."""
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if self.processes is not None else {}
        if self.num_processes == 1 or "OMP_NUM_THREADS" in os.environ:
            return hidden
        return {**hidden, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // self.num_processes))}

    def command(self, schedule: Mapping[str, Any]) -> list[str]:
        """Return the words of the command that trains."""
        options = self.monai_options(schedule["options"], schedule["recipes"])
        words = [word for name, text in options.items() for word in (f"--{name}", text)]
        return [*self.launcher, "-m", "monai.bundle", "run", *words, "--resume", "True"]

    def in_shell(self, command: Sequence[str]) -> str:
        """Return a command as a line for a shell."""
        words = list(command)
        if words[:3] == [sys.executable, "-m", "torch.distributed.run"] and shutil.which("torchrun"):
            words[:3] = ["torchrun"]
        elif (found := shutil.which("python")) and Path(found).resolve() == Path(sys.executable).resolve():
            words[0] = "python"
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*variables, shlex.join(words)])


def _check_gpus(number: int) -> None:
    import torch

    if torch.cuda.device_count() < number:
        raise OptionError(
            f"--gpus: found {torch.cuda.device_count()} GPUs here, expected {number}; lower the number, or train on "
            "the CPU with --processes"
        )


def _recipe_file(bundle: Path, recipe: str) -> str:
    """Return the file of a recipe that is given by its name or path."""
    configs = bundle / "configs"
    for file in (configs / f"recipe_{recipe}.json", Path(recipe), configs / f"{recipe}.json"):
        if file.is_file():
            return str(file)
    known = [file.stem.removeprefix("recipe_") for file in sorted(configs.glob("recipe_*.json"))]
    hint = did_you_mean(recipe, known) or f"; {bundle.name} has {', '.join(known) or 'none'}"
    raise OptionError(f"--recipe {recipe}: no such recipe{hint}")


def _as_word(path: Path) -> str:
    """Return a path as MONAI's command line reads it as text."""
    word = str(path)
    is_text = isinstance(typed_options({"": word})[""], str) and not word.startswith(("$", "@", "%", "-"))
    return word if is_text else str(path.absolute())
