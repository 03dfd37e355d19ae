"""Relative links of all pages lead to files and headings that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from docs.markdown_blocks import REPOSITORY, pages

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
PAGES = [
    *pages(),
    *sorted(REPOSITORY.glob("bundles/*/docs/README.md")),
    REPOSITORY / "CHANGELOG.md",
    REPOSITORY / "data_manifests" / "README.md",
]


def without_code(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    return re.sub(r"^ *```.*?^ *```$|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings as GitHub forms them."""
    headings = re.findall(r"^#+ (.+)$", without_code(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_relative_links_exist(page: Path) -> None:
    broken = []
    for target in LINK.findall(without_code(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name) if name else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_the_index_links_every_page() -> None:
    index = REPOSITORY / "docs" / "README.md"
    linked = {(index.parent / target).resolve() for target in LINK.findall(index.read_text(encoding="utf-8"))}
    missing = [page.name for page in (REPOSITORY / "docs").glob("*.md") if page != index and page not in linked]
    assert missing == []
