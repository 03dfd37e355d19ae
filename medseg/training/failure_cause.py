"""What a failed run came from, in one line for who has to mend it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from traceback import walk_tb

from medseg.errors import MedsegError

# what torch's data loader makes of an exception in a worker: another one, with the traceback as its message
_IN_A_WORKER = re.compile(r"^medseg\.errors\.\w+: (.+)$", re.MULTILINE)
# what torch says of processes and memory, which no line of a config is to blame for
_FROM_OUTSIDE = {
    r"gloo.*by peer": "another process of this training has ended; its own message says why",
    r"DataLoader worker \(pid.*? is killed by signal: \w+": "{0}; often for want of memory: try fewer --num_workers",
    r"(CUDA out of memory|DefaultCPUAllocator: .*?memory)[^.]*": "{0}; lower --batch_size, or the patch in plan.json",
}


def cause_in_words(error: BaseException) -> tuple[str, bool]:
    """One line for what an exception came from, and whether it says all a user needs.

    The outermost error of medseg in the chain is the most complete one; without any, the innermost exception is meant.
    """
    chain = list(_causes(error))
    for link in chain:
        if isinstance(link, MedsegError):
            return _in_one_line(link), True
        if found := _IN_A_WORKER.search(str(link)):
            return found.group(1), True
    innermost = chain[-1]
    if isinstance(innermost, KeyboardInterrupt):
        return "interrupted; a training goes on from its last checkpoint with --resume True", True
    if isinstance(innermost, ConnectionError | EOFError) and "torch.utils.data.dataloader" in _modules(innermost):
        return "a worker process has ended on the way; often for want of memory: try fewer --num_workers", True
    if isinstance(innermost, OSError) and innermost.strerror and not isinstance(innermost, ConnectionError):
        where = f"{innermost.filename}: " if innermost.filename else ""
        return f"{where}{innermost.strerror}; check the folder, its permissions and its free space", True
    raised_in = (_modules(innermost) or [""])[-1]
    if isinstance(innermost, ValueError) and raised_in.startswith("medseg."):  # a value it checked and refused
        return _in_one_line(innermost), True
    for said, meant in _FROM_OUTSIDE.items():
        if found := re.search(said, str(innermost), re.IGNORECASE):
            return meant.format(found.group()), True
    return f"the cause: {type(innermost).__name__}: {_in_one_line(innermost)}", False


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _modules(error: BaseException) -> list[str]:
    """The modules of the frames an exception went through; where it was raised comes last."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    return [str(frame.f_globals.get("__name__", "")) for frame in frames]


def _in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
