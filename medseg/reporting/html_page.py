"""The frame of every report: one HTML file with its styles, scripts and data, which loads nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from medseg.errors import OptionError
from medseg.figures import viewer
from medseg.reporting import page_parts
from medseg.versions import installed_version
from medseg.volumes import replacing

DEFAULT_MAX_MB = 15.0
LARGEST_MAX_MB = 25.0


@dataclass(frozen=True)
class WrittenReport:
    """A page on disk.

    Args:
        path: path of the page.
        megabytes: size of the page.
        left_out: what the page does not show and why, one sentence each.
    """

    path: Path
    megabytes: float
    left_out: tuple[str, ...]


def check_max_mb(max_mb: float) -> None:
    """Check the largest size of a page.

    Raises:
        OptionError: it is not in (0, 25].
    """
    if not 0 < max_mb <= LARGEST_MAX_MB:
        raise OptionError(f"max_mb must be above 0 and at most {LARGEST_MAX_MB:g}, found {max_mb:g}; choose another")


def page_scripts(kind: str) -> tuple[str, ...]:
    """Return the scripts of a page in the order it must hold them.

    Args:
        kind: the script that defines `medseg.kind`: the words, columns and details of this kind of page.
    """
    return ("tables.js", kind, "distributions.js", "cases.js", "page.js")


def fixed(value: float, digits: int) -> str:
    """Format a number with a true minus sign."""
    return f"{value:.{digits}f}".replace("-", "−")


@cache
def _environment() -> Environment:
    """Return the report's templates with its filters."""
    environment = page_parts.environment()
    environment.filters |= {"fixed": fixed, "thousands": "{:,}".format}
    return environment


def render_page(
    title: str,
    sections: Mapping[str, str],
    scripts: Sequence[str],
    *,
    header: str,
    content: str,
    **values: Any,
) -> str:
    """Fill the frame of a page.

    Args:
        title: heading of the page.
        sections: titles in the navigation by the id of their section, in the order of the page.
        scripts: of the folder `page`, in their order.
        header: template of what stands below the heading; "" states that nothing was evaluated.
        content: template of the sections.
        values: of the templates.
    """
    script = [viewer.script(), *(page_parts.part(name) for name in (*scripts, "theme.js"))]
    return (
        _environment()
        .get_template("report.html")
        .render(
            title=title,
            version=installed_version("medseg"),
            header=header,
            content=content,
            navigation=dict(sections),
            style=Markup(page_parts.style()),
            script=Markup("\n".join(script)),
            **{"blocks": ""} | values,
        )
    )


def write_page(path: Path, page: str, left_out: tuple[str, ...]) -> WrittenReport:
    """Write a page atomically.

    Raises:
        VolumeError: it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
    return WrittenReport(path, path.stat().st_size / 1e6, left_out)
