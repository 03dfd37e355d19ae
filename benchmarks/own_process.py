"""Run a function in a separate process, so that the settings of this process do not affect it."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection

Work = Callable[[], object]


def _serve(make: Callable[[], Work], connection: Connection) -> None:
    work = make()
    connection.send("ready")
    with suppress(EOFError):  # the parent process has ended
        while connection.recv():
            work()
            connection.send("done")


class OwnProcess:
    """Run `make(...)()` in another process; each call runs it once there and waits for it.

    The process is idle between the calls, so that measurements in this process and in the other can alternate. It ends
    with this process.

    Args:
        make: a function of a module that returns the work to repeat.
        arguments: arguments of `make`, which must be picklable.

    Raises:
        EOFError: the other process failed and has printed the reason.
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
        """Wait until `make` has returned. Call this once, before the first run and before any measurement."""
        self._connection.recv()

    def begin(self) -> None:
        """Start one run without waiting for it."""
        self._connection.send(True)

    def end(self) -> None:
        """Wait for the run that `begin` started."""
        self._connection.recv()


class SideBySide:
    """Run several processes at the same time, like the members of a process group; a call is one run of each."""

    def __init__(self, *processes: OwnProcess) -> None:
        self._processes = processes

    def ready(self) -> None:
        """Wait until all processes are ready."""
        for process in self._processes:
            process.ready()

    def __call__(self) -> None:
        for process in self._processes:
            process.begin()
        for process in self._processes:
            process.end()
