"""Getting a data set ready: download, adopt or generate it, then verify every case."""

from __future__ import annotations

import filecmp
import logging
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import urlparse

from medseg.datasets.catalogue import read_manifest
from medseg.datasets.checks import case_problems
from medseg.datasets.folds import split_by_presence
from medseg.datasets.manifest import FilePatterns, Manifest
from medseg.datasets.nnunet import DATASET_FILE
from medseg.datasets.phantoms import generate_phantoms
from medseg.errors import ManifestError, one_line
from medseg.volumes import check_out_folder, replacing


def find_layout(manifest: Manifest, folder: Path) -> tuple[Path, FilePatterns]:
    """Where in ``folder`` the cases lie: as the manifest names them, or as the original archive does.

    Returns:
        The folder and the patterns under which most cases are found.

    Raises:
        ManifestError: the folder does not exist, or holds no case in any known layout.
    """
    if not folder.is_dir():
        raise ManifestError(f"{folder}: no such folder to take {manifest.name} from; check the path")
    layouts = [(folder, manifest.files)]
    source = manifest.source
    if source.archive_files is not None:
        inner = folder / (source.archive_folder or "")
        layouts += [(folder, source.archive_files), (inner, source.archive_files), (inner, manifest.files)]
    counts = [sum(_has_case(patterns, base, case) for case in manifest.case_ids) for base, patterns in layouts]
    if max(counts) == 0:
        examples = dict.fromkeys(
            str(patterns.paths(base, manifest.case_ids[0])["image"][0]) for base, patterns in layouts
        )
        raise ManifestError(
            f"{folder}: holds no case of {manifest.name}; looked for files such as {', '.join(examples)}"
        )
    return layouts[counts.index(max(counts))]


def install(source: Path, target: Path, link: bool = False) -> bool:
    """Put a file in place whole or not at all, unless it is there already; the source is only read.

    Args:
        source: the file.
        target: where it goes; its folder is created.
        link: make a symbolic link instead of a copy.

    Returns:
        Whether anything was written.
    """
    if target.exists() and (target.samefile(source) or (not link and filecmp.cmp(source, target))):
        return False
    with replacing(target) as temporary:
        if link:
            temporary.symlink_to(os.path.relpath(source.resolve(), target.parent.resolve()))
        else:
            shutil.copyfile(source, temporary)
            # The source's times make the next run's comparison cheap; its permissions may be read-only, ours are not.
            os.utime(temporary, ns=(source.stat().st_atime_ns, source.stat().st_mtime_ns))
    return True


def _has_case(patterns: FilePatterns, base: Path, case_id: str) -> bool:
    return all(path.is_file() for paths in patterns.paths(base, case_id).values() for path in paths)


STAGING = ".download"


def download_archive(manifest: Manifest, root: Path, progress: bool = True) -> Path:
    """Download and unpack below ``root/.download``; an archive that is there and whole is not downloaded again.

    Returns:
        The folder with the unpacked files; the caller removes ``root/.download`` when it has taken what it needs.

    Raises:
        ManifestError: no way to reach the address, or the archive's md5 differs.
    """
    from monai.apps.utils import HashCheckError, check_hash, download_url, extractall

    source = manifest.source
    assert source.url is not None
    staging = root / STAGING
    archive = staging / PurePosixPath(urlparse(source.url).path).name
    unpacked = staging / "unpacked"
    with _quiet("monai.apps"):
        if archive.exists() and not check_hash(archive, source.md5, "md5"):
            archive.unlink()
        # MONAI takes a non-empty folder for a finished extraction, which an interrupted one also leaves.
        shutil.rmtree(unpacked, ignore_errors=True)
        unpacked.mkdir(parents=True)
        try:
            # Not MONAI's download_and_extract: it asks for the requests package to guess the name of the file.
            download_url(source.url, archive, source.md5, "md5", progress=progress)
            extractall(archive, unpacked, has_base=False)
        except HashCheckError as error:
            raise ManifestError(
                f"{manifest.name}: the archive from {source.url} does not have the md5 {source.md5}; "
                "try again, or get it elsewhere and give its folder with --from"
            ) from error
        except (OSError, RuntimeError, ValueError, tarfile.TarError) as error:
            raise ManifestError(
                f"{manifest.name}: {source.url} could not be downloaded and unpacked: {one_line(error)}; "
                "without a network give a folder that has the files with --from"
            ) from error
    return unpacked


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """MONAI logs to stdout, where a command's JSON goes; keep it silent, its errors come as exceptions."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


Method = Literal["downloaded", "adopted", "linked", "generated", "verified"]


@dataclass(frozen=True)
class PreparationReport:
    """What is in place after ``prepare``.

    Attributes:
        name: the data set.
        root: its folder.
        method: how the files came; "verified" if all of them were there before.
        present: ids of cases in place and verified.
        absent: ids of cases that the manifest lists and nobody has.
        problems: one line for each thing wrong with a case that is there; such a case is not put in place.
        num_written: files written by this run.
        licence: of the data.
        citations: what a publication must cite.
    """

    name: str
    root: str
    method: Method
    present: tuple[str, ...]
    absent: tuple[str, ...]
    problems: tuple[str, ...]
    num_written: int
    licence: str
    citations: tuple[str, ...]

    @property
    def is_usable(self) -> bool:
        """Whether at least one case is in place and none is broken."""
        return bool(self.present) and not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {"is_usable": self.is_usable}

    def lines(self) -> list[str]:
        """The report in words."""
        total = len(self.present) + len(self.absent) + len(_cases_of(self.problems))
        how = "verified" if self.method == "verified" else f"{self.method} and verified"
        text = [f"{self.name}: {len(self.present)} of {total} cases {how} under {self.root}"]
        if self.absent:
            text.append(f"absent ({len(self.absent)}): {', '.join(self.absent)}")
        text += [f"problem: {problem}" for problem in self.problems]
        if self.licence:
            text.append(f"licence of the data: {self.licence}")
        return text + [f"please cite: {citation}" for citation in self.citations]


def prepare(
    name_or_path: Path | str,
    root: Path | str | None = None,
    source: Path | str | None = None,
    link: bool = False,
    progress: bool = False,
    on_case: Callable[[str, int, int], None] | None = None,
) -> PreparationReport:
    """Get a data set, verify every case, and say what is there.

    It may be run again at any time: what is in place is verified and kept, what is missing is fetched, and every file
    appears whole or not at all. Files of ``source`` are only read.

    Args:
        name_or_path: a shipped manifest's name, a manifest file, or a raw nnU-Net data set (``read_manifest``).
        root: the folder to fill. It may be the same as ``source``: then the files stay where they are. Only a raw
            nnU-Net data set can do without: it is verified where it lies.
        source: a folder to take the files from, laid out as the manifest or the original archive names them; a part
            of the cases is enough.
        link: link to the files of ``source`` instead of copying them. A copy, the default, outlives its source.
        progress: show a bar while downloading.
        on_case: called before each case with its id, its number from 0 and the number of cases.

    Returns:
        The report. Cases with problems are listed, not raised, so that one bad case does not hide the others.

    Raises:
        ManifestError: the manifest, the folder or the download cannot be used, or there is no way to get the files.
    """
    manifest = read_manifest(name_or_path)
    root = _home(manifest) if root is None else Path(root)
    check_out_folder(root)
    root.mkdir(parents=True, exist_ok=True)
    base, patterns, method = _obtain(manifest, root, None if source is None else Path(source), link, progress)
    present: list[str] = []
    absent: list[str] = []
    problems: list[str] = []
    num_written = 0
    for number, case_id in enumerate(manifest.case_ids):
        if on_case is not None:
            on_case(case_id, number, len(manifest.case_ids))
        targets = manifest.files.paths(root, case_id)
        origin = _origin(patterns.paths(base, case_id), targets)
        if origin is None:
            absent.append(case_id)
            continue
        found = case_problems(manifest, origin, case_id)
        problems += found
        if not found:
            pairs = [pair for role in targets for pair in zip(origin[role], targets[role], strict=True)]
            num_written += sum(install(file, target, link=link) for file, target in pairs)
            present.append(case_id)
    if not problems:
        shutil.rmtree(root / STAGING, ignore_errors=True)
    return PreparationReport(
        name=manifest.name,
        root=str(root),
        method=method,
        present=tuple(present),
        absent=tuple(absent),
        problems=tuple(problems),
        num_written=num_written,
        licence=manifest.licence,
        citations=manifest.citations,
    )


def _home(manifest: Manifest) -> Path:
    """Where a raw nnU-Net data set's files lie: beside its `dataset.json`."""
    if manifest.path is None or manifest.path.name != DATASET_FILE:
        raise ManifestError(f"{manifest.name}: give the folder of the data set, --root; only nnU-Net's have their own")
    return manifest.path.parent


def _obtain(
    manifest: Manifest, root: Path, source: Path | None, link: bool, progress: bool
) -> tuple[Path, FilePatterns, Method]:
    """Where the files can be read now, and how they came there."""
    if source is not None:
        base, patterns = find_layout(manifest, source)
        return base, patterns, "linked" if link else "adopted"
    absent = split_by_presence(manifest, root, manifest.case_ids)[1]
    if not absent:
        return root, manifest.files, "verified"
    if manifest.source.generator is not None:
        _generate(manifest, root)
        return root, manifest.files, "generated"
    if manifest.source.url is not None:
        try:
            base, patterns = find_layout(manifest, download_archive(manifest, root, progress))
        except ManifestError as error:
            in_place = len(manifest.case_ids) - len(absent)
            hint = f" ({in_place} of {len(manifest.case_ids)} cases are in place already)" if in_place else ""
            raise ManifestError(f"{error}{hint}") from error
        return base, patterns, "downloaded"
    if len(absent) < len(manifest.case_ids):
        return root, manifest.files, "verified"
    page = f" (how to get them: {manifest.source.page})" if manifest.source.page else ""
    raise ManifestError(f"{manifest.name}: cannot be downloaded{page}; give a folder that has the files with --from")


def _generate(manifest: Manifest, root: Path) -> None:
    if manifest.source.generator != "phantom_cells":
        raise ManifestError(f"{manifest.path}: source.generator {manifest.source.generator!r} is not phantom_cells")
    arguments = dict(manifest.source.arguments)
    try:
        arguments["shape"] = tuple(arguments.get("shape", (64, 64, 32)))
        written = generate_phantoms(root, num_cases=len(manifest.cases), **arguments)
    except TypeError as error:
        raise ManifestError(f"{manifest.path}: source.arguments do not fit the generator: {error}") from error
    if tuple(written) != manifest.case_ids:
        raise ManifestError(f"{manifest.path}: the generator makes {written[0]} … {written[-1]}; name the cases so")


def _origin(files: dict[str, list[Path]], targets: dict[str, list[Path]]) -> dict[str, list[Path]] | None:
    """The case's files in the source or, if it is not whole there, in place already; None if it is in neither."""
    for candidate in (files, targets):
        if all(path.is_file() for role in targets for path in candidate.get(role, [Path()])):
            return candidate
    return None


def _cases_of(problems: tuple[str, ...]) -> set[str]:
    return {problem.removeprefix("case ").split(":")[0] for problem in problems}
