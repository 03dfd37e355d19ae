"""The diagram and the tables of the architecture page agree with the code."""

from __future__ import annotations

import re

from docs.layer_diagram import BLOCK, PAGE, REPOSITORY, declared_layers, imported_packages, reduced


def drawn() -> tuple[list[list[str]], set[tuple[str, str]]]:
    """Parse the layers and the arrows of the diagram, independently of the code that draws it."""
    text = BLOCK.search(PAGE.read_text(encoding="utf-8"))
    assert text is not None
    layers: list[list[str]] = []
    arrows = set()
    for line in text[0].splitlines():
        if line.strip().startswith("subgraph"):
            layers.append([])
        elif arrow := re.fullmatch(r"  (\w+) --> (\w+)", line):
            arrows.add((arrow[1], arrow[2]))
        elif node := re.fullmatch(r"    (\w+)", line):
            layers[-1].append(node[1])
    return layers, arrows


def closure(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return the transitive closure (Warshall's algorithm)."""
    nodes = {node for edge in edges for node in edge}
    reached = set(edges)
    for middle in nodes:
        reached |= {(a, c) for a, b in reached if b == middle for b2, c in reached if b2 == middle}
    return reached


def test_the_layers_are_those_that_import_linter_checks() -> None:
    present, _ = imported_packages()
    expected = [[package for package in layer if package in present] for layer in declared_layers()]
    layers, _ = drawn()
    assert layers == [layer for layer in expected if layer], "run: python tests/docs/layer_diagram.py"
    assert sorted(package for layer in layers for package in layer) == sorted(present)


def test_the_arrows_are_the_imports() -> None:
    _, edges = imported_packages()
    _, arrows = drawn()
    assert closure(arrows) == closure(edges), "run: python tests/docs/layer_diagram.py"
    assert arrows <= edges
    assert arrows == reduced(edges)


def test_arrows_point_downwards() -> None:
    level = {package: number for number, layer in enumerate(declared_layers()) for package in layer}
    _, arrows = drawn()
    assert [(a, b) for a, b in arrows if level[a] >= level[b]] == []


def test_the_page_names_every_package() -> None:
    text = PAGE.read_text(encoding="utf-8")
    present, _ = imported_packages()
    assert [package for package in sorted(present) if f"| `{package}` |" not in text] == []


def test_the_files_to_change_exist() -> None:
    section = PAGE.read_text(encoding="utf-8").partition("## Where to change what")[2].partition("\n## ")[0]
    files = re.findall(r"^\| .+ \| `([^`]+)` \|$", section, re.MULTILINE)
    assert len(files) >= 10
    assert [file for file in files if not (REPOSITORY / file).is_file()] == []
    assert len(set(files)) == len(files)


def test_no_two_files_of_the_package_have_the_same_name() -> None:
    names = [path.name for path in (REPOSITORY / "medseg").rglob("*.py") if path.name != "__init__.py"]
    assert sorted({name for name in names if names.count(name) > 1}) == []
