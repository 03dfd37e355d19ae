"""The viewer of planes: one for the report and for notebooks. Its scripts and styles lie beside this file."""

from __future__ import annotations

from importlib.resources import files

# In the order a page must hold them.
SCRIPTS = ("unpack.js", "volumes.js", "plane.js", "viewer.js")


def script() -> str:
    """The viewer's scripts, which define `medseg`."""
    return "\n".join((files(__name__) / name).read_text(encoding="utf-8") for name in SCRIPTS)


def style() -> str:
    """The viewer's styles; every rule stays inside `.viewer`."""
    return (files(__name__) / "viewer.css").read_text(encoding="utf-8")


def block(id_: str, text: str) -> str:
    """An inert piece of a page that holds packed bytes."""
    return f'<script type="text/plain" id="{id_}">{text}</script>'
