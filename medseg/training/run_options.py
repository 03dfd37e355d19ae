"""Check the options of `python -m monai.bundle run` before anything is loaded.

MONAI accepts `--fodl 2` as a new key that nothing reads, and Fire turns the text of a value into a number, a list or
None. Most wrong values would show late, in a hundred lines, or not at all.
"""

from __future__ import annotations

import ast
import inspect
import math
import pydoc
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.config_item import ConfigComponent
from monai.bundle.scripts import run as run_command

from medseg.errors import OptionError, did_you_mean
from medseg.training.iteration import PRECISIONS

MONAI_OPTIONS = frozenset(
    name for function in (run_command, ConfigWorkflow) for name in inspect.signature(function).parameters
) - {"override"}
_SECTIONS = ("imports", "train", "validate", "initialize", "run", "finalize")
# MONAI evaluates such text, and looks up the keys in it.
_EXPRESSIONS = ("$", "@", "%")
_LARGEST_SEED = 2**32 - 1
_ABSENT = object()


def refuse_wrong_options(arguments: Sequence[str]) -> None:
    """End the process with one line if an option names nothing in the configs, or its value cannot be used.

    An argument of a component that exists is accepted, e.g. `--update#average_decay 0.9` or `--train#trainer#amp True`.

    Args:
        arguments: of the process.

    Raises:
        SystemExit: an option is wrong. It passes MONAI's engine without being wrapped into other exceptions.
    """
    try:
        check_options(dict(_options(arguments[2:])))
    except OptionError as error:
        raise SystemExit(str(error)) from None


def check_options(options: Mapping[str, str]) -> None:
    """Compare options with the configs that they name in `config_file`.

    Args:
        options: text of each value by name.

    Raises:
        OptionError: an option is none of MONAI's, and the configs have neither its key nor a component that takes it;
            or its value has another type than the config's, or is outside its range.
    """
    arguments_file = options.get("args_file")
    stored = ConfigParser.load_config_file(arguments_file) if arguments_file else {}
    files = _file_names(options.get("config_file", stored.get("config_file", "")))
    if not files:
        return
    config = ConfigParser.load_config_files(files)
    for name in (*stored, *options):
        key = name.removeprefix("+").replace("::", "#")
        if name in MONAI_OPTIONS or key.split("#")[0] == "_meta_":
            continue
        _check_name(name, key, config, files)
        if name in options:
            _check_value(name, key, _as_fire_reads(options[name]), options[name], config)
        elif stored[name] is not None:  # MONAI leaves None out
            _check_value(name, key, stored[name], str(stored[name]), config)


def typed_options(options: Mapping[str, str]) -> dict[str, Any]:
    """Return the values that MONAI gets for the texts of options, by name."""
    return {name: _as_fire_reads(text) for name, text in options.items()}


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield names and values as Fire reads them: `--name value` or `--name=value`, with hyphens as underscores."""
    for position, argument in enumerate(arguments):
        if argument.startswith("--") and len(argument) > 2:
            name, is_joined, value = argument[2:].partition("=")
            after = arguments[position + 1] if position + 1 < len(arguments) else "--"
            yield name.replace("-", "_"), value if is_joined else "True" if after.startswith("--") else after


def _as_fire_reads(text: str) -> Any:
    """Return the Python value that Fire makes of an option's text."""
    from fire.parser import DefaultParseValue

    return DefaultParseValue(text)


def _file_names(given: Any) -> list[str]:
    """Return the config files of a name, a list, or the text of a list."""
    if isinstance(given, str):
        try:
            given = ast.literal_eval(given)
        except (ValueError, SyntaxError):
            return [given] if given else []
    return [str(name) for name in given] if isinstance(given, list | tuple) else [str(given)]


def _check_name(name: str, key: str, config: Mapping[str, Any], files: Sequence[str]) -> None:
    if _entry(config, key) is not _ABSENT:
        return
    parent, _, last = key.rpartition("#")
    if not parent:
        known = [part for part in config if not part.startswith("_") and part not in _SECTIONS]
        hint = did_you_mean(key, [*known, *MONAI_OPTIONS], prefix="--")
        raise OptionError(f"option --{name}: unknown{hint or '; the configs have ' + ', '.join(known)}")
    component = _entry(config, parent)
    if component is _ABSENT:
        raise OptionError(f"option --{name}: there is no {parent} in {', '.join(files)}")
    parameters = _parameters(component)
    if parameters and last not in parameters and not last.startswith("_"):
        hint = did_you_mean(last, parameters) or f"; it takes {', '.join(parameters)}"
        raise OptionError(f"option --{name}: {component['_target_']} takes no {last}{hint}")


def _entry(config: Any, key: str) -> Any:
    """Return what a key of a config holds; `_ABSENT` if there is no such key."""
    for part in key.split("#"):
        if isinstance(config, list) and part.isdecimal() and int(part) < len(config):
            config = config[int(part)]
        elif isinstance(config, Mapping) and part in config:
            config = config[part]
        else:
            return _ABSENT
    return config


def _parameters(component: Any) -> list[str]:
    """Return the arguments of a config's component; [] if it takes any, or is not known."""
    if not ConfigComponent.is_instantiable(component) or component["_target_"].startswith(_EXPRESSIONS):
        return []
    target = pydoc.locate(ConfigComponent(component, id="").resolve_module_name())
    try:
        parameters = inspect.signature(target).parameters.values()  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return []
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return []
    return [parameter.name for parameter in parameters]


def _check_value(name: str, key: str, value: Any, text: str, config: Mapping[str, Any]) -> None:
    """Check one value.

    Args:
        name: the option as given.
        key: its key in the config.
        value: as MONAI gets it.
        text: as given.
        config: the configs without options.

    Raises:
        OptionError: MONAI would not use the value, or use it wrongly.
    """
    if isinstance(value, str) and value.startswith(_EXPRESSIONS):
        return
    entry = _entry(config, key)
    while isinstance(entry, str) and entry.startswith("@"):  # the value of another key
        key = entry[1:].replace("::", "#")
        entry = _entry(config, key)
    valid, is_valid = _RULES.get(key.rpartition("#")[2], ("", None))
    if is_valid is None:
        valid, is_valid = _rule_of_type(entry)
    if value is None:
        remedy = f"must be {valid}" if valid else "write '$None' for no value"
        raise OptionError(f"option --{name}: {remedy}; found None, which MONAI ignores")
    if not is_valid(value):
        raise OptionError(f"option --{name}: must be {valid}; found {text}{_as_path(value, text, entry)}")
    if "#" in text:  # Fire already takes what follows for a comment if the rest is a word
        raise OptionError(
            f"option --{name}: MONAI changes # to ::, or drops what follows it; found {text}; use a name without #"
        )


def _as_path(value: Any, text: str, entry: Any) -> str:
    """Explain a value that Fire turned from the name of a file into something else."""
    is_path = isinstance(entry, str) and not isinstance(value, str)
    return f", which is read as {value!r}; write ./{text} if it is a file or folder" if is_path else ""


def _rule_of_type(entry: Any) -> tuple[str, Callable[[Any], bool]]:
    """Return the values that may replace an entry of a config, in words and as a test."""
    kinds: tuple[type, ...]
    if isinstance(entry, bool):
        valid, kinds = "True or False", (bool,)
    elif isinstance(entry, int | float):
        return "a finite number", _is_number
    elif isinstance(entry, str) and not entry.startswith(_EXPRESSIONS):
        valid, kinds = "text", (str,)
    elif isinstance(entry, list):
        valid, kinds = "a list", (list, tuple)
    elif isinstance(entry, Mapping):
        valid, kinds = "an object, or an expression that begins with $", (dict,)
    else:
        return "", lambda value: True
    return valid, lambda value: isinstance(value, kinds)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any, lowest: int = 0, highest: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest


def _is_size(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) in (2, 3) and all(_is_whole(size, 1) for size in value)


def _is_device(value: Any) -> bool:
    try:
        return torch.empty(0, device=value).device.type != "meta"
    except (RuntimeError, AssertionError, NotImplementedError, TypeError):  # torch has a kind for each build
        return False


_COUNT = ("a whole number of at least 1", lambda value: _is_whole(value, 1))
_FILE = ("the file with the weights", lambda value: value == "" or (isinstance(value, str) and Path(value).is_file()))
_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "max_epochs": _COUNT,
    "batch_size": _COUNT,
    "val_interval": _COUNT,
    "checkpoint_interval": _COUNT,
    "num_workers": ("a whole number of at least 0", _is_whole),
    "seed": (f"a whole number from 0 to {_LARGEST_SEED}", lambda value: _is_whole(value, 0, _LARGEST_SEED)),
    "fold": ("the number of a fold, or all", lambda value: value == "all" or _is_whole(value)),
    "learning_rate": ("a number above 0", lambda value: _is_number(value) and value > 0),
    "patch": ("a list of 2 or 3 sizes of at least 1", _is_size),
    "precision": (", ".join(PRECISIONS), lambda value: value in PRECISIONS),
    "device": ("a device of this machine, such as cpu", _is_device),
    "init_weights": _FILE,
}
