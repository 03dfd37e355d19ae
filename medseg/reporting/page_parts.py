"""Parts that every page of medseg shares: the frame, the styles, and the choice of colours."""

from __future__ import annotations

from importlib.resources import files

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from medseg.figures import viewer


def environment(package: str = "medseg.reporting", folder: str = "page") -> Environment:
    """Return the templates of a package. They can extend `base.html` and import `macros.html` of this one.

    Every value in them is escaped unless it is marked safe.

    Args:
        package: package with templates of its own.
        folder: its folder of templates.
    """
    loaders = [PackageLoader(package, folder), PackageLoader("medseg.reporting", "page")]
    made = Environment(
        loader=ChoiceLoader(loaders), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters["with_code"] = with_code
    return made


def with_code(text: str) -> Markup:
    """Escape a text and mark its `backticked` parts as code."""
    parts = text.split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if number % 2 else escape(part) for number, part in enumerate(parts)
    )


def style() -> str:
    """Return the styles of the page and of its controls."""
    return f"{viewer.style()}\n{part('report.css')}"


def part(name: str) -> str:
    """Return a script or style sheet of the page."""
    return (files("medseg.reporting") / "page" / name).read_text(encoding="utf-8")
