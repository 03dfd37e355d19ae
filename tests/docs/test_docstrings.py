"""Docstrings of the public names: they describe parameters that exist, and begin with a sentence in plain English."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest

import medseg

PACKAGES = [name for name in medseg.__all__ if inspect.ismodule(getattr(medseg, name))]
SECTION = re.compile(r"^(?:Args|Attributes):\n((?:(?: {4}.*)?\n?)*)", re.MULTILINE)
NAME = re.compile(r"^ {4}([\w*`, ]+?)(?: \(.*?\))?:", re.MULTILINE)


def public_objects() -> Iterator[tuple[str, Any]]:
    """Return the functions, classes and public methods that the API reference shows."""
    for package in PACKAGES:
        module = getattr(medseg, package)
        for name in getattr(module, "__all__", None) or vars(module):
            value = getattr(module, name)
            if name.startswith("_") or not (inspect.isclass(value) or inspect.isfunction(value)):
                continue
            if not value.__module__.startswith(module.__name__):
                continue
            yield f"{package}.{name}", value
            if inspect.isclass(value):
                methods = {key: method for key, method in vars(value).items() if inspect.isfunction(method)}
                for key, method in methods.items():
                    is_override = any(hasattr(base, key) for base in value.__mro__[1:])
                    if not key.startswith("_") and (method.__doc__ or not is_override):
                        yield f"{package}.{name}.{key}", method


OBJECTS = dict(public_objects())


def parameters(value: Any) -> set[str]:
    """Return the names that a docstring may describe: parameters, fields, properties and attributes."""
    if not inspect.isclass(value):
        return set(inspect.signature(value).parameters)
    names = set(dir(value)) | set(getattr(value, "__annotations__", {}))
    names |= set(re.findall(r"\bself\.(\w+)", inspect.getsource(value)))
    if dataclasses.is_dataclass(value):
        names |= {field.name for field in dataclasses.fields(value)}
    try:
        return names | set(inspect.signature(value).parameters)
    except ValueError:
        return names


@pytest.mark.parametrize("name", OBJECTS)
def test_described_parameters_exist(name: str) -> None:
    text = inspect.getdoc(OBJECTS[name]) or ""
    described = {
        part.strip(" *`")
        for section in SECTION.findall(text)
        for names in NAME.findall(section)
        for part in names.split(",")
    }
    assert described <= parameters(OBJECTS[name])


@pytest.mark.parametrize("name", OBJECTS)
def test_first_lines_are_sentences(name: str) -> None:
    first = (inspect.getdoc(OBJECTS[name]) or "").partition("\n")[0]
    assert first, f"{name} has no docstring"
    assert first.endswith((".", ":")), first
    assert not re.match(r"(What|Whether|Where|How)\b", first), first
