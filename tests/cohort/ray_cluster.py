"""A Ray cluster on this machine, for the tests: nodes are processes that can join, be killed and leave."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


class RayCluster:
    """A head node and further nodes, without dashboard and telemetry.

    Args:
        num_cpus: of the head node.
    """

    def __init__(self, num_cpus: int) -> None:
        # Paths of sockets have at most 107 characters, so pytest's folders are too long.
        self.folder = Path(tempfile.mkdtemp(prefix="ray-"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self.nodes: list[subprocess.Popen] = []
        self.add_node(num_cpus, ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={self.folder}"])

    def add_node(
        self,
        num_cpus: int,
        options: list[str] | None = None,
        environment: dict[str, str] | None = None,
        launcher: Sequence[str] = (),
    ) -> subprocess.Popen:
        """Start a node and wait until the cluster answers.

        Args:
            num_cpus: its cores.
            options: of `ray start`; None joins the cluster.
            environment: further variables of the node and its workers.
            launcher: program that starts the node, such as `unshare`, with its arguments.
        """
        script = "import sys; from ray.scripts.scripts import main; sys.exit(main())"
        options = options or [f"--address={self.address}"]
        options += [f"--num-cpus={num_cpus}", "--num-gpus=0", "--object-store-memory=80000000", "--disable-usage-stats"]
        command = [*launcher, sys.executable, "-c", script, "start", "--block", *options]
        log = (self.folder / f"node{len(self.nodes)}.log").open("w")
        patience = {"RAY_raylet_start_wait_time_s": "180"}  # other tests may keep the cores busy
        variables = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", **patience, **(environment or {})}
        node = subprocess.Popen(command, stdout=log, stderr=log, env=variables, start_new_session=True)
        self.nodes.append(node)
        deadline = time.monotonic() + 180
        while "runtime started" not in Path(log.name).read_text(encoding="utf-8"):
            if time.monotonic() > deadline or node.poll() is not None:
                text = Path(log.name).read_text(encoding="utf-8")
                self.close()
                raise RuntimeError(text)
            time.sleep(0.3)
        return node

    def remove_node(self, node: subprocess.Popen) -> None:
        """End a node and its workers."""
        self.nodes.remove(node)
        node.terminate()
        with suppress(subprocess.TimeoutExpired):
            node.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(node.pid, signal.SIGKILL)
        node.wait()

    def close(self) -> None:
        """End all nodes and remove their files."""
        for node in reversed(self.nodes[:]):
            self.remove_node(node)
        shutil.rmtree(self.folder, ignore_errors=True)


def is_segmenting(pid: int) -> bool:
    """Return whether a process is a worker that segments a scan now; Ray names it after the running method."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::Worker.segment")
    except OSError:
        return False


def workers_that_read(file: Path) -> list[int]:
    """Return the workers that have a file open."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            with suppress(OSError):
                if not (process / "cmdline").read_bytes().startswith(b"ray::Worker"):
                    continue
                if any(link.readlink() == file for link in (process / "fd").iterdir()):
                    found.append(int(process.name))
    return found
