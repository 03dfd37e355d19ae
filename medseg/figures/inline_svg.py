"""A matplotlib figure as a piece of a page: its lines and words take the page's own colours and font."""

from __future__ import annotations

import io
import re
from html import escape
from typing import Any


def inline_svg(figure: Any, name: str, title: str, description: str) -> str:
    """The figure as an `svg` element that loads nothing, without a background.

    What matplotlib draws black follows the page's text, so that it stays legible on a dark page; words stay words.

    Args:
        figure: drawn by one of this package's functions.
        name: begins every id inside, so that two figures fit on one page.
        title: read aloud in the figure's place.
        description: its numbers, for those who do not see it.
    """
    import matplotlib

    buffer = io.StringIO()
    without = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=without)
    drawn = buffer.getvalue()
    (box,) = re.findall(r'<svg[^>]* viewBox="([^"]+)"', drawn)
    inside = drawn[drawn.index(">", drawn.index("<svg")) + 1 : drawn.rindex("</svg>")]
    # its rule for every element of the page becomes attributes of this one
    inside = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", inside, flags=re.DOTALL)
    inside = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", inside, flags=re.DOTALL)
    inside = inside.replace("xlink:href", "href").replace("#000000", "currentColor")
    inside = re.sub(r"font-family: [^;\"]+", "font-family: inherit", inside)
    inside = re.sub(r'\bid="', f'id="{name}-', inside)
    inside = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", inside)
    inside = re.sub(r"\s*\n\s*", "\n", inside)
    words = (
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-description">{escape(description)}</desc>'
    )
    return (
        f'<svg class="figure" role="img" aria-labelledby="{name}-title" aria-describedby="{name}-description" '
        f'viewBox="{box}" fill="currentColor" stroke-linejoin="round" stroke-linecap="butt">{words}{inside}</svg>'
    )
