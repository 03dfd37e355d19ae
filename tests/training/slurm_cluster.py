"""SLURM on this machine, for the tests: munged, slurmctld and two slurmd on the loopback interface."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "slurmstepd", "sbatch", "scancel", "scontrol", "srun")
NODES = ("127.0.0.1", "127.0.0.2")  # torchrun connects to the name of a node
CONFIG = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=30
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
KillWait=2
SlurmdParameters=config_overrides
{plugins}
NodeName=127.0.0.1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2
NodeName=127.0.0.2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2
PartitionName=all Nodes=ALL Default=YES State=UP
"""


def missing_programs() -> list[str]:
    """Return the programs of SLURM and MUNGE that are not on the path."""
    return [name for name in PROGRAMS if _which(name) is None]


def _which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


class SlurmCluster:
    """A controller and two nodes, which are named after two addresses of the loopback interface."""

    def __init__(self) -> None:
        # Paths of sockets have at most 107 characters, so pytest's folders are too long.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.programs = {name: str(_which(name)) for name in PROGRAMS}
        self.processes: list[subprocess.Popen] = []
        munge, host = self.folder / "munge", socket.gethostname()
        munge.mkdir(mode=0o700)
        (munge / "key").touch(mode=0o600)
        (munge / "key").write_bytes(os.urandom(128))
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir()
        values = {"host": host, "user": getpass.getuser(), "folder": self.folder, "ports": _free_ports(3)}
        config = self.folder / "slurm.conf"
        config.write_text(CONFIG.format(plugins=self._plugins(), **values), encoding="utf-8")
        self.variables = {**os.environ, "SLURM_CONF": str(config)}
        files = [
            f"--{name}={munge / name.partition('-')[0]}" for name in ("key-file", "log-file", "pid-file", "seed-file")
        ]
        self._start("munged", "--foreground", "--force", f"--socket={munge}/socket", *files)
        while not (munge / "socket").exists():
            self._check()
        self._start("slurmctld", "-D")
        for node in NODES:
            self._start("slurmd", "-D", "-N", node, "-d", self.programs["slurmstepd"])
        deadline = time.monotonic() + 120
        while self._call("scontrol", "show", "nodes").count("State=IDLE") < 2:
            self._check()
            if time.monotonic() > deadline:
                self.close()
                raise RuntimeError("the nodes of SLURM did not come up")

    def _plugins(self) -> str:
        """Return the line with the folder of plugins if SLURM is not installed where it was built for."""
        root = Path(self.programs["slurmctld"]).resolve().parents[1]
        found = [] if root == Path("/usr") else sorted(root.glob("lib/*/slurm*/auth_munge.so"))
        return f"PluginDir={found[0].parent}" if found else ""

    def _start(self, name: str, *options: str) -> None:
        log = (self.folder / f"{name}.out").open("a")
        command = [self.programs[name], *options]
        self.processes.append(subprocess.Popen(command, env=self.variables, stdout=log, stderr=log))

    def _check(self) -> None:
        time.sleep(0.2)
        for process in self.processes:
            if process.poll() is not None:
                text = "\n".join(file.read_text() for file in sorted(self.folder.glob("*.out")))
                self.close()
                raise RuntimeError(f"{process.args}: ended with status {process.returncode}\n{text}")

    def _call(self, name: str, *options: str) -> str:
        command = [self.programs[name], *options]
        done = subprocess.run(command, env=self.variables, capture_output=True, text=True, check=False)
        return done.stdout

    def submit(self, script: str, folder: Path, **variables: str) -> str:
        """Submit a batch script from a folder, and return the job's number; the output goes to job.out there."""
        command = [self.programs["sbatch"], "--parsable", f"--output={folder}/job.out", "--open-mode=append"]
        environment = {**self.variables, **variables}
        done = subprocess.run(
            command, input=script, env=environment, cwd=folder, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        return done.stdout.strip()

    def requeue(self, job: str) -> None:
        """End a running job, and put it into the queue again."""
        self._call("scontrol", "requeue", job)

    def state(self, job: str) -> str:
        """Return the state of a job, such as RUNNING."""
        words = self._call("scontrol", "show", "job", job).split()
        return next((word.partition("=")[2] for word in words if word.startswith("JobState=")), "")

    def close(self) -> None:
        """End all jobs and daemons, and remove their files."""
        self._call("scancel", f"--user={getpass.getuser()}")
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.send_signal(signal.SIGKILL)
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports
