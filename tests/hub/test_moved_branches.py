"""Branches that move while runs exist: a run keeps its commits, and another run gets other addresses."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from hpcq.core.paths import RunLayout
from hpcq.core.work_records import UnitState
from tests.hub.changes import change_model, moved_branch, reverse_items
from tests.hub.conftest import Submitted
from tests.hub.manifests import SMALL, WHOLE
from tests.hub.repositories import ARC, MODEL
from tests.hub.scores import Expected, check_responses, variants_of
from tests.hub.user import User
from tests.hub_server import HubServer
from tests.slurm.cluster import VirtualCluster
from tests.slurm.waiting import wait_for_states

PARTITION = "h100"


@pytest.fixture
def moved(hub: HubServer) -> Iterator[None]:
    """Main of the model and of ARC have moved."""
    with moved_branch(hub, MODEL, "models", change_model), moved_branch(hub, ARC, "datasets", reverse_items):
        yield


@pytest.mark.usefixtures("moved")
def test_another_run_has_other_addresses(
    submitted: Submitted, staged_user: User, hub: HubServer, expected: Mapping[str, Expected]
) -> None:
    """Submitted under another name after main has moved, no variant and no evaluation has the address of before."""
    second = staged_user.succeed("plan", staged_user.hpcq.write(WHOLE), "-O", "run.name=second", "--json").document
    first = json.loads((submitted.folder / "plan.json").read_text(encoding="utf-8"))
    assert not variant_ids(first) & variant_ids(second)
    assert first["address"] != second["address"]
    assert f"{MODEL}: main is commit {hub.commit(MODEL)[:12]}." in second["notes"]

    manifest = staged_user.hpcq.write(SMALL)
    staged_user.succeed("submit", manifest, "-O", "run.name=second")
    results = staged_user.hpcq.folder / "runs" / "second" / "results.h5"
    (variant,) = variants_of(results).values()
    with pytest.raises(AssertionError):
        check_responses(results, variant, expected["bf16"])
    report = staged_user.succeed("report", "second").out
    for name, kind in ((MODEL, "models"), (ARC, "datasets")):
        assert f"{name}: main is commit {hub.commit(name, kind)[:12]}" in report


def variant_ids(plan: Mapping[str, Any]) -> set[str]:
    """Return the ids of a plan's units without the merge."""
    return {unit["id"] for unit in plan["units"] if unit["kind"] != "merge"}


def test_a_run_keeps_its_commits(
    staged_user: User, hub: HubServer, cluster: VirtualCluster, request: pytest.FixtureRequest,
    expected: Mapping[str, Expected],
) -> None:  # fmt: skip
    """If main moves after half of a run, the other half uses the same commit, and plan and report say so."""
    user, commits = staged_user, {MODEL: hub.commit(MODEL), ARC: hub.commit(ARC, "datasets")}
    manifest = user.hpcq.write(SMALL)
    options = ("-O", f"cluster.profile={cluster.profile}", "-O", "evaluate.shards=2")
    set_partition(cluster, "DOWN")
    submitted = user.succeed("submit", manifest, *options, "--json").document["submitted"]
    (job,) = {part["job_id"] for part in submitted if part["array"].startswith("evaluate")}
    cluster.call("scontrol", "hold", f"{job}_1")
    set_partition(cluster, "UP")
    layout = RunLayout(name="small", **{key: user.hpcq.folder / key for key in ("runs", "checkpoints", "logs")})
    wait_for_states(layout, UnitState.DONE, 1)

    request.getfixturevalue("moved")
    new = {MODEL: hub.commit(MODEL), ARC: hub.commit(ARC, "datasets")}
    assert all(new[name] != commits[name] for name in commits)
    notes = [f"{name}: main has moved to commit {new[name][:12]} since this run was submitted. The run keeps "
             f"{commits[name][:12]}" for name in commits]  # fmt: skip
    planned = user.succeed("plan", manifest, *options, "--json").document
    assert all(any(note in one for one in planned["notes"]) for note in notes), planned["notes"]

    user.succeed("cancel", "small")
    user.succeed("submit", manifest, *options, "--wait")
    user.succeed("resume", "small", "--failed", "--wait")
    results = user.hpcq.folder / "runs" / "small" / "results.h5"
    (variant,) = variants_of(results).values()
    check_responses(results, variant, expected["bf16"])
    report = " ".join(user.succeed("report", "small").out.split())
    assert all(note in report for note in notes), report


def set_partition(cluster: VirtualCluster, state: str) -> None:
    """Let jobs start (UP), or only wait (DOWN)."""
    cluster.call("scontrol", "update", f"PartitionName={PARTITION}", f"State={state}")


def test_a_commit_of_a_lock_file_that_the_hub_has_no_more(user: User) -> None:
    """The sentence names the lock file's commit, and a way to continue."""
    gone = "b" * 40
    row = f'kind = "model"\nid = "{MODEL}"\nrequested = "main"\ncommit = "{gone}"\n'
    lock = user.hpcq.write(f'{SMALL}[locked]\nhpcq = "0.1.0"\n[[locked.repositories]]\n{row}')
    done = user("submit", lock)
    assert done.code == 2
    assert f"{MODEL}@{gone[:12]}: the lock file names this commit, which is neither on the hub nor in" in done.err
    assert "submit the manifest as another run (run.name), which uses the current commit of 'main'." in done.err
