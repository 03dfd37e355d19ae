"""A piece of work in a process of its own, so that settings of this process do not reach it."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection

Work = Callable[[], object]


def _serve(make: Callable[[], Work], connection: Connection) -> None:
    work = make()
    connection.send("ready")
    with suppress(EOFError):  # the process that asks has ended
        while connection.recv():
            work()
            connection.send("done")


class OwnProcess:
    """`make(...)()` run in another process; calling this runs it there once and waits for its end.

    The process idles between the calls, so it can take turns with work of this one, once it is `ready`. It ends with
    this process.

    Args:
        make: a function of a module that returns the work to repeat.
        arguments: of `make`, anything that can be pickled.

    Raises:
        EOFError: the other process failed; it has printed why.
    """

    def __init__(self, make: Callable[..., Work], *arguments: object) -> None:
        context = get_context("spawn")
        self._connection, other = context.Pipe()
        context.Process(target=_serve, args=(partial(make, *arguments), other), daemon=True).start()
        other.close()

    def __call__(self) -> None:
        self.begin()
        self.end()

    def ready(self) -> None:
        """Wait until the work is made; call it once, before the first run, and before anything is timed."""
        self._connection.recv()

    def begin(self) -> None:
        """Run once, without waiting."""
        self._connection.send(True)

    def end(self) -> None:
        """Wait for what `begin` began."""
        self._connection.recv()


class SideBySide:
    """Several processes that work at the same time, as the members of a process group do; a call is one run of each."""

    def __init__(self, *processes: OwnProcess) -> None:
        self._processes = processes

    def ready(self) -> None:
        """Wait until all are."""
        for process in self._processes:
            process.ready()

    def __call__(self) -> None:
        for process in self._processes:
            process.begin()
        for process in self._processes:
            process.end()
