"""Connect to a Ray cluster, or start one on this machine, without telemetry and dashboard."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from medseg.errors import OptionError, one_line

LOCAL, AUTO = "local", "auto"
# Workers read and write files themselves; the object store carries only names and rows.
OBJECT_STORE_BYTES = 80 * 1024**2
CONNECT_SECONDS = 5.0
# Ray gives up after 30 seconds, which a busy machine exceeds. Only one of its two limits can be changed.
START_SECONDS, STARTS = "120", 3


@dataclass(frozen=True)
class WorkerResources:
    """Hold the resources that Ray reserves for each worker.

    Args:
        cpus: number of CPU cores, which is also the number of its threads.
        gpus: number of GPUs; a fraction shares one.
        memory_bytes: 0 if it is not known.
    """

    cpus: int = 1
    gpus: float = 0.0
    memory_bytes: int = 0

    def __post_init__(self) -> None:
        if self.cpus < 1 or self.gpus < 0:
            raise OptionError(
                f"a worker needs at least 1 CPU and no negative number of GPUs; found {self.cpus} and {self.gpus:g}"
            )

    def to_options(self) -> dict[str, Any]:
        """Return the options of a Ray actor."""
        options: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        return {**options, "memory": self.memory_bytes} if self.memory_bytes else options

    def fitting(self, node: dict[str, float]) -> int:
        """Return how many such workers fit on a node.

        Args:
            node: the node's resources, `CPU`, `GPU` and `memory`.
        """
        counts = [int(node.get("CPU", 0.0) // self.cpus)]
        if self.gpus:
            counts.append(int(node.get("GPU", 0.0) / self.gpus + 1e-9))
        if self.memory_bytes:
            counts.append(int(node.get("memory", 0.0) // self.memory_bytes))
        return min(counts)

    def __str__(self) -> str:
        parts = [f"{self.cpus} CPU(s)", *([f"{self.gpus:g} GPU(s)"] if self.gpus else [])]
        return " and ".join([*parts, *([f"{self.memory_bytes / 1e9:.1f} GB of memory"] if self.memory_bytes else [])])


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Connect to a cluster and yield the ray package; disconnect at the end unless the caller was connected before.

    Args:
        address: "local" starts a cluster on this machine, "auto" takes the one that runs on it, or `host:port`.

    Raises:
        OptionError: Ray is not installed, there is no cluster at the address, or it has another version.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_raylet_start_wait_time_s", START_SECONDS)
    try:
        import ray
    except ImportError as error:
        raise OptionError("--ray needs the extra ray; run pip install 'medseg[ray]'") from error
    if ray.is_initialized():
        yield ray
        return
    _connect(ray, address)
    try:
        yield ray
    finally:
        ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if address == LOCAL:
        _start_here(ray, options)
        return
    if address != AUTO:
        _check_reachable(address)
    try:
        ray.init(address=address, **options)
    except (ConnectionError, RuntimeError) as error:
        raise _connection_error(address, error) from error


def _start_here(ray: Any, options: dict[str, Any]) -> None:
    for attempt in range(1, STARTS + 1):
        try:
            ray.init(address="local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **options)
            return
        except Exception as error:  # Ray raises plain ones
            if "timed out during startup" not in str(error) or attempt == STARTS:
                raise OptionError(
                    f"--ray local: Ray could not be started on this machine ({one_line(error):.300}); close other "
                    "programs, and look at the logs in /tmp/ray/session_latest/logs"
                ) from error


def _connection_error(address: str, error: BaseException) -> OptionError:
    """Explain in one line why Ray could not connect."""
    messages: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        messages.append(one_line(cause))
        cause = cause.__cause__ or cause.__context__
    message = "; ".join(messages)
    if "AuthToken" in message or "authentication" in message.lower():
        # Ray sends its token to an explicit address only if it is told to, so that no stranger learns it.
        return OptionError(
            f"--ray {address}: the cluster asks for Ray's authentication token; set RAY_AUTH_MODE=token, and "
            "RAY_AUTH_TOKEN_PATH to the file with the token of that cluster"
        )
    if "ersion mismatch" in message:
        return OptionError(
            f"--ray {address}: the cluster has other versions of Ray or Python than this process ({messages[0]:.300}); "
            "install the same versions on every machine"
        )
    if isinstance(error, ConnectionError):
        return OptionError(
            f"--ray {address}: no Ray cluster found; start one with ray start --head, or use --ray local"
        )
    return OptionError(f"--ray {address}: cannot connect ({messages[0]:.300}); look at the logs of the cluster")


def _check_reachable(address: str) -> None:
    """Refuse an address at which nothing listens, before Ray tries it for a minute."""
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal():
        raise OptionError(f"--ray must be local, auto or HOST:PORT; found {address!r}")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise OptionError(
            f"--ray {address}: no Ray cluster at this address ({error.strerror or error}); check the address, or start "
            f"one there with ray start --head --port {port}"
        ) from error


def capacity(ray: Any, resources: WorkerResources) -> int:
    """Return how many workers fit on the nodes of the cluster that are alive."""
    return sum(resources.fitting(node["Resources"]) for node in ray.nodes() if node["Alive"])


def check_capacity(ray: Any, resources: WorkerResources) -> None:
    """Refuse workers that no node can hold.

    Raises:
        OptionError: there is none.
    """
    if capacity(ray, resources):
        return
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    found = "; ".join(
        f"{node.get('CPU', 0):g} CPU, {node.get('GPU', 0):g} GPU, {node.get('memory', 0) / 1e9:.1f} GB"
        for node in nodes
    )
    raise OptionError(
        f"no node of the cluster can hold a worker of {resources}; found {found}; lower --cpus-per-worker, "
        "--gpus-per-worker or --max-ram, or add a node"
    )
