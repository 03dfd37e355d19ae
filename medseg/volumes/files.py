"""Write files atomically, check output folders, keep files of earlier runs, compute digests, read JSON safely."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import platformdirs

from medseg.errors import MedsegError, OptionError, VolumeError, one_line

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# File systems allow 255 bytes per name; the part taken from the final name has at most 40 characters of 4 bytes each.
MAX_STEM_CHARACTERS = 40
TEMPORARY_NAME = re.compile(r"\..+\.[0-9a-f]{8}\.partial(\..+)?", re.DOTALL)
# Folder inside a hidden one, for the files that are being replaced.
EARLIER = "earlier"
# Suffix of a file there that marks one which has no successor.
OUTDATED = ".outdated"
LOCK_NAME = ".lock"
LEFTOVER_AGE_SECONDS = 24 * 3600
MAX_JSON_BYTES = 16 * 1024**2  # the largest JSON file of a bundle or a result has a few hundred kB


@contextmanager
def replacing(path: Path | str, suffix: str = "") -> Iterator[Path]:
    """Write a file or folder atomically: it is complete or absent.

    The block writes to the temporary path it gets. The result is renamed to `path` if the block ends without an error.

    Args:
        path: file to create or replace, or folder to create. Its parent folder is created.
        suffix: ending of the temporary name, for writers that choose the format by the name.

    Yields:
        A hidden path in the same folder, at which nothing exists yet.

    Raises:
        VolumeError: the folder cannot be written or is full. The temporary file is removed and `path` is unchanged.
    """
    path = Path(path)
    temporary = _temporary_path(path, suffix)
    try:
        _check_no_folder_at(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        for file in [temporary, *temporary.rglob("*")]:
            _flush(file)
        temporary.replace(path)
    except VolumeError:
        raise
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        _remove(temporary)


@contextmanager
def staged(path: Path | str, outdated: Sequence[Path] = ()) -> Iterator[Path]:
    """Write several files that belong together, or a file that contains its own name.

    The block writes into a new hidden folder. When it ends without an error, every file in that folder is moved beside
    `path`, under a lock, so that two processes never mix their files. An earlier `path` is removed first and the new
    one is moved last. So `path` exists only beside the files that belong to it, even after `kill -9`.

    Args:
        path: main file to create or replace. Its parent folder is created.
        outdated: files of an earlier run beside `path` that are removed together with it.

    Yields:
        A path with the name of `path` in the hidden folder.

    Raises:
        VolumeError: as `replacing`.
    """
    path = Path(path)
    folder = _temporary_path(path)
    try:
        folder.mkdir(parents=True)
        yield folder / path.name
        files = sorted(folder.iterdir(), key=lambda file: (file.name == path.name, file.name))
        for file in files:
            if not file.is_dir():
                _check_no_folder_at(path.with_name(file.name))
            for part in [file, *file.rglob("*")]:
                _flush(part)
        with _folder_lock(path.parent):
            _exchange(files, path.parent, outdated)
    except MedsegError as error:
        if str(folder) not in str(error):
            raise
        # The user knows the output folder, not the hidden one.
        raise type(error)(str(error).replace(str(folder), str(path.parent))) from error
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def swap_in(folder: Path, target: Path, between: Callable[[], object] | None = None) -> None:
    """Rename a complete folder to its final name, in the place of an older one.

    Args:
        folder: on the file system of the target.
        target: the final name. A folder of this name is removed.
        between: called while neither folder has the name, to replace a file that describes it.
    """
    aside = _temporary_path(target)
    if target.is_dir():
        target.rename(aside)
    if between is not None:
        between()
    folder.rename(target)
    _remove(aside)


@contextmanager
def locked(file: Path, message: str) -> Iterator[None]:
    """Hold a lock that other processes respect, and that ends with this process, even if it is killed.

    Args:
        file: the lock; it is created and remains.
        message: of the error.

    Raises:
        OptionError: another process holds the lock.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with file.open("a", encoding="ascii") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OptionError(message) from None
        yield


def remove_leftovers(folder: Path | str) -> None:
    """Clear up after processes that were killed while they wrote into a folder.

    Files of `staged` that were complete are moved to their place. Temporary files and folders that have not changed for
    a day are removed. Younger ones may belong to a process that is still writing.
    """
    oldest = time.time() - LEFTOVER_AGE_SECONDS
    with suppress(OSError):
        for path in Path(folder).glob(".*.partial*"):
            if not TEMPORARY_NAME.fullmatch(path.name):
                continue
            if (path / EARLIER).is_dir():
                _finish_exchange(path)
            if path.exists() and path.lstat().st_mtime < oldest:
                _remove(path)


@contextmanager
def sole_writer(folder: Path | str, work: str) -> Iterator[None]:
    """Refuse to start work in a folder in which another process does it already.

    The lock ends with the process, also after `kill -9`. There is none on Windows, on file systems without locks and in
    folders that cannot be written.

    Args:
        folder: created if it does not exist.
        work: of the other process, for the message: "a training".

    Raises:
        OptionError: another process holds the lock.
    """
    path = Path(folder) / LOCK_NAME
    descriptor = _locked_file(path, work)
    try:
        yield
    finally:
        if descriptor is not None:
            path.unlink(missing_ok=True)
            os.close(descriptor)


def _locked_file(path: Path, work: str) -> int | None:
    """Open and lock a file; None if there are no locks. It holds the id of the process."""
    if fcntl is None:
        return None
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError:
            return None  # whatever writes there next reports it
        try:
            # unlike flock, not inherited by the workers of a data loader, which may outlive a killed training
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = os.read(descriptor, 100).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise OptionError(
                f"{path.parent}: {work} is running in this folder already (process {holder}); wait for it to end, or "
                "choose another folder"
            ) from None
        except OSError:
            os.close(descriptor)
            return None
        if path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino:
            os.ftruncate(descriptor, 0)
            with suppress(OSError):  # the disk may be full
                os.write(descriptor, f"{os.getpid()} on {platform.node()}\n".encode("ascii", "replace"))
            return descriptor
        os.close(descriptor)  # the one before removed the file after it was opened here


def check_out_folder(folder: Path | str) -> None:
    """Check that outputs can be written to a folder. The folder need not exist, and nothing is left in it.

    Raises:
        OptionError: the path is or lies in a file, a link to nothing, or a folder without write permission.
    """
    folder = Path(folder)
    for path in (folder, *folder.absolute().parents):
        if path.is_symlink() and not path.exists():
            raise OptionError(
                f"{path}: a link to {path.readlink()}, which does not exist, where the output folder should be; "
                "restore what it names or choose another folder"
            )
        if not path.exists():
            continue
        if not path.is_dir():
            raise OptionError(f"{path}: a file where the output folder should be; choose another folder")
        try:
            # Permissions do not reveal read-only file systems, and root has all of them, so write something.
            with tempfile.TemporaryFile(dir=path):
                return
        except OSError as error:
            raise OptionError(
                f"{path}: may not be written to ({error.strerror or error}); choose another output folder or change "
                "its permissions"
            ) from error


def is_writable(folder: Path | str) -> bool:
    """Return whether files can be written to a folder, as `check_out_folder` decides."""
    try:
        check_out_folder(folder)
    except OptionError:
        return False
    return True


def set_aside(paths: Sequence[Path], folder: Path | None = None) -> list[Path]:
    """Rename files or folders of an earlier run so that a new run does not overwrite them.

    All of them get the same number, the first that is free for each: `model.pt` becomes `model_1.pt`.

    Args:
        paths: what to rename; paths that do not exist are ignored.
        folder: if given, move everything into a new folder with this name and a number instead: `folder_1`.

    A warning names what was renamed.

    Returns:
        The new path of each existing one, in order.
    """
    existing = [path for path in paths if path.exists()]
    if not existing:
        return []
    numbered = [folder] if folder else existing
    number = 1
    while any(path.with_stem(f"{path.stem}_{number}").exists() for path in numbered):
        number += 1
    targets = [path.with_stem(f"{path.stem}_{number}") for path in numbered]
    for path, target in zip(existing, targets, strict=not folder):
        warnings.warn(f"{path}: belongs to an earlier run, moved to {target.name}", stacklevel=3)
    if folder:
        targets[0].mkdir(parents=True)
        targets = [targets[0] / path.name for path in existing]
    for path, target in zip(existing, targets, strict=True):
        path.rename(target)
    return targets


def cache_folder() -> Path | None:
    """Return the folder of files that only save time: `MEDSEG_CACHE_DIR`, or medseg's folder in the user's cache.

    Returns:
        None for a user without a home folder, as in some containers. The folder may not exist or not be writable.
    """
    if chosen := os.environ.get("MEDSEG_CACHE_DIR"):
        return Path(chosen)
    folder = platformdirs.user_cache_path("medseg", appauthor=False)
    return folder if folder.is_absolute() else None  # "~" stays in the path if there is no home


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 digest of a file's content as 64 hexadecimal digits.

    Raises:
        OSError: the file cannot be read.
    """
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_json(path: Path | str, kind: type[MedsegError]) -> Any:
    """Read a JSON file from an untrusted source in bounded time and memory.

    Args:
        path: the file, at most 16 MiB.
        kind: exception to raise.

    Raises:
        kind: the file cannot be read, is not a regular file, is too large, nested too deeply, or not valid JSON. NaN
            and Infinity are not JSON.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise kind(f"{path}: a directory where a JSON file should be; check the path")
        if not path.is_file():  # a pipe or a device would block or never end
            raise kind(f"{path}: no such file, or not a regular file; check the path")
        if path.stat().st_size > MAX_JSON_BYTES:
            raise kind(f"{path}: too large; found {path.stat().st_size:,} bytes, expected at most {MAX_JSON_BYTES:,}")
        # editors on Windows write a byte order mark
        return json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=_refuse_constant)
    except RecursionError:
        raise kind(f"{path}: nested too deeply to be read; write it again") from None
    except OSError as error:
        raise kind(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError as well
        if isinstance(error, kind):
            raise
        raise kind(f"{path}: not valid JSON ({one_line(error)}); write it again") from None


def _refuse_constant(name: str) -> float:
    raise ValueError(f"found {name}, which JSON does not have")


def _exchange(files: Sequence[Path], folder: Path, outdated: Sequence[Path]) -> None:
    """Move files into a folder. The last one is absent from it as long as it stands beside files of another run.

    If anything cannot be moved, the folder is as before. If the process is killed, `_finish_exchange` goes on.
    """
    targets = [folder / file.name for file in files]
    outdated = [path for path in outdated if path not in targets]
    is_alone = len(files) == 1 and not outdated and not files[0].is_dir()
    replaced = [] if is_alone else [targets[-1], *outdated, *reversed(targets[:-1])]
    earlier = [path for path in replaced if path.exists() or path.is_symlink()]
    kept = files[0].parent / EARLIER
    unfinished = kept.with_name(f"{EARLIER}_unfinished")
    unfinished.mkdir()
    for path in outdated:
        (unfinished / f"{path.name}{OUTDATED}").touch()
    unfinished.rename(kept)
    try:
        for path in earlier:
            path.replace(kept / path.name)
        for file, target in zip(files, targets, strict=True):
            file.replace(target)
    except OSError:
        for path in earlier:
            if (kept / path.name).exists():
                (kept / path.name).replace(path)
        shutil.rmtree(kept)
        raise


def _finish_exchange(hidden: Path) -> None:
    """Move the files that a killed process has completed but not moved."""
    folder, main = hidden.parent, hidden.name.split(".", 1)[1].rsplit(".", 2)[0]
    kept = hidden / EARLIER
    with _folder_lock(folder) as is_locked:
        # A living process holds the lock while this folder exists.
        if not is_locked or not kept.is_dir():
            return
        for mark in kept.glob(f"*{OUTDATED}"):
            name = mark.name.removesuffix(OUTDATED)
            if not (kept / name).exists():
                _remove(folder / name)
        files = [file for file in hidden.iterdir() if file.name != EARLIER]
        for file in sorted(files, key=lambda file: (file.name[:MAX_STEM_CHARACTERS] == main, file.name)):
            if (folder / file.name).is_dir():
                (folder / file.name).replace(kept / file.name)
            file.replace(folder / file.name)
        shutil.rmtree(hidden)


@contextmanager
def _folder_lock(folder: Path) -> Iterator[bool]:
    """Wait until no other process moves files in a folder, and keep others waiting.

    Yields:
        False if there is no lock, because the system (Windows) or the file system has none.
    """
    if fcntl is None:
        yield False
        return
    descriptor, is_locked = os.open(folder, os.O_RDONLY), False
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            is_locked = True
        yield is_locked
    finally:
        with suppress(OSError):  # a worker process that was forked meanwhile would keep the lock
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _temporary_path(path: Path, suffix: str = "") -> Path:
    return path.with_name(f".{path.name[:MAX_STEM_CHARACTERS]}.{secrets.token_hex(4)}.partial{suffix}")


def _check_no_folder_at(path: Path) -> None:
    if path.is_dir():
        raise VolumeError(f"{path}: a folder is in the way of the output file; remove it or choose another name")


def _flush(path: Path) -> None:
    if path.is_file() and not path.is_symlink():  # the file behind a link is not ours and may be read-only
        with path.open("r+b") as stream:
            os.fsync(stream.fileno())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def write_error(path: Path, error: OSError) -> VolumeError:
    """Return the error of a file that could not be written, in one line."""
    reason = error.strerror or str(error)
    return VolumeError(f"{path}: could not be written: {reason}; check the folder and its free space")
