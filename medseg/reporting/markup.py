"""Small pieces of HTML; every text is escaped here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

FEW_COLUMNS = 6


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def text(value: object) -> Html:
    """A value as escaped text; HTML stays as it is."""
    return value if isinstance(value, Html) else Html(escape(str(value)))


def tag(name: str, *children: object, **attributes: object) -> Html:
    """An element; ``class_`` is the attribute class, underscores become hyphens, None leaves an attribute out."""
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    inside = "".join(f' {key}="{escape(str(value))}"' for key, value in given.items())
    return Html(f"<{name}{inside}>{''.join(text(child) for child in children)}</{name}>")


def section(id_: str, title: str, *children: object) -> Html:
    """One part of the page."""
    return tag("section", tag("h2", title, id=f"{id_}-title"), *children, id=id_, aria_labelledby=f"{id_}-title")


def bullets(items: Iterable[object], class_: str | None = None) -> Html:
    """A list."""
    return tag("ul", *(tag("li", item) for item in items), class_=class_)


def table(
    about: str,
    head: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    classes: Sequence[str | None] = (),
    total: bool = False,
) -> Html:
    """A real table in a box that scrolls; the first cell of a row is its header.

    Args:
        about: what the table shows, a line above it.
        head: titles of the columns.
        rows: cells; each as long as the head.
        classes: class of each column; shorter ones leave the rest plain.
        total: whether the last row is a total.
    """
    of = [*classes, *[None] * (len(head) - len(classes))]
    body = list(rows)
    lines = [
        tag(
            "tr",
            tag("th", row[0], scope="row", class_=of[0]),
            *(tag("td", cell, class_=class_) for cell, class_ in zip(row[1:], of[1:], strict=True)),
            class_="total" if total and number == len(body) - 1 else None,
        )
        for number, row in enumerate(body)
    ]
    columns = [tag("th", title, scope="col", class_=class_) for title, class_ in zip(head, of, strict=True)]
    inner = tag("table", tag("thead", tag("tr", *columns)), tag("tbody", *lines), aria_label=about)
    # a table of a few columns is read along its rows, which must not be a screen wide
    box = "wide" if len(head) > FEW_COLUMNS else "wide narrow"
    return Html(
        tag("p", about, class_="about") + tag("div", inner, class_=box, tabindex=0, role="region", aria_label=about)
    )


def with_code(words: str) -> Html:
    """A text whose `backticked` parts are code."""
    parts = words.split("`")
    return Html("".join(tag("code", part) if number % 2 else text(part) for number, part in enumerate(parts)))


def signed(value: float, digits: int) -> str:
    """A number with a true minus sign."""
    return f"{value:.{digits}f}".replace("-", "−")


def estimate(entry: Mapping[str, Any], digits: int) -> Html:
    """A number with its interval and n below it."""
    if entry["value"] is None:
        return Html(f"–{tag('small', 'n=0')}")
    low, high = entry["low"], entry["high"]
    interval = "no interval" if low is None or high is None else f"{signed(low, digits)} to {signed(high, digits)}"
    n = f"n={entry['n']}{', few' if entry['few'] else ''}"
    return Html(f"{signed(entry['value'], digits)}{tag('small', interval)}{tag('small', n)}")
