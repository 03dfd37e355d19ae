"""Refusing a misspelt option of `python -m monai.bundle run`, which MONAI takes for a new key that nobody reads."""

from __future__ import annotations

import ast
import difflib
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.scripts import run as run_command

from medseg.errors import OptionError

OWN_OPTIONS = frozenset(
    name for function in (run_command, ConfigWorkflow) for name in inspect.signature(function).parameters
) - {"override"}
_PARTS = ("imports", "train", "validate", "initialize", "run", "finalize")


def refuse_unknown_overrides(arguments: Sequence[str] | None = None) -> None:
    """Leave with one line when an option of the command line names nothing in the configs; for `initialize`.

    `--fodl 2` is refused, `--averaged#decay 0.9` and `--train#trainer#amp True` (an argument of a component that is
    there) are not. Does nothing where a bundle is run in another way than by `python -m monai.bundle run`.

    Args:
        arguments: of the process; None takes its own (`sys.argv`).

    Raises:
        SystemExit: an option is unknown. It leaves MONAI's engine without the hundred lines of a wrapped exception.
    """
    given = list(sys.argv if arguments is None else arguments)
    if not is_bundle_run(given):
        return
    try:
        check_overrides(dict(_options(given[2:])))
    except OptionError as error:
        raise SystemExit(str(error)) from None


def check_overrides(options: Mapping[str, str]) -> None:
    """Compare options with the configs they name in `config_file`.

    Raises:
        OptionError: an option is none of MONAI's and its key, or its parent's, is not in the configs.
    """
    arguments_file = options.get("args_file")
    stored = ConfigParser.load_config_file(arguments_file) if arguments_file else {}
    files = _file_names(options.get("config_file", stored.get("config_file", "")))
    if not files:
        return
    config = ConfigParser.load_config_files(files)
    for name in (*stored, *options):
        key = name.removeprefix("+").replace("::", "#")
        parent, _, last = key.rpartition("#")
        if name in OWN_OPTIONS or key.split("#")[0] == "_meta_" or _is_in(config, parent or last):
            continue
        known = [part for part in config if not part.startswith("_") and part not in _PARTS]
        if parent:
            raise OptionError(f"option --{name}: there is no {parent} in {', '.join(files)}")
        close = difflib.get_close_matches(key, [*known, *sorted(OWN_OPTIONS)], 1)
        hint = f"did you mean --{close[0]}?" if close else f"the configs have {', '.join(known)}"
        raise OptionError(f"option --{name}: unknown, {hint}")


def is_bundle_run(arguments: Sequence[str]) -> bool:
    program = Path(arguments[0]) if arguments else Path()
    return program.parts[-3:] == ("monai", "bundle", "__main__.py") and list(arguments[1:2]) == ["run"]


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Names and values as Fire reads them: `--name value` or `--name=value`; hyphens in a name are underscores."""
    for position, argument in enumerate(arguments):
        if argument.startswith("--") and len(argument) > 2:
            name, is_joined, value = argument[2:].partition("=")
            after = arguments[position + 1] if position + 1 < len(arguments) else ""
            yield name.replace("-", "_"), value if is_joined else after


def _file_names(given: Any) -> list[str]:
    """The config files of one name, a list, or a list in words."""
    if isinstance(given, str):
        try:
            given = ast.literal_eval(given)
        except (ValueError, SyntaxError):
            return [given] if given else []
    return [str(name) for name in given] if isinstance(given, list | tuple) else [str(given)]


def _is_in(config: Any, key: str) -> bool:
    for part in key.split("#"):
        if isinstance(config, list):
            if not part.isdecimal() or int(part) >= len(config):
                return False
            config = config[int(part)]
        elif isinstance(config, Mapping) and part in config:
            config = config[part]
        else:
            return False
    return True
