"""Build the documentation site: add pages from outside docs/ and the API reference, and adapt their links.

MkDocs calls these functions (https://www.mkdocs.org/user-guide/configuration/#hooks). The pages of the repository link
to each other by relative paths, as GitHub shows them. The site contains the pages of docs/ at its top.
"""

from __future__ import annotations

import os
import re
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).parents[2]
API = (
    "medseg", "volumes", "datasets", "plan", "networks", "weights", "losses", "transforms", "training", "inference",
    "evaluation", "figures", "reporting", "bundle", "errors",
)  # fmt: skip
_LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#]+)(#[^)]*)?\)")
_MERMAID = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the two sections of the navigation whose pages are found by name."""
    bundles = [f"{path.parents[1].relative_to(REPOSITORY).as_posix()}/docs/README.md" for path in _bundle_pages()]
    for entry in config.nav or []:
        if entry.get("Bundles"):
            entry["Bundles"] = bundles
        if entry.get("API reference"):
            entry["API reference"] = [f"api/{name}.md" for name in API]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside docs/ and one API page per subpackage."""
    pages = [REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "CHANGELOG.md", REPOSITORY / "data_manifests" / "README.md"]
    reports = [page.with_name("validation.html") for page in _bundle_pages()]
    for path in [*pages, *_bundle_pages(), *(report for report in reports if report.is_file())]:
        uri = path.relative_to(REPOSITORY).as_posix()
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    for name in API:
        files.append(File.generated(config, f"api/{name}.md", content=_api_page(name)))
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **_: Any) -> str:
    """Adapt relative links to the structure of the site, and draw the layers of the architecture as a list."""
    in_site = page.file.src_uri
    in_repository = PurePosixPath(in_site if (REPOSITORY / in_site).is_file() else f"docs/{in_site}")

    def adapt(link: re.Match[str]) -> str:
        head, target, anchor = link[1], link[2], link[3] or ""
        if ":" in target:
            return link[0]
        path = os.path.normpath(in_repository.parent / target)
        uri = path.removeprefix("docs/") if path.startswith("docs/") else path
        if path == "README.md":
            uri = "README.md"  # the site begins with the guide
        if files.get_file_from_path(uri) is None:
            return head.removesuffix("](").removeprefix("[")  # a file that is not part of the site: keep the text
        return f"{head}{os.path.relpath(uri, PurePosixPath(in_site).parent)}{anchor})"

    return _LINK.sub(adapt, _MERMAID.sub(_layers, markdown))


def _api_page(name: str) -> str:
    """Return the page of one subpackage; mkdocstrings replaces the lines that begin with `:::`."""
    module = name if name == "medseg" else f"medseg.{name}"
    page = f"# {module}\n\n::: {module}\n"
    # A function in a file of the same name would be taken for that file, so it is named in full.
    folder = REPOSITORY / "medseg" / name
    for function in getattr(import_module(module), "__all__", ()) if folder.is_dir() else ():
        if (folder / f"{function}.py").is_file():
            options = "    options:\n      show_root_heading: true\n      show_root_full_path: false\n"
            page += f"\n::: {module}.{function}.{function}\n{options}"
    return page


def _bundle_pages() -> list[Path]:
    return sorted(REPOSITORY.glob("bundles/*/docs/README.md"))


def _layers(diagram: re.Match[str]) -> str:
    """List the layers of the architecture's diagram, because drawing it would need a script from a server."""
    layers = re.findall(r"direction LR\n((?: {4}\w+\n)+)", diagram[1])
    return "\n".join(f"{number}. {' · '.join(layer.split())}" for number, layer in enumerate(layers, start=1))
