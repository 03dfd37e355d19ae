"""Draw the layers of the package as a Mermaid diagram, from import-linter's contract and the imports.

`python tests/docs/layer_diagram.py` writes it into docs/architecture.md.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import grimp

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs" / "architecture.md"
BLOCK = re.compile(r"(?<=^```mermaid\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)

Edges = set[tuple[str, str]]


def declared_layers() -> list[list[str]]:
    """Return the packages of each layer, the highest layer first, as pyproject.toml declares them."""
    config = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = [c for c in config["tool"]["importlinter"]["contracts"] if c["type"] == "layers"]
    return [re.findall(r"\w+", layer) for layer in contract["layers"]]


def imported_packages() -> tuple[set[str], Edges]:
    """Return the packages directly below medseg, and the pairs (importer, imported) among them.

    `__main__` is left out, because it only calls the command line.
    """
    graph = grimp.build_graph("medseg", cache_dir=None)
    graph.remove_module("medseg.__main__")
    children = {name.removeprefix("medseg.") for name in graph.find_children("medseg")}
    edges = set()
    for importer in graph.modules:
        for imported in graph.find_modules_directly_imported_by(importer):
            pair = tuple(name.split(".")[1] if "." in name else "" for name in (importer, imported))
            if all(pair) and pair[0] != pair[1]:
                edges.add(pair)
    return children, edges


def reduced(edges: Edges) -> Edges:
    """Return the edges that do not follow from others: a → c is left out if there is a path a → b → … → c."""

    def reach(start: str, without: tuple[str, str]) -> set[str]:
        found: set[str] = set()
        waiting = [start]
        while waiting:
            here = waiting.pop()
            following = {b for a, b in edges if a == here and (a, b) != without} - found
            found |= following
            waiting += following
        return found

    return {(a, b) for a, b in edges if b not in reach(a, (a, b))}


def diagram() -> str:
    """Return the Mermaid text."""
    present, edges = imported_packages()
    lines = ["flowchart TD"]
    for number, layer in enumerate(declared_layers()):
        packages = [package for package in layer if package in present]
        if packages:
            lines += [f'  subgraph layer{number}[" "]', "    direction LR", *(f"    {p}" for p in packages), "  end"]
    lines += [f"  {a} --> {b}" for a, b in sorted(reduced(edges))]
    return "\n".join(lines) + "\n"


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(BLOCK.sub(lambda _: diagram(), text, count=1), encoding="utf-8")


if __name__ == "__main__":
    main()
