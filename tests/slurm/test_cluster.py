"""The virtual cluster that the Slurm tests use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from hpcq.manifest.profiles import load_profile
from tests.slurm.cluster import CLASSES, CLIENT_TIMEOUT_S, VirtualCluster
from tests.slurm.waiting import wait_for


def test_every_gpu_class_gives_a_job_its_gpus(cluster: VirtualCluster) -> None:
    """A job sees as many GPUs as it requests, on a node of the requested class."""
    for name, gpu_class in CLASSES.items():
        output = cluster.call(
            "srun",
            f"--partition={name}",
            f"--gres=gpu:{name}:{gpu_class.gpus_per_node}",
            "bash",
            "-c",
            "echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES",
        )
        node, devices = output.split()
        assert node in gpu_class.nodes
        assert devices.split(",") == [str(index) for index in range(gpu_class.gpus_per_node)]


def test_hpcq_reads_the_written_profile(cluster: VirtualCluster) -> None:
    """The profile has all classes with their nodes and GPUs, and the given interpreters."""
    path = cluster.write_profile({"core": sys.executable})
    profile = load_profile(str(path), cluster.folder)
    assert profile.scheduler == "slurm"
    assert {name: (offer.nodes, offer.gpus_per_node) for name, offer in profile.gpu_classes.items()} == {
        name: (len(gpu_class.nodes), gpu_class.gpus_per_node) for name, gpu_class in CLASSES.items()
    }
    assert profile.environments["core"].python == sys.executable


def test_a_cluster_started_by_hand_leaves_nothing_behind(cluster: VirtualCluster) -> None:
    """`python -m tests.slurm.cluster` runs in parallel to another cluster, prints SLURM_CONF, and stops at SIGTERM."""
    command = [sys.executable, "-m", "tests.slurm.cluster"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        configuration = Path(process.stdout.readline().strip().removeprefix("export SLURM_CONF="))
        assert configuration.is_file()
        environment = {**cluster.environment(), "SLURM_CONF": str(configuration)}
        sbatch = ["sbatch", "--output=/dev/null", "--wrap=sleep 600"]
        subprocess.run(sbatch, env=environment, check=True, timeout=CLIENT_TIMEOUT_S, capture_output=True)
        squeue = ["squeue", "--noheader", "--states=RUNNING"]
        wait_for(
            "the job runs",
            lambda: bool(subprocess.check_output(squeue, env=environment, timeout=CLIENT_TIMEOUT_S)),
        )
        process.terminate()
        process.wait()
    assert process.returncode == 0
    assert not configuration.parent.exists()
    mark = str(configuration).encode()
    left = [entry for entry in Path("/proc").glob("[0-9]*/environ") if _contains(entry, mark)]
    assert left == []


def _contains(environ: Path, mark: bytes) -> bool:
    try:
        return mark in environ.read_bytes()
    except OSError:
        return False
