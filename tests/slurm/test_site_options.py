"""Sites that accept or require other options of sbatch, and sites with two clusters."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from hpcq.core.attempts import read_attempts
from hpcq.core.errors import SetupError
from hpcq.core.paths import RunLayout
from hpcq.core.work_records import UnitState
from hpcq.launch.array_spec import ArraySpec, Dependency, Submission
from hpcq.launch.build_array_spec import build_array_spec
from hpcq.launch.job_status import unit_jobs
from hpcq.launch.slurm_launcher import SlurmLauncher
from hpcq.manifest.profiles import load_profile
from hpcq.plan.arrays import make_arrays
from hpcq.plan.units import PlannedUnit, Shape
from hpcq.slurm import squeue
from tests.command_line import REHEARSAL, Hpcq
from tests.slurm.cluster import VirtualCluster
from tests.slurm.sites import enter_site
from tests.slurm.synthetic_units import layout_at, synthetic_array, synthetic_unit
from tests.slurm.waiting import wait_until_ended

NUMBERS = itertools.count()

PROFILE = f"""
name = "virtual"
scheduler = "slurm"
[slurm]
{{options}}
[gpu_classes.h100]
partition = "h100"
gpu = "H100-80"
nodes = 2
gpus_per_node = 8
cpus_per_node = 64
memory_gib = 960
[environments.core]
python = "{sys.executable}"
"""

ACCOUNT = """
account = "proj42"
comment = "cost centre 17"
export = "NONE"
extra = { wckey = "w1", licenses = "hpcq_test:1" }
"""

SITES: Mapping[str, tuple[str, dict[str, str]]] = {
    "gpus_only": ("gpu_option = 'gpus'", {"TresPerJob": "gres:gpu:1", "MinMemoryNode": "120G"}),
    "gpus_per_node_only": (
        "gpu_option = 'gpus-per-node'\nmemory_option = 'mem-per-cpu'",
        {"TresPerNode": "gres:gpu:1", "MinMemoryCPU": "15G"},
    ),
    "memory_per_gpu": ("memory_option = 'mem-per-gpu'", {"TresPerNode": "gres:gpu:1", "MemPerTres": "gres:gpu:122880"}),
    "no_memory": (
        "gpu_option = 'none'\nmemory_option = 'none'\nextra = { exclusive = true }",
        {"MinMemoryCPU": "1G", "OverSubscribe": "NO"},
    ),
    "account_and_comment": (ACCOUNT, {"Account": "proj42", "Licenses": "hpcq_test:1", "TresPerNode": "gres:gpu:1"}),
}
"""By site: the profile's options with which it accepts jobs, and what Slurm reports of such a job."""


@pytest.fixture
def layout(cluster: VirtualCluster, tmp_path: Path) -> Iterator[RunLayout]:
    """A new run on an idle cluster."""
    yield layout_at(tmp_path, name=f"options-{next(NUMBERS)}")
    cluster.cancel_all_jobs()


def unit_on_one_gpu(layout: RunLayout, options: str) -> list[ArraySpec]:
    """Return the array of a unit with one GPU, as hpcq would submit it with a profile of these options."""
    path = layout.runs.parent / "profile.toml"
    path.write_text(PROFILE.format(options=options))
    profile = load_profile(str(path), path.parent)
    work = synthetic_unit(layout, "unit").work
    unit = PlannedUnit(id="unit", work=work, environment="core", shape=Shape(gpu_class="h100", gpus_per_node=1))
    return [build_array_spec(layout.name, array, profile) for array in make_arrays([unit], profile)]


@pytest.mark.parametrize("site", SITES)
def test_a_site_that_insists_on_its_options_runs_a_unit(
    cluster: VirtualCluster, layout: RunLayout, site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The site refuses the default options; with those of the profile, Slurm runs the unit with what was planned."""
    options, expected = SITES[site]
    enter_site(monkeypatch, site)
    with pytest.raises(SetupError, match="sbatch rejected array"):
        SlurmLauncher(layout).submit(unit_on_one_gpu(layout, ""))
    (submitted,) = SlurmLauncher(layout).submit(unit_on_one_gpu(layout, options))
    reported = reported_fields(cluster, submitted)
    assert {name: reported.get(name) for name in expected} == expected
    states = wait_until_ended(layout)
    assert [job.state.unit_state for job in states.values()] == [UnitState.DONE]
    assert [len(records) for records in read_attempts(layout.attempts).values()] == [1]


def reported_fields(cluster: VirtualCluster, submitted: Submission) -> dict[str, str]:
    """Return the fields of a job by scontrol's names."""
    return dict(re.findall(r"(\S+?)=(\S*)", cluster.call("scontrol", "show", "job", "--oneliner", submitted.job_id)))


def test_a_job_is_found_by_a_comment_that_also_has_the_text_of_the_site(
    layout: RunLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sbatch's answer is lost, and the comment is the site's text and the folder of the submission."""
    enter_site(monkeypatch, "lost_answer")
    (submitted,) = SlurmLauncher(layout).submit(unit_on_one_gpu(layout, "comment = 'cost centre 17'"))
    states = wait_until_ended(layout)
    assert [(job.job_id, job.state.unit_state) for job in states.values()] == [(submitted.job_id, UnitState.DONE)]
    for path in layout.submissions.iterdir():
        path.unlink()
    assert {unit: job.job_id for unit, job in unit_jobs(layout).items()} == {"unit": submitted.job_id}


def test_the_smallest_array_size_of_all_classes_counts(layout: RunLayout) -> None:
    """Elements of one array depend on those of another, so both are split at the same index."""
    first, second = ([synthetic_unit(layout, f"{name}-{index}") for index in range(3)] for name in ("a", "b"))
    submitted = SlurmLauncher(layout).submit(
        [
            synthetic_array(layout, "first", first, max_array_size=2),
            synthetic_array(layout, "second", second, depends_on=("first",), dependency=Dependency.AFTERCORR),
        ]
    )
    assert [(one.array, one.part, len(one.units)) for one in submitted] == [
        ("first", 0, 2),
        ("first", 1, 1),
        ("second", 0, 2),
        ("second", 1, 1),
    ]
    assert {job.state.unit_state for job in wait_until_ended(layout).values()} == {UnitState.DONE}


def test_a_run_on_another_cluster(
    cluster: VirtualCluster,
    plain_cluster: VirtualCluster,
    core_python: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`submit`, `status` and `cancel` ask the profile's cluster, which is not the one of this machine."""
    clusters = tmp_path / "clusters"
    clusters.mkdir()
    (clusters / "plain").symlink_to(plain_cluster.configuration)
    monkeypatch.setenv("HPCQ_TEST_CLUSTERS", str(clusters))
    profile = cluster.write_profile({"core": str(core_python)})
    elsewhere = tmp_path / "elsewhere.toml"
    elsewhere.write_text(profile.read_text() + "[slurm]\ncluster = 'plain'\n")
    hpcq = Hpcq(python=core_python, folder=tmp_path)
    text = REHEARSAL.replace('"rehearsal"', '"elsewhere"')
    manifest = hpcq.write(text.replace('"local"', f'"{elsewhere}"'))
    enter_site(monkeypatch, "two_clusters")
    done = hpcq("submit", manifest, "--wait", "--json")
    assert done.code == 0, done.err
    assert hpcq("status", "elsewhere", "--json").document["counts"] == {"done": 6}
    assert not squeue.poll("elsewhere")  # of this machine's cluster
    held = hpcq("submit", manifest, "-O", "run.name=held", "-O", "evaluate.synthetic.request_seconds=60", "--json")
    assert held.code == 0, held.err
    assert hpcq("cancel", "held").code == 0
    states = hpcq("status", "held", "--json").document["counts"]
    assert set(states) <= {"cancelled", "done", "failed"}
    assert "cancelled" in states
