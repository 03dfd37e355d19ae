"""Read a config of MONAI as data: references are followed, and nothing in it is evaluated or imported.

An expression (`$…`) is never run. It is read only if it consists of literals, references, a choice between two of them
and `+`, such as `$[1.5, 1.5, 1.5] if @highres else [3.0, 3.0, 3.0]`. Every other expression is refused where its value
is needed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from medseg.errors import BundleError, first_line
from medseg.volumes.files import read_json

CONFIGS = ("configs/inference.json", "configs/inference.yaml", "configs/inference.yml")
MAX_BYTES = 2**20  # the largest config of the zoo has 20 kB
MAX_EXPRESSION = 1000
# Values that are looked at. References to lists of references could make exponentially many.
MAX_VALUES = 100_000
# An id as in `@a#b` or `@a::b`.
_REFERENCE = re.compile(r"@(\w+(?:(?:#|::)\w+)*)")
# Names of constants that configs use instead of their values.
_CONSTANTS = {
    **{f"{module}.{name}": value
       for module in ("monai.utils.CommonKeys", "monai.utils.enums.CommonKeys", "CommonKeys")
       for name, value in (("IMAGE", "image"), ("LABEL", "label"), ("PRED", "pred"))},
    **{f"{module}.{name}": name for module in ("torch", "numpy", "np") for name in ("float32", "float64")},
}  # fmt: skip


class InertConfig:
    """A config whose values can be looked up.

    Args:
        file: where it was read from.
        content: its content.
    """

    def __init__(self, file: Path, content: Mapping[str, Any]) -> None:
        self.file = file
        self.content = content
        self.values_seen = 0

    def __contains__(self, name: str) -> bool:
        return name in self.content

    def raw(self, name: str) -> Any:
        """Return a value as it is written, given its id such as `evaluator#inferer`; None if there is none."""
        value: Any = self.content
        for part in re.split("#|::", name):
            if isinstance(value, Mapping) and part in value:
                value = value[part]
            elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
                value = value[int(part)]
            else:
                return None
        return value

    def value(self, name: str) -> Any:
        """Return the plain value of an id.

        Raises:
            BundleError: there is no such id, or its value is an expression that is not read.
        """
        return self.resolved(f"@{name}", name)

    def resolved(self, value: Any, where: str, trail: tuple[str, ...] = ()) -> Any:
        """Return a value with its references replaced by what they refer to.

        Args:
            value: as written.
            where: id of the value, for messages.
            trail: ids that led here.

        Raises:
            BundleError: a reference leads nowhere or to itself, or an expression is not read.
        """
        self.values_seen += 1
        if self.values_seen > MAX_VALUES:
            raise self.error(where, f"needs more than {MAX_VALUES:,} values; correct the references")
        if isinstance(value, Mapping):
            return {key: self.resolved(each, f"{where}#{key}", trail) for key, each in value.items()}
        if isinstance(value, list):
            return [self.resolved(each, f"{where}#{number}", trail) for number, each in enumerate(value)]
        if not isinstance(value, str):
            return value
        if value.startswith("$"):
            return self._read(value, where, trail)
        if value.startswith("%"):
            raise self.error(where, f"found {value!r}, which includes another part or file; write its value there")
        match = _REFERENCE.fullmatch(value)
        return self._followed(match[1], where, trail) if match else value

    def _followed(self, name: str, where: str, trail: tuple[str, ...]) -> Any:
        if name in trail:
            raise self.error(where, f"the reference @{name} leads back to itself; correct it")
        value = self.raw(name)
        if value is None and not self._is_null(name):
            raise self.error(where, f"the reference @{name} leads nowhere; correct it")
        return self.resolved(value, name, (*trail, name))

    def _is_null(self, name: str) -> bool:
        parent, _, last = name.replace("::", "#").rpartition("#")
        found = self.raw(parent) if parent else self.content
        return isinstance(found, Mapping) and last in found

    def _read(self, text: str, where: str, trail: tuple[str, ...]) -> Any:
        names: dict[str, str] = {}

        def placeholder(match: re.Match[str]) -> str:
            names[name := f"_reference_{len(names)}"] = match[1]
            return name

        code = _REFERENCE.sub(placeholder, text[1:]).strip()
        try:
            if len(text) > MAX_EXPRESSION:
                raise ValueError
            tree = ast.parse(code, mode="eval").body
            return self._literal(tree, names, where, trail)
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
            raise self.error(
                where, f"found the expression {text[:100]!r}, expected a value; medseg runs no expression, write its "
                "value there"
            ) from None  # fmt: skip

    def _literal(self, node: ast.expr, names: Mapping[str, str], where: str, trail: tuple[str, ...]) -> Any:
        """Return the value of an expression of literals and references.

        Raises:
            ValueError: the expression contains anything else.
        """

        def read(part: ast.expr) -> Any:
            return self._literal(part, names, where, trail)

        if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float | None):
            return node.value
        if isinstance(node, ast.Name) and node.id in names:
            return self._followed(names[node.id], where, trail)
        if isinstance(node, ast.List | ast.Tuple):
            return [read(item) for item in node.elts]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -read(node.operand)
        if isinstance(node, ast.IfExp):
            test = read(node.test)
            if not isinstance(test, bool):
                raise ValueError
            return read(node.body if test else node.orelse)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            left, right = read(node.left), read(node.right)
            if type(left) is type(right) and isinstance(left, str | list):
                return left + right
        constant = _CONSTANTS.get(ast.unparse(node)) if isinstance(node, ast.Attribute) else None
        if constant is None:
            raise ValueError
        return constant

    def component(self, value: Any, where: str) -> Component:
        """Return a component `{"_target_": …, …}`, or the one that a reference leads to.

        Raises:
            BundleError: it is no component.
        """
        seen: list[str] = []
        while isinstance(value, str) and (match := _REFERENCE.fullmatch(value.removeprefix("$"))):
            where = match[1]
            if where in seen:
                raise self.error(where, "the reference leads back to itself; correct it")
            seen.append(where)
            value = self.raw(where)
        target = value.get("_target_") if isinstance(value, Mapping) else None
        if not isinstance(value, Mapping) or not isinstance(target, str):
            found = repr(value)[:100]
            raise self.error(where, f"found {found}, expected a component with _target_")
        return Component(self, where, target, {key: each for key, each in value.items() if key != "_target_"})

    def components(self, value: Any, where: str) -> list[Component]:
        """Return the components of a list, or of the list that a reference leads to. Disabled ones are left out."""
        while isinstance(value, str) and (match := _REFERENCE.fullmatch(value.removeprefix("$"))):
            where, value = match[1], self.raw(match[1])
        if not isinstance(value, list):
            raise self.error(where, f"found {str(value)[:100]!r}, expected a list of components")
        found = [self.component(item, f"{where}#{number}") for number, item in enumerate(value)]
        return [each for each in found if not each.is_disabled()]

    def error(self, where: str, reason: str) -> BundleError:
        """Return the error about a part of the config."""
        return BundleError(f"{self.file}: {where}: {reason}")


@dataclass
class Component:
    """A component of a config. Its arguments are taken one by one, so that none is overlooked.

    Args:
        config: the config.
        where: its id.
        target: its `_target_`.
        arguments: as written; `take` and `ignore` remove them.
    """

    config: InertConfig
    where: str
    target: str
    arguments: dict[str, Any] = field(repr=False)

    @property
    def name(self) -> str:
        """Name of the class: `Spacingd` for `monai.transforms.SpacingD`, and the whole target outside of MONAI."""
        module, _, short = self.target.rpartition(".")
        if module and module.partition(".")[0] != "monai":
            return self.target
        return re.sub("(D|Dict)$", "d", short)

    def is_disabled(self) -> bool:
        """Return True if `_disabled_` is true."""
        self.ignore("_desc_")
        return bool(self.take("_disabled_", False))

    def take(self, key: str, default: Any = None) -> Any:
        """Return the plain value of an argument and remove it."""
        if key not in self.arguments:
            return default
        return self.config.resolved(self.arguments.pop(key), f"{self.where}#{key}")

    def expect(self, key: str, *allowed: Any, default: Any = None) -> Any:
        """Return the plain value of an argument that must be one of several.

        Raises:
            BundleError: it is another one.
        """
        value = self.take(key, default)
        if not any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in allowed):
            choices = " or ".join(map(repr, allowed))
            raise self.error(f"{key}={value!r} cannot be carried over; expected {choices}")
        return value

    def number(self, key: str, default: float | None = None) -> float | None:
        """Return the plain value of an argument that must be a number; None is allowed if it is the default."""
        value = self.take(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float | None) or (value is None and default != value):
            raise self.error(f"{key} must be a number, found {value!r}")
        return value

    def ignore(self, *keys: str) -> None:
        """Remove arguments that have no influence on the labels, without looking at their values."""
        for key in keys:
            self.arguments.pop(key, None)

    def finish(self) -> None:
        """Refuse the arguments that are left.

        Raises:
            BundleError: an argument was neither taken nor ignored.
        """
        for key in self.arguments:
            raise self.error(f"the argument {key} cannot be carried over")

    def error(self, reason: str) -> BundleError:
        """Return the error about this component."""
        return self.config.error(self.where, f"{self.name}: {reason}")


def find_config(folder: Path) -> Path | None:
    """Return the inference config of a MONAI bundle; None if there is none."""
    return next((folder / name for name in CONFIGS if (folder / name).is_file()), None)


def read_config(file: Path) -> InertConfig:
    """Read a config in JSON or YAML.

    Raises:
        BundleError: the file cannot be read, or holds no object.
    """
    if file.stat().st_size > MAX_BYTES:
        raise BundleError(f"{file}: has {file.stat().st_size:,} bytes, more than any config; use the original file")
    if file.suffix == ".json":
        content = read_json(file, BundleError)
    else:
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, OSError, UnicodeDecodeError, RecursionError) as error:
            raise BundleError(f"{file}: not a readable YAML file ({first_line(error)})") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise BundleError(f"{file}: must hold an object; found {type(content).__name__}")
    return InertConfig(file, content)
