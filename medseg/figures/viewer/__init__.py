"""The slice viewer of the report and of notebooks. Its scripts, styles and templates lie beside this file."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined

# In the order a page must hold them.
SCRIPTS = ("unpack.js", "volumes.js", "plane.js", "viewer.js")


def script() -> str:
    """Return the viewer's scripts, which define `medseg`."""
    return "\n".join((files(__name__) / name).read_text(encoding="utf-8") for name in SCRIPTS)


def style() -> str:
    """Return the viewer's styles and those of controls such as buttons, which the whole page shares."""
    return (files(__name__) / "viewer.css").read_text(encoding="utf-8")


def block(id_: str, text: str) -> str:
    """Return an inert script element that holds packed bytes."""
    return f'<script type="text/plain" id="{id_}">{text}</script>'


@cache
def templates(package: str = __name__, folder: str = ".") -> Environment:
    """Return the HTML templates of a package; every value in them is escaped unless it is marked safe."""
    return Environment(
        loader=PackageLoader(package, folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
