"""A real Slurm with five virtual nodes on one host, without root, for tests and for experiments.

To start it by hand: `python -m tests.slurm.cluster`.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Self

from hpcq.slurm.environment import client_environment

DAEMONS = ("slurmctld", "slurmd")
CLIENT_TIMEOUT_S = 60.0
START_TIMEOUT_S = 300.0


@dataclass(frozen=True, kw_only=True)
class GpuClass:
    """Virtual nodes of one class. The host does not need the resources that they declare."""

    nodes: tuple[str, ...]
    gpu: str
    gpus_per_node: int
    cores: int
    memory_mib: int
    features: str


CLASSES: Mapping[str, GpuClass] = {
    "h100": GpuClass(
        nodes=("h100-1", "h100-2"),
        gpu="H100-80",
        gpus_per_node=8,
        cores=64,
        memory_mib=1_000_000,
        features="h100,hopper",
    ),
    "a100": GpuClass(
        nodes=("a100-1",), gpu="A100-80", gpus_per_node=4, cores=64, memory_mib=500_000, features="a100,ampere"
    ),
    "rtx6000ada": GpuClass(
        nodes=("rtx6000ada-1",),
        gpu="RTX6000Ada-48",
        gpus_per_node=4,
        cores=48,
        memory_mib=250_000,
        features="rtx6000ada,ada",
    ),
    "a6000": GpuClass(
        nodes=("a6000-1",), gpu="A6000-48", gpus_per_node=4, cores=48, memory_mib=250_000, features="a6000,ampere"
    ),
}

NODES = tuple(node for gpu_class in CLASSES.values() for node in gpu_class.nodes)

# Authentication is off, so that neither munged nor root is needed: such a cluster must listen only on the loopback.
# A requeued job starts cred_expire + 1 s later. preempt_send_user_signal works only in SlurmctldParameters.
SETTINGS: Mapping[str, str] = {
    "ClusterName": "virtual",
    "AuthType": "auth/none",
    "CredType": "cred/none",
    "AuthInfo": "cred_expire=5",
    "MpiDefault": "none",
    "ProctrackType": "proctrack/linuxproc",
    "TaskPlugin": "task/none",
    "JobAcctGatherType": "jobacct_gather/none",
    "SelectType": "select/cons_tres",
    "SelectTypeParameters": "CR_Core_Memory",
    "SlurmdParameters": "config_overrides",
    "GresTypes": "gpu",
    "ReturnToService": "2",
    "JobRequeue": "1",
    "Licenses": "hpcq_test:10",
    "KillWait": "5",
    "SlurmdTimeout": "15",
    "MinJobAge": "300",
    "DefMemPerCPU": "1024",
    "PreemptType": "preempt/partition_prio",
    "PreemptMode": "REQUEUE",
    "SlurmctldParameters": "preempt_send_user_signal",
    "SchedulerParameters": (
        "bf_interval=1,sched_interval=1,sched_min_interval=10000,batch_sched_delay=0,"
        "sched_max_job_start=1000,default_queue_depth=1000,preempt_youngest_first"
    ),
}


PATIENT: Mapping[str, str] = {"MessageTimeout": "60", "SlurmdTimeout": "300", "KillWait": "30", "MinJobAge": "3600"}
"""Settings for a machine under load. No node is lost because its slurmd responds late, no epilogue is killed halfway,
and all jobs stay listed until a test has looked at them."""


def missing_daemons() -> tuple[str, ...]:
    """Return Slurm's programs that are not installed. Debian installs daemons in /usr/sbin, which PATH may not have."""
    return tuple(name for name in (*DAEMONS, "sbatch", "srun") if _program(name) is None)


def _program(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def _free_port(taken: set[int]) -> int:
    """Return a port below the ephemeral range, so that no client of another cluster takes it before it is used.

    Processes that start clusters at the same time mostly choose from different ranges.
    """
    first = 20_000 + os.getpid() % 8 * 1_500
    for _ in range(1000):
        port = random.randrange(first, first + 1_500)  # noqa: S311 - a port, not a secret
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in taken:
                taken.add(port)
                return port
    raise RuntimeError(f"No free port between {first} and {first + 1_500}.")


@dataclass
class VirtualCluster:
    """Slurm daemons, their folder, and client calls. Use as a context manager.

    Attributes:
        settings: Lines of slurm.conf that replace or extend SETTINGS, for example {"MaxArraySize": "100"}.
        grace_s: Seconds between the signal to a preempted job and its end.
        prefix: Command that executes each daemon and client, such as `nsenter` with its options.
        folder: Configuration, state and logs of the daemons.
    """

    settings: Mapping[str, str] = field(default_factory=dict)
    grace_s: int = 20
    prefix: tuple[str, ...] = ()
    folder: Path = field(init=False)
    _running: dict[str, subprocess.Popen[bytes]] = field(init=False, default_factory=dict)

    def __enter__(self) -> Self:
        # A short path, because slurmd creates unix sockets in it, whose paths are limited to 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="vslurm-", dir="/tmp"))
        try:
            self._configure()
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def configuration(self) -> Path:
        """The value of SLURM_CONF."""
        return self.folder / "slurm.conf"

    @property
    def profile(self) -> Path:
        """A cluster profile for hpcq's manifests (`-O cluster.profile=…`)."""
        return self.folder / "profile.toml"

    def environment(self) -> dict[str, str]:
        """Return this process's environment with SLURM_CONF, and without options of the clients."""
        return {**client_environment(), "SLURM_CONF": str(self.configuration)}

    def call(self, *command: str) -> str:
        """Run one of Slurm's commands, which must succeed in time, and return its standard output."""
        done = subprocess.run(
            [*self.prefix, *command],
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=CLIENT_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def node_states(self) -> dict[str, str]:
        """Return the state of each node in sinfo's compact form."""
        fields = self.call("sinfo", "--noheader", "--partition=all", "--Node", "--format=%N %t").split()
        return dict(zip(fields[::2], fields[1::2], strict=True))

    def resume_nodes(self, *states: str) -> None:
        """Resume the nodes whose state starts with one of `states`, as an administrator does."""
        for node, state in self.node_states().items():
            if state.startswith(states):
                self.call("scontrol", "update", f"NodeName={node}", "State=RESUME")

    def wait_until_empty(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return when no job is pending, running or completing."""
        deadline = time.monotonic() + timeout_s
        while self.call("squeue", "--noheader", "--format=%i"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"Jobs are still there after {timeout_s:g} s:\n{self.call('squeue')}")
            time.sleep(0.2)

    def cancel_all_jobs(self) -> None:
        """Cancel all jobs and wait for their end, so that the next test starts with idle nodes."""
        self.call("scancel", f"--user={pwd.getpwuid(os.getuid()).pw_name}")
        self.wait_until_empty()

    def is_running(self, name: str) -> bool:
        """Whether slurmctld, or the slurmd of the node `name`, runs."""
        return name in self._running and self._running[name].poll() is None

    def stop_daemon(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop slurmctld, or the slurmd of the node `name`, with a signal; send SIGKILL if it does not exit."""
        daemon = self._running[name]
        daemon.send_signal(number)
        try:
            daemon.wait(timeout=10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def start_daemon(self, name: str) -> None:
        """Start slurmctld, or the slurmd of the node `name`, unless it runs."""
        if self.is_running(name):
            return
        kind, arguments = ("slurmctld", ["-D"]) if name == "slurmctld" else ("slurmd", ["-D", "-N", name])
        program = _program(kind)
        if program is None:
            raise RuntimeError(f"{kind} is not installed: on Debian, apt-get install slurm-wlm.")
        self._running[name] = subprocess.Popen(
            [*self.prefix, program, *arguments],
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd=self.folder,
        )

    def stop(self) -> None:
        """End every job and every daemon, then remove the folder; safe to call twice."""
        if self.is_running("slurmctld"):
            with contextlib.suppress(RuntimeError, TimeoutError, subprocess.TimeoutExpired):
                self.cancel_all_jobs()
        for daemon in reversed(self._running.values()):
            daemon.terminate()
        for name in self._running:
            self.stop_daemon(name)
        self._running.clear()
        self._kill_leftovers()
        # Only now: daemons whose folder is removed under them hang.
        shutil.rmtree(self.folder, ignore_errors=True)

    def _configure(self) -> None:
        for name in ("state", "spool", "dev", "log"):
            (self.folder / name).mkdir()
        user, host, ports = pwd.getpwuid(os.getuid()).pw_name, socket.gethostname(), set[int]()
        settings = {
            **SETTINGS,
            "SlurmctldHost": f"{host}(127.0.0.1)",
            "SlurmctldPort": str(_free_port(ports)),
            "SlurmUser": user,
            "SlurmdUser": user,
            "StateSaveLocation": f"{self.folder}/state",
            "SlurmctldPidFile": f"{self.folder}/slurmctld.pid",
            "SlurmctldLogFile": f"{self.folder}/log/slurmctld.log",
            "SlurmdSpoolDir": f"{self.folder}/spool/%n",
            "SlurmdPidFile": f"{self.folder}/slurmd-%n.pid",
            "SlurmdLogFile": f"{self.folder}/log/slurmd-%n.log",
            **self.settings,
        }
        lines = [f"{key}={value}" for key, value in settings.items()]
        gres = ["AutoDetect=off"]
        for name, gpu_class in CLASSES.items():
            for node in gpu_class.nodes:
                (self.folder / "spool" / node).mkdir()
                lines.append(
                    f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={_free_port(ports)} "
                    f"Sockets=2 CoresPerSocket={gpu_class.cores // 2} ThreadsPerCore=1 "
                    f"RealMemory={gpu_class.memory_mib} Gres=gpu:{name}:{gpu_class.gpus_per_node} "
                    f"Feature={gpu_class.features}"
                )
                gres.append(
                    f"NodeName={node} Name=gpu Type={name} File={self.folder}/dev/gpu[0-{gpu_class.gpus_per_node - 1}]"
                )
        lines.append(
            "PartitionName=DEFAULT State=UP MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE "
            f"GraceTime={self.grace_s}"
        )
        lines += [f"PartitionName={name} Nodes={','.join(c.nodes)}" for name, c in CLASSES.items()]
        lines.append("PartitionName=all Nodes=ALL Default=YES")
        lines.append("PartitionName=hi Nodes=ALL PriorityTier=100 PreemptMode=OFF GraceTime=0")
        # GPUs must be character devices: with plain files CUDA_VISIBLE_DEVICES stays empty.
        for index in range(max(c.gpus_per_node for c in CLASSES.values())):
            (self.folder / "dev" / f"gpu{index}").symlink_to("/dev/null")
        self.configuration.write_text("\n".join(lines) + "\n")
        (self.folder / "gres.conf").write_text("\n".join(gres) + "\n")

    def _start(self) -> None:
        for name in ("slurmctld", *NODES):
            self.start_daemon(name)
        self.wait_until_idle()

    def wait_until_idle(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return when all nodes are idle."""
        deadline = time.monotonic() + timeout_s
        states: dict[str, str] = {}
        while time.monotonic() < deadline:
            if any(daemon.poll() is not None for daemon in self._running.values()):
                break
            with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
                states = self.node_states()
                if list(states.values()) == ["idle"] * len(NODES):
                    return
            time.sleep(0.1)
        logs = "".join(path.read_text()[-1500:] for path in sorted((self.folder / "log").iterdir()))
        raise RuntimeError(f"The virtual cluster did not come up within {timeout_s:g} s.\n{states}\n{logs}")

    def _kill_leftovers(self) -> None:
        """Kill slurmstepd and jobs, which outlive slurmd, but not a user's shell with the same SLURM_CONF."""
        mark = f"SLURM_CONF={self.configuration}".encode()
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                variables = (entry / "environ").read_bytes().split(b"\0")
                is_daemon = b"slurm" in (entry / "cmdline").read_bytes().split(b"\0")[0]
                is_job = any(variable.startswith(b"SLURM_JOB_ID=") for variable in variables)
                if mark in variables and (is_daemon or is_job) and int(entry.name) != os.getpid():
                    os.kill(int(entry.name), signal.SIGKILL)

    def write_profile(self, pythons: Mapping[str, str]) -> Path:
        """Write the profile of these nodes, with the interpreter of each environment, and return its path."""
        lines = ['name = "virtual"', 'scheduler = "slurm"']
        for name, gpu_class in CLASSES.items():
            values = {
                "partition": name,
                "gpu": gpu_class.gpu,
                "gres_type": name,
                "nodes": len(gpu_class.nodes),
                "gpus_per_node": gpu_class.gpus_per_node,
                "cpus_per_node": gpu_class.cores,
                "cpus_per_unit": 1,
                "memory_gib_per_unit": 4,
                "memory_gib": gpu_class.memory_mib // 1024,
            }
            lines += ["", f"[gpu_classes.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
        for name, python in pythons.items():
            lines += ["", f"[environments.{name}]", f"python = {json.dumps(python)}"]
        self.profile.write_text("\n".join(lines) + "\n")
        return self.profile


@contextlib.contextmanager
def slurm_conf(cluster: VirtualCluster) -> Iterator[VirtualCluster]:
    """Set SLURM_CONF of this process to `cluster`."""
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(cluster.configuration)
    try:
        yield cluster
    finally:
        if before is None:
            os.environ.pop("SLURM_CONF", None)  # tests of another folder may have restored the environment
        else:
            os.environ["SLURM_CONF"] = before


def main() -> None:
    """Run a cluster until Ctrl-C or SIGTERM."""

    def exit_on_signal(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(0 if number == signal.SIGTERM else 128 + number)

    # Handled, not blocked: the daemons would inherit a blocked mask and never receive SIGTERM. A shell starts
    # background jobs with SIGINT ignored, so SIGINT needs a handler, too.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, exit_on_signal)
    with VirtualCluster() as cluster:
        profile = cluster.write_profile({"core": sys.executable, "transformers": sys.executable})
        sys.stdout.write(f"export SLURM_CONF={cluster.configuration}\n# profile: {profile}\n# Ctrl-C stops it.\n")
        sys.stdout.flush()
        signal.pause()


if __name__ == "__main__":
    main()
