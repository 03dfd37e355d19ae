"""Errors that medseg raises on purpose, and the wording they share.

Every message is one line: `<file or case>: <what is wrong>; found X, expected Y; <what to do>`. Each class also
subclasses the built-in exception that a caller would expect, so that code which does not know medseg still catches it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MedsegError(Exception):
    """Base class of errors that describe the user's input. Other exceptions are defects of medseg."""


class ManifestError(MedsegError, ValueError):
    """A dataset manifest, or a file that it names, breaks a rule."""


class PlanError(MedsegError, ValueError):
    """A plan.json lacks a value or holds one that cannot be used."""


class VolumeError(MedsegError, OSError):
    """An image file cannot be read or written."""


class ChangedFileError(VolumeError):
    """An image was replaced or written to while it was read."""


class GeometryError(MedsegError, ValueError):
    """Two grids that must agree differ, or an affine cannot be used."""


class ShapeError(MedsegError, ValueError):
    """A network or transform cannot process an array of this shape."""


class NetworkError(MedsegError, ValueError):
    """A network's name or arguments are not valid."""


class WeightsError(MedsegError, ValueError):
    """Weights are missing, were altered, or do not fit the network."""


class BundleError(MedsegError, ValueError):
    """A bundle folder is incomplete, or its files contradict each other."""


class EvaluationError(MedsegError, ValueError):
    """Predictions and references cannot be compared."""


class ScanError(MedsegError, ValueError):
    """A scan is of another kind than those that the network was trained on."""


class RegionError(MedsegError, ValueError):
    """The regions that a plan asks for cannot be found in a scan."""


class MemoryLimitError(MedsegError, MemoryError):
    """The work does not fit into the memory limit."""


class NonFiniteError(MedsegError, FloatingPointError):
    """Values of a network, or the loss or gradient of many steps of a training, are not finite."""


class TrainingError(MedsegError, RuntimeError):
    """A training has failed, or cannot go on as requested."""


class OptionError(MedsegError, ValueError):
    """An option of a command or function has a value that cannot be used."""


class BackendError(MedsegError, ImportError):
    """The software that should run the network is not installed."""


def one_line(error: BaseException) -> str:
    """Return the message of an exception as one line, or the name of its type if it has no message.

    An `OSError` of the operating system is reported as its file and its reason.
    """
    if isinstance(error, OSError) and not isinstance(error, MedsegError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def reason_of_failure(error: Exception) -> str:
    """Describe in one line why one case of many failed, whatever was raised."""
    if isinstance(error, MedsegError | OSError):
        return one_line(error)
    if _is_out_of_memory(error):
        return "out of memory; close other programs, or set --max-ram to learn how much is needed"
    reason = f": {one_line(error)}" if str(error).strip() else ""
    return f"{type(error).__name__}{reason}; this is a defect of medseg: run the case alone with --debug, and report it"


def _is_out_of_memory(error: Exception) -> bool:
    """Return True if an allocation failed: by Python, by torch on a device, or by torch on the CPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def first_line(error: BaseException, max_characters: int = 200) -> str:
    """Return the first line of an exception's message, for libraries whose messages continue for a page.

    Returns the name of the exception's type if it has no message.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:max_characters]


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6, prefix: str = "") -> str:
    """Propose the known name that is most similar to a misspelt one.

    Args:
        name: the misspelt name.
        known: the valid names.
        cutoff: similarity from 0 to 1 that a proposal must reach.
        prefix: text in front of the proposed name, such as `--` for an option.

    Returns:
        `"; did you mean X?"`, or an empty string if no name is similar.
    """
    similar = difflib.get_close_matches(name, sorted(known), n=1, cutoff=cutoff)
    return f"; did you mean {prefix}{similar[0]}?" if similar else ""
