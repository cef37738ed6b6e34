"""Runs whose models, benchmarks and calibration texts come from a hub, on nodes without a network."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping

import pytest

from tests.hub.conftest import Submitted
from tests.hub.manifests import WITHOUT_GROUP
from tests.hub.namespace import forwarded_port
from tests.hub.repositories import DATASETS, MODEL
from tests.hub.scores import Expected, check_responses, check_variant, variants_of
from tests.hub.user import User
from tests.hub_server import HubServer
from tests.slurm.cluster import VirtualCluster

SCHEMES = ("bf16", "gptq-w4a16-g64", "fp8-dynamic")
STAGE_CLASS = """
[staging]
submit_limit_gib = 0
[gpu_classes.transfer]
partition = "a6000"
roles = ["stage"]
cpus_per_node = 48
cpus_per_unit = 1
memory_gib = 200
memory_gib_per_unit = 4
"""


def test_nodes_cannot_reach_the_hub(hub: HubServer, cluster: VirtualCluster) -> None:
    """A job that connects to the hub's port fails; the same command succeeds on the login side."""
    port = hub.url.rpartition(":")[2]
    connect = ("bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{port}")
    subprocess.run(connect, check=True)
    with pytest.raises(RuntimeError, match="Connection refused"):
        cluster.call("srun", "--partition=a6000", *connect)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_scores_equal_those_of_lm_eval(submitted: Submitted, expected: Mapping[str, Expected], scheme: str) -> None:
    """Staged by `submit`, quantized and evaluated without a network: lm-eval gives the same with its own downloads."""
    assert submitted.result.code == 0, submitted.result.err
    variants = variants_of(submitted.results)
    assert variants.keys() == set(SCHEMES)
    assert "mmlu" in {one.task for one in variants[scheme].scores}
    check_variant(submitted.results, variants[scheme], expected[scheme])


def test_requests_are_bounded_by_repositories_and_files(submitted: Submitted, hub: HubServer) -> None:
    """`submit` asks for each commit and each list of files once, and for each file twice: what it is, and its bytes."""
    files = sum(len([*(hub.root / kind / name).rglob("*")]) for kind, name in repositories())
    counts = {label: count for label, count in submitted.counts.items() if "info" not in label}
    assert sum(count for label, count in counts.items() if "revision" in label) <= 3 * len(repositories())
    assert sum(counts.values()) <= 3 * len(repositories()) + 3 * files


def repositories() -> list[tuple[str, str]]:
    """Return kind and id of all repositories."""
    return [("models", MODEL), *(("datasets", name) for name in DATASETS)]


def test_the_report_names_the_commits(submitted: Submitted, hub: HubServer) -> None:
    """Each repository has one line with its branch and its commit."""
    report = submitted.user.succeed("report", "hub").out
    for kind, name in repositories():
        assert f"{name}: main is commit {hub.commit(name, kind)[:12]}" in report


def test_a_unit_stages_where_the_profile_has_a_class_for_it(
    user: User, hub: HubServer, cluster: VirtualCluster, prefix: tuple[str, ...], expected: Mapping[str, Expected]
) -> None:
    """Only the staging has a way to the hub. All other units wait for it, and give the scores of lm-eval."""
    hub.set(redirect=0)  # the way leads to one port
    manifest = WITHOUT_GROUP.replace('"gptq-w4a16-g64", ', "")
    with forwarded_port(prefix, int(hub.url.rpartition(":")[2])) as port:
        profile = user.hpcq.write(stage_profile(cluster, port), "profile.toml")
        options = (user.hpcq.write(manifest), "-O", f"cluster.profile={profile}")
        done = user.succeed("submit", *options, "--wait")
        again = user.succeed("plan", *options, "-O", "run.name=again", "--json").document
    assert ": stage-transfer-" in done.out.splitlines()[0]
    assert "stage" not in {array["kind"] for array in again["arrays"]}
    results = user.hpcq.folder / "runs" / "hub" / "results.h5"
    variants = variants_of(results)
    assert variants.keys() == {"bf16", "fp8-dynamic"}
    check_variant(results, variants["bf16"], expected["bf16"])
    check_responses(results, variants["fp8-dynamic"], expected["fp8-dynamic"])


def stage_profile(cluster: VirtualCluster, port: int) -> str:
    """Return the cluster's profile with a class that stages, in whose environment the hub is at `port`."""
    variables = f'variables = {{ HF_ENDPOINT = "http://127.0.0.1:{port}" }}\n'
    text = re.sub(r"(?<=\[environments.core\]\n)", variables, cluster.profile.read_text(encoding="utf-8"))
    return text + STAGE_CLASS
