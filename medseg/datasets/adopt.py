"""Taking cases from a folder somewhere else: finding how it is laid out, copying or linking file by file."""

from __future__ import annotations

import filecmp
import os
import shutil
from pathlib import Path

from medseg.datasets.manifest import FilePatterns, Manifest
from medseg.errors import ManifestError
from medseg.volumes import replacing


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
