"""The errors medseg raises on purpose.

Every message is one line that names the file or case, the rule, the value found and the way out. Each kind also
subclasses the built-in a caller would expect, so code that does not know medseg still catches it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MedsegError(Exception):
    """Base of all errors that describe a user's input rather than a defect of medseg."""


class ManifestError(MedsegError, ValueError):
    """A dataset manifest, or the files it names, break a rule."""


class PlanError(MedsegError, ValueError):
    """A plan.json is missing a value or holds one that cannot be used."""


class VolumeError(MedsegError, OSError):
    """An image file cannot be read or written as a volume."""


class GeometryError(MedsegError, ValueError):
    """Two grids that must agree do not, or an affine cannot be used."""


class ShapeError(MedsegError, ValueError):
    """A network or transform cannot take an array of this shape."""


class NetworkError(MedsegError, ValueError):
    """A network's name or arguments are not valid."""


class WeightsError(MedsegError, ValueError):
    """Weights are absent, altered, or do not fit the network."""


class BundleError(MedsegError, ValueError):
    """A bundle folder is incomplete or its files contradict each other."""


class EvaluationError(MedsegError, ValueError):
    """Predictions and references cannot be compared."""


class MemoryLimitError(MedsegError, MemoryError):
    """The work cannot be done within the memory allowed."""


class NonFiniteError(MedsegError, FloatingPointError):
    """A training has lost its numbers: step after step the loss or the gradient is not finite."""


class OptionError(MedsegError, ValueError):
    """An option of a command or function has a value that cannot be used."""


class BackendError(MedsegError, ImportError):
    """What should run the network is not installed."""


def one_line(error: BaseException) -> str:
    """Return the message of an exception as one line; the name of its type if it has no message.

    An `OSError` of the operating system names its file and its reason.
    """
    if isinstance(error, OSError) and not isinstance(error, MedsegError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return `"; did you mean X?"` for the known name closest to `name`, or an empty string if none is close."""
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=cutoff)
    return f"; did you mean {close[0]}?" if close else ""
