"""Read the fenced blocks of a Markdown page, with the comment before each."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
FENCE = re.compile(r"^( *)```(\w*)\s*$")
MARK = re.compile(r"^<!-- (not run|file): (.+) -->$")
SHELLS = ("sh", "bash", "console")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Args:
        line: number of its first line of text in the page.
        mark: ("not run", reason), ("file", name of the file to save the text as), or None.
    """

    page: str
    line: int
    language: str
    text: str
    mark: tuple[str, str] | None

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_run(self) -> bool:
        return self.mark is None or self.mark[0] != "not run"

    def commands(self) -> list[list[str]]:
        """Return the words of each command of a shell block; in a console block, commands follow `$ `."""
        text = self.text.replace("\\\n", " ")
        if self.language == "console":
            text = "\n".join(line[2:] for line in text.splitlines() if line.startswith("$ "))
        words = (shlex.split(line, comments=True) for line in text.splitlines())
        return [line for line in words if line]


def pages() -> list[Path]:
    """Return the pages whose blocks are run."""
    return [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def read_blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order.

    Raises:
        ValueError: a fence is not closed.
    """
    name = page.relative_to(REPOSITORY).as_posix()
    lines = page.read_text(encoding="utf-8").splitlines()
    blocks: list[Block] = []
    start, indent, language, mark, previous = 0, "", "", None, ""
    for number, line in enumerate(lines, start=1):
        fence = FENCE.match(line)
        if start and line == f"{indent}```":
            text = "\n".join(inside.removeprefix(indent) for inside in lines[start - 1 : number - 1])
            blocks.append(Block(name, start, language, text, mark))
            start = 0
        elif not start and fence:
            found = MARK.match(previous)
            start, (indent, language), mark = number + 1, fence.groups(), (found[1], found[2]) if found else None
        if line.strip():
            previous = line.strip()
    if start:
        raise ValueError(f"{name}:{start - 1}: the fence is not closed")
    return blocks
