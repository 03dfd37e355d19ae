"""Download, adopt or generate a dataset, then verify every case."""

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
from medseg.datasets.phantoms import generate_phantoms
from medseg.errors import ChangedFileError, ManifestError, MedsegError, one_line
from medseg.volumes import check_out_folder, read_volume, remove_leftovers, replacing, unchanged
from medseg.volumes.files import sole_writer

Method = Literal["downloaded", "adopted", "linked", "generated", "verified"]
_DOWNLOADS = ".download"


@dataclass(frozen=True)
class PreparationReport:
    """Result of ``prepare``.

    Attributes:
        name: name of the dataset.
        root: its folder.
        method: origin of the files; "verified" if all of them were present before.
        present: ids of the cases that are present and verified.
        absent: ids of the cases that the manifest lists and for which files are missing.
        problems: one line per problem of a case. A case with a problem is not copied into the folder.
        num_written: number of files that this run wrote.
        licence: licence of the data.
        citations: references that a publication must cite.
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
        """Return whether at least one case is present and no case has a problem."""
        return bool(self.present) and not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self) | {"is_usable": self.is_usable}

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        broken = {problem.removeprefix("case ").split(":")[0] for problem in self.problems}
        total = len(self.present) + len(self.absent) + len(broken)
        method = "verified" if self.method == "verified" else f"{self.method} and verified"
        lines = [f"{self.name}: {len(self.present)} of {total} cases {method} under {self.root}"]
        if self.absent:
            lines.append(f"missing ({len(self.absent)}): {', '.join(self.absent)}")
        lines += [f"problem: {problem}" for problem in self.problems]
        if self.licence:
            lines.append(f"licence of the data: {self.licence}")
        return lines + [f"please cite: {citation}" for citation in self.citations]


def prepare(
    name_or_path: Path | str,
    root: Path | str | None = None,
    source: Path | str | None = None,
    link: bool = False,
    progress: bool = False,
    on_case: Callable[[str, int, int], None] | None = None,
) -> PreparationReport:
    """Get the files of a dataset and verify every case.

    The function can be called again at any time. It verifies and keeps the files that are present and gets the missing
    ones. Files are written atomically, and files of ``source`` are only read.

    Args:
        name_or_path: name of a shipped manifest, path of a manifest file, or a raw nnU-Net dataset (see
            ``read_manifest``).
        root: the folder to fill. If it equals ``source``, the files are verified in place. A folder as ``name_or_path``
            needs no ``root``.
        source: folder to take the files from, with the layout of the manifest or of the original archive. It may
            contain only some of the cases.
        link: create symbolic links to the files of ``source`` instead of copies. Copies remain valid if ``source`` is
            deleted.
        progress: show a progress bar of the download.
        on_case: called before each case with its id, its number from 0, and the number of cases.

    Returns:
        The report. It lists cases with problems, so that one bad case does not hide the others.

    Raises:
        ManifestError: the manifest, ``source`` or the download cannot be used, or the files cannot be obtained.
        OptionError: ``root`` cannot be a folder to write to.
    """
    manifest = read_manifest(name_or_path)
    root = _own_folder(manifest) if root is None else Path(root)
    if source is None and _needs_no_files(manifest, root):
        return _install_cases(manifest, root, root, None, "verified", link, on_case)
    check_out_folder(root)
    with sole_writer(root, "a preparation of data"):
        targets = [manifest.paths(root, case_id) for case_id in manifest.case_ids]
        for parent in {path.parent for roles in targets for paths in roles.values() for path in paths}:
            remove_leftovers(parent)
        folder, patterns, method = _obtain(manifest, root, None if source is None else Path(source), link, progress)
        report = _install_cases(manifest, root, folder, patterns, method, link, on_case)
        if not report.problems:
            shutil.rmtree(root / _DOWNLOADS, ignore_errors=True)
    return report


def _install_cases(
    manifest: Manifest,
    root: Path,
    folder: Path,
    patterns: FilePatterns | None,
    method: Method,
    link: bool,
    on_case: Callable[[str, int, int], None] | None,
) -> PreparationReport:
    """Verify every case in a folder, and put the files of the good ones in place."""
    present: list[str] = []
    absent: list[str] = []
    problems: list[str] = []
    num_written = 0
    for number, case_id in enumerate(manifest.case_ids):
        if on_case is not None:
            on_case(case_id, number, len(manifest.case_ids))
        targets = manifest.paths(root, case_id)
        files = _complete_case(_paths(manifest, patterns, folder, case_id), targets)
        if files is None:
            absent.append(case_id)
            continue
        try:
            with unchanged(file for role in targets for file in files[role]) as check:
                found = case_problems(manifest, files, case_id)
                pairs = [pair for role in targets for pair in zip(files[role], targets[role], strict=True)]
                num_written += sum(_install(file, target, check, link) for file, target in pairs if not found)
        except ChangedFileError as error:
            found = [f"case {case_id}: {error}"]
        problems += found
        present += [] if found else [case_id]
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


def _own_folder(manifest: Manifest) -> Path:
    """Return the folder that a manifest was made from."""
    if manifest.folder is None:
        raise ManifestError(f"{manifest.name}: no folder for the dataset; give one with --root")
    return manifest.folder


def _needs_no_files(manifest: Manifest, root: Path) -> bool:
    """Return whether a folder is only verified: it is complete, or holds cases and the rest cannot be obtained."""
    present, absent = split_by_presence(manifest, root, manifest.case_ids)
    can_be_obtained = manifest.source.generator is not None or manifest.source.url is not None
    return not absent or (bool(present) and not can_be_obtained)


def _obtain(
    manifest: Manifest, root: Path, source: Path | None, link: bool, progress: bool
) -> tuple[Path, FilePatterns | None, Method]:
    """Get the files; return their folder, the patterns to find them with (None: the manifest's), and their origin."""
    if source is not None:
        folder, patterns = _find_layout(manifest, source)
        return folder, patterns, "linked" if link else "adopted"
    if manifest.source.generator is not None:
        _generate(manifest, root)
        return root, None, "generated"
    if manifest.source.url is not None:
        num_present = len(split_by_presence(manifest, root, manifest.case_ids)[0])
        try:
            folder, patterns = _find_layout(manifest, _download_archive(manifest, root, progress))
        except ManifestError as error:
            hint = f" ({num_present} of {len(manifest.case_ids)} cases are present already)" if num_present else ""
            raise ManifestError(f"{error}{hint}") from error
        return folder, patterns, "downloaded"
    page = f" (see {manifest.source.page})" if manifest.source.page else ""
    lacking = "" if page else _lacking_file(manifest, root)
    raise ManifestError(
        f"{manifest.name}: {lacking or f'cannot be downloaded{page}'}; give a folder that contains the files with "
        "--from, or correct the names of the files"
    )


def _lacking_file(manifest: Manifest, root: Path) -> str:
    """Describe the first file that a dataset without a download lacks; empty if all files of its first case do."""
    files = [path for paths in manifest.paths(root, manifest.case_ids[0]).values() for path in paths]
    missing = [path for path in files if not path.is_file()]
    if len(missing) == len(files):
        return ""
    line = f"no case is complete; there is no {missing[0]}"
    first = files[0]
    if len(manifest.channels) > 1 and first.is_file():
        try:
            read_volume(first)
        except MedsegError as error:  # most often a colour picture where one file per channel is expected
            return f"{line}, and {one_line(error)}"
    return line


def _find_layout(manifest: Manifest, folder: Path) -> tuple[Path, FilePatterns | None]:
    """Find the cases in a folder that has the layout of the manifest or of the original archive.

    Returns:
        The folder and the patterns with which most cases are found; None for the patterns of the manifest.

    Raises:
        ManifestError: the folder does not exist, or contains no case in either layout.
    """
    if not folder.is_dir():
        raise ManifestError(f"{folder}: no such folder to take {manifest.name} from; correct the path")
    layouts: list[tuple[Path, FilePatterns | None]] = [(folder, None)]
    source = manifest.source
    if source.archive_files is not None:
        inner = folder / (source.archive_folder or "")
        layouts += [(folder, source.archive_files), (inner, source.archive_files), (inner, None)]
    counts = [
        sum(_has_case(manifest, patterns, base, case) for case in manifest.case_ids) for base, patterns in layouts
    ]
    if max(counts) == 0:
        first = manifest.case_ids[0]
        examples = dict.fromkeys(str(_paths(manifest, patterns, base, first)["image"][0]) for base, patterns in layouts)
        raise ManifestError(f"{folder}: no case of {manifest.name} found; expected files such as {', '.join(examples)}")
    return layouts[counts.index(max(counts))]


def _paths(manifest: Manifest, patterns: FilePatterns | None, folder: Path, case_id: str) -> dict[str, list[Path]]:
    return manifest.paths(folder, case_id) if patterns is None else patterns.paths(folder, case_id)


def _has_case(manifest: Manifest, patterns: FilePatterns | None, folder: Path, case_id: str) -> bool:
    paths = _paths(manifest, patterns, folder, case_id)
    return all(path.is_file() for of_role in paths.values() for path in of_role)


def _complete_case(files: dict[str, list[Path]], targets: dict[str, list[Path]]) -> dict[str, list[Path]] | None:
    """Return the case's files in the source if they are complete there, else those in place, else None."""
    for candidate in (files, targets):
        if all(path.is_file() for role in targets for path in candidate.get(role, [Path()])):
            return candidate
    return None


def _install(source: Path, target: Path, check: Callable[[], None], link: bool = False) -> bool:
    """Copy or link a file atomically, unless it is in place already; return True if the file was written.

    Args:
        source: the file.
        target: its place.
        check: raises an error if the source is no longer the file that was verified.
        link: create a link instead of a copy.
    """
    if target.exists() and (target.samefile(source) or (not link and filecmp.cmp(source, target))):
        return False
    with replacing(target) as temporary:
        if link:
            temporary.symlink_to(os.path.relpath(source.resolve(), target.parent.resolve()))
        else:
            shutil.copyfile(source, temporary)
            check()
            # Equal times let the next run compare the files without reading them. Permissions are not copied, because
            # the source may be read-only.
            os.utime(temporary, ns=(source.stat().st_atime_ns, source.stat().st_mtime_ns))
    return True


def _download_archive(manifest: Manifest, root: Path, progress: bool = True) -> Path:
    """Download the archive and unpack it below ``root``; an archive with the right md5 is not downloaded again.

    Returns:
        The folder with the unpacked files. The caller deletes it after use.

    Raises:
        ManifestError: the address cannot be reached, or the md5 of the archive differs.
    """
    from monai.apps.utils import HashCheckError, check_hash, download_url, extractall

    source = manifest.source
    assert source.url is not None
    archive = root / _DOWNLOADS / PurePosixPath(urlparse(source.url).path).name
    unpacked = root / _DOWNLOADS / "unpacked"
    with _without_logging("monai.apps"):
        if archive.exists() and not check_hash(archive, source.md5, "md5"):
            archive.unlink()
        # MONAI regards every non-empty folder as completely unpacked, even after an interruption.
        shutil.rmtree(unpacked, ignore_errors=True)
        unpacked.mkdir(parents=True)
        try:
            # MONAI's download_and_extract would need the requests package to guess the name of the file.
            download_url(source.url, archive, source.md5, "md5", progress=progress)
            extractall(archive, unpacked, has_base=False)
        except HashCheckError as error:
            raise ManifestError(
                f"{manifest.name}: the archive from {source.url} is damaged or has changed; expected md5 {source.md5}; "
                "try again, or give a folder that contains the files with --from"
            ) from error
        except (OSError, RuntimeError, ValueError, tarfile.TarError) as error:
            raise ManifestError(
                f"{manifest.name}: {source.url} could not be downloaded and unpacked ({one_line(error)}); without a "
                "network, give a folder that contains the files with --from"
            ) from error
    return unpacked


@contextmanager
def _without_logging(name: str) -> Iterator[None]:
    """Silence a logger: MONAI logs to stdout, where the JSON of the command goes, and raises its errors as well."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _generate(manifest: Manifest, root: Path) -> None:
    if manifest.source.generator != "phantom_cells":
        raise ManifestError(
            f"{manifest.path}: unknown source.generator; found {manifest.source.generator!r}, expected phantom_cells"
        )
    arguments = dict(manifest.source.arguments)
    try:
        arguments["shape"] = tuple(arguments.get("shape", (64, 64, 32)))
        written = generate_phantoms(root, num_cases=len(manifest.cases), **arguments)
    except TypeError as error:
        raise ManifestError(f"{manifest.path}: wrong source.arguments ({one_line(error)})") from error
    if tuple(written) != manifest.case_ids:
        raise ManifestError(
            f"{manifest.path}: the case ids differ from the generated ones; expected {written[0]} … {written[-1]}"
        )
