"""Writing files so that they are there whole or not at all."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import secrets
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import blake2s
from pathlib import Path

from medseg.errors import MedsegError, OptionError, VolumeError

# Characters, of at most four bytes each.
LONGEST_HIDDEN = 40
HIDDEN = re.compile(r"\..+\.(?P<host>[0-9a-f]{8})-(?P<process>\d+)\.[0-9a-f]{8}\.partial(\..+)?", re.DOTALL)
ABANDONED_SECONDS = 24 * 3600


@contextmanager
def replacing(path: Path | str, suffix: str = "") -> Iterator[Path]:
    """Yield a temporary path in the same folder; it becomes ``path`` when the block ends without an error.

    Args:
        path: the file to create or replace. Its folder is created.
        suffix: what the temporary name must end with, for writers that choose the format by the name.

    Raises:
        VolumeError: the folder cannot be written or is full; the temporary file is removed and ``path`` is as before.
    """
    path = Path(path)
    temporary = path.with_name(f"{_hidden(path.name)}{suffix}")
    try:
        if path.is_dir():
            raise _in_the_way(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        temporary.replace(path)
    except VolumeError:
        raise
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def staged(path: Path | str) -> Iterator[Path]:
    """Yield the name of ``path`` in a new hidden folder beside it; whatever is put there is moved when the block ends.

    For writers that keep the file's name inside the file, and for several files that belong together: they take their
    places one right after the other, ``path`` first, and only once all of them are whole.

    Args:
        path: the file to create or replace. Its folder is created.

    Raises:
        VolumeError: as `replacing`.
    """
    path = Path(path)
    folder = path.with_name(_hidden(path.name))
    try:
        folder.mkdir(parents=True)
        yield folder / path.name
        files = sorted(folder.iterdir(), key=lambda file: (file.name != path.name, file.name))
        for file in files:
            if path.with_name(file.name).is_dir():
                raise _in_the_way(path.with_name(file.name))
            _flush(file)
        for file in files:
            file.replace(path.with_name(file.name))
    except MedsegError as error:
        if str(folder) not in str(error):
            raise
        # what is written is named by where it was to go, not by where it was put together
        raise type(error)(str(error).replace(str(folder), str(path.parent))) from error
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(folder: Path | str) -> None:
    """Remove what processes that were killed have left in a folder of half-written files.

    Those of a process of this machine that is no longer there, and of any that have not changed for a day.
    """
    with suppress(OSError):
        for path in Path(folder).glob(".*.partial*"):
            found = HIDDEN.fullmatch(path.name)
            if found and _is_abandoned(path, found["host"], int(found["process"])):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _is_abandoned(path: Path, host: str, process: int) -> bool:
    if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
        return True
    if host != _host() or os.name != "posix":  # to ask whether a process is there ends it on Windows
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:  # another user's
        pass
    return False


def _hidden(name: str) -> str:
    """A name for what is not whole yet; short, because file systems take 255 bytes and the name itself may have all."""
    return f".{name[:LONGEST_HIDDEN]}.{_host()}-{os.getpid()}.{secrets.token_hex(4)}.partial"


@cache
def _host() -> str:
    """What tells the processes of this machine (of this container, where it counts them anew) from those of others."""
    space = Path("/proc/self/ns/pid")
    counted = str(space.readlink()) if space.is_symlink() else ""
    return blake2s(f"{platform.node()} {counted}".encode(), digest_size=4).hexdigest()


def _flush(file: Path) -> None:
    with file.open("r+b") as written:
        os.fsync(written.fileno())


def _in_the_way(path: Path) -> VolumeError:
    return VolumeError(f"{path}: a folder is in the way of the output file; remove it or choose another name")


def _unwritable(path: Path, error: OSError) -> VolumeError:
    reason = error.strerror or str(error)
    return VolumeError(f"{path}: could not be written: {reason}; check the folder and its free space")


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits.

    Raises:
        OSError: it cannot be read.
    """
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_out_folder(folder: Path | str) -> None:
    """Raise one line unless outputs can be written to a folder, which need not exist yet; nothing is left there.

    Raises:
        OptionError: it is, or would lie in, a file, a link to nowhere, or a folder that may not be written to.
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
            with tempfile.TemporaryFile(dir=path):
                return
        except OSError as error:  # asked by trying: permissions tell nothing of read-only disks, nor anything to root
            raise OptionError(
                f"{path}: may not be written to ({error.strerror or error}); choose another output folder or change "
                "its permissions"
            ) from error


def set_files_aside(files: Sequence[Path]) -> None:
    """Rename those of the files that are there to names with the first number free for all of them, and say so."""
    found = [file for file in files if file.exists()]
    number = 1
    while any(file.with_stem(f"{file.stem}_{number}").exists() for file in found):
        number += 1
    for file in found:
        earlier = file.rename(file.with_stem(f"{file.stem}_{number}"))
        warnings.warn(f"{file}: is of another training, renamed to {earlier.name}", stacklevel=3)


def move_aside(files: Sequence[Path], folder: Path) -> None:
    """Move the files, if any, into a new folder: this name with the first free number; and say so."""
    if not files:
        return
    number = 1
    while (target := folder.with_name(f"{folder.name}_{number}")).exists():
        number += 1
    target.mkdir()
    for file in files:
        file.rename(target / file.name)
    warnings.warn(f"{files[0].parent}: holds events of another training, moved to {target.name}", stacklevel=3)
