"""Shipped manifests on the virtual cluster: the jobs in Slurm match the plan.

The tests query Slurm, not hpcq's files. No job starts, because the nodes are drained, unless a test resumes them.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from submitit.slurm.slurm import _make_sbatch_string

from hpcq.api import Run
from hpcq.launch.build_array_spec import build_array_spec
from hpcq.launch.slurm_launcher import sbatch_options
from hpcq.manifest.profiles import Profile, load_profile
from tests.command_line import Hpcq
from tests.slurm.cluster import CLASSES, NODES, VirtualCluster

MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"
SYNTHETIC = ("-O", "evaluate.backend=synthetic", "-O", "evaluate.synthetic.emulate=vllm", "-O", "tasks.limit=1")


@pytest.fixture
def hpcq(cluster: VirtualCluster, core_python: Path, tmp_path: Path) -> Iterator[Hpcq]:
    """The command line in an empty folder, with an idle cluster on which nothing starts."""
    cluster.wait_until_empty()
    for node in NODES:
        cluster.call("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")
    yield Hpcq(python=core_python, folder=tmp_path)
    cluster.cancel_all_jobs()
    cluster.resume_nodes("drain")
    cluster.wait_until_idle()


def shown_jobs(cluster: VirtualCluster) -> dict[str, dict[str, str]]:
    """Return the fields that scontrol shows of each pending job, by array name; one entry per array."""
    jobs = {}
    for line in cluster.call("scontrol", "show", "job", "--oneliner").splitlines():
        fields = dict(re.findall(r"(\S+?)=(\S*)", line))
        if fields["JobState"] == "PENDING":
            jobs[fields["JobName"].split(":")[2]] = fields
    return jobs


def test_the_study_is_submitted_as_it_is_planned(hpcq: Hpcq, cluster: VirtualCluster) -> None:
    """85 units: partition, GPUs, nodes, time limit and dependencies of each array in Slurm are those of the plan."""
    profile = ("-O", "cluster.profile=clusters/virtual.toml")
    planned = hpcq("plan", MANIFESTS / "paper.toml", "--json", *SYNTHETIC, *profile).document
    done = hpcq("submit", MANIFESTS / "paper.toml", *SYNTHETIC, *profile)
    assert done.code == 0, done.err
    jobs = shown_jobs(cluster)
    assert set(jobs) == {array["name"] for array in planned["arrays"]}
    listing = cluster.call("squeue", "--noheader", "--array", "--states=PENDING", "--format=%i")
    assert len(listing.split()) == len(planned["units"]) == 85
    for array in planned["arrays"]:
        job = jobs[array["name"]]
        gpus, nodes = array["gpus_per_node"], array["nodes"]
        assert job["Partition"] == array["gpu_class"]
        assert job.get("TresPerNode", "") == (f"gres:gpu:{array['gpu_class']}:{gpus}" if gpus else "")
        assert job["NumNodes"].split("-")[0] == str(nodes)
        assert _minutes(job["TimeLimit"]) == array["time_limit_minutes"]
        assert job["Requeue"] == "1"
        offer = CLASSES[array["gpu_class"]]
        cores = int(re.search(r"cpu=(\d+)", job["TRES"])[1]) if "TRES" in job else int(job["NumCPUs"])  # type: ignore[index]
        assert cores <= nodes * offer.cores
        assert _dependencies(job["Dependency"]) == {
            (array["dependency"], jobs[earlier]["ArrayJobId" if "ArrayJobId" in jobs[earlier] else "JobId"])
            for earlier in array["depends_on"]
        }
    by_unit = {unit["id"]: unit for unit in planned["units"]}
    whole = next(unit for name, unit in by_unit.items() if "405b" in name and "--bf16--" in name)
    assert (whole["nodes"], whole["gpus_per_node"], whole["tensor_parallel"], whole["pipeline_parallel"]) == (
        2,
        8,
        8,
        2,
    )


def test_405b_runs_synthetically_on_two_nodes(hpcq: Hpcq, cluster: VirtualCluster) -> None:
    """The unquantized 405B with the synthetic backend takes both H100 nodes, and is done after one attempt."""
    cluster.resume_nodes("drain")
    cluster.wait_until_idle()
    arguments = (MANIFESTS / "405b.toml", "-O", "cluster.profile=clusters/virtual.toml", "-O", 'schemes.use=["bf16"]')
    done = hpcq("submit", *arguments, *SYNTHETIC, "--wait", "--json")
    assert done.code == 0, done.err
    assert done.document["counts"] == {"done": 2}
    (attempt,) = (hpcq.folder / "runs" / "llama-3.1-405b" / "attempts").glob("evaluate*.json")
    job_id = json.loads(attempt.read_text())["job_id"]
    assert " NodeList=h100-[1-2] " in cluster.call("scontrol", "show", "job", "--oneliner", job_id)


def _minutes(text: str) -> int:
    """Convert Slurm's time, for example '1-00:00:00' to 1440."""
    days, _, clock = text.rpartition("-")
    hours, minutes, _ = map(int, clock.split(":"))
    return (int(days or 0) * 24 + hours) * 60 + minutes


def _dependencies(text: str) -> set[tuple[str, str]]:
    """Return type and job id of each dependency in 'aftercorr:12_*(unfulfilled),…'."""
    return set(re.findall(r"(after\w+):(\d+)", text))


@pytest.mark.parametrize("name", ["405b.toml", "paper.toml", "quickstart.toml"])
def test_slurm_accepts_every_array_of_the_shipped_manifests(
    name: str, cluster: VirtualCluster, hpcq: Hpcq, tmp_path: Path
) -> None:
    """`sbatch --test-only` accepts each array, with the profile that `init --from-sinfo` writes."""
    cluster.resume_nodes("drain")
    cluster.wait_until_idle()
    assert hpcq("init", "--from-sinfo", "virtual.toml").code == 0
    profile = load_profile(str(tmp_path / "virtual.toml"), tmp_path)
    planned = Run(MANIFESTS / name, [f"cluster.profile={tmp_path / 'virtual.toml'}"]).plan()
    assert planned.arrays
    for array in planned.arrays:
        spec = build_array_spec("test", array, profile)
        script = _make_sbatch_string(command="true", folder=tmp_path, **sbatch_options(spec), map_count=len(spec.units))
        (tmp_path / "job.sh").write_text(script)
        tested = subprocess.run(
            ["sbatch", "--test-only", str(tmp_path / "job.sh")], capture_output=True, text=True, check=False
        )
        assert tested.returncode == 0, (array.name, tested.stderr)


def test_the_profile_from_sinfo_matches_the_cluster(hpcq: Hpcq, cluster: VirtualCluster, tmp_path: Path) -> None:
    """It has the classes of the shipped profile. Nodes that are down do not count. Without nodes, none is written."""
    assert hpcq("init", "--from-sinfo", "none.toml").code == 3
    assert not (tmp_path / "none.toml").exists()
    cluster.resume_nodes("drain")
    cluster.wait_until_idle()
    done = hpcq("init", "--from-sinfo")
    assert (done.code, "CHECK" in done.out) == (0, True)
    found = load_profile(str(tmp_path / "clusters" / "virtual.toml"), tmp_path)
    shipped = load_profile("clusters/virtual.toml", MANIFESTS)
    assert _shapes(found) == _shapes(shipped)
    cluster.call("scontrol", "update", "NodeName=h100-2", "State=DRAIN", "Reason=test")
    cluster.call("scontrol", "update", "NodeName=a100-1", "State=DOWN", "Reason=test")
    assert hpcq("init", "--from-sinfo").code == 2
    assert hpcq("init", "--from-sinfo", "--overwrite").code == 0
    classes = load_profile(str(tmp_path / "clusters" / "virtual.toml"), tmp_path).gpu_classes
    assert (classes["h100"].nodes, "a100" in classes) == (1, False)
    cluster.resume_nodes("down")


def _shapes(profile: Profile) -> dict[str, tuple[object, ...]]:
    """Return the fields that both profiles must share; the partitions may differ."""
    return {
        name: (offer.gpu, offer.gres_type, offer.nodes, offer.gpus_per_node, offer.cpus_per_node, offer.memory_gib)
        for name, offer in profile.gpu_classes.items()
    }
