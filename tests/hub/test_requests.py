"""Counts of requests to the hub after a manifest is staged: by jobs, by further commands and by submissions."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

from tests.hub.manifests import SMALL
from tests.hub.repositories import ARC, MODEL
from tests.hub.scores import Expected, check_responses, variants_of
from tests.hub.user import User
from tests.hub_server import HubServer

UNITS = 8
CLIENTS_OWN = "info"
"""huggingface_hub (1.33) asks each day for /api/agent-harnesses, which the hub of the tests lacks."""


def requests(hub: HubServer) -> dict[str, int]:
    """Return the requests since the last call."""
    return {label: count for label, count in hub.counts().items() if CLIENTS_OWN not in label}


def test_requests_do_not_depend_on_jobs_and_commands(
    staged_user: User, hub: HubServer, expected: Mapping[str, Expected]
) -> None:
    """A submission asks once per repository; jobs, other commands and a lock file ask nothing, though they could."""
    user = staged_user
    manifest = user.hpcq.write(f"{SMALL}shards = {UNITS}\n")
    asked = {"GET revision 200": 2}  # the model and the data set
    profile = user.hpcq.write(LOCAL_PROFILE, "profile.toml")
    options = ("-O", f"cluster.profile={profile}")
    user.succeed("submit", manifest, *options)
    assert requests(hub) == asked
    assert evaluated_by("small", user) == UNITS
    for command in ("resume", "status", "merge", "report"):
        user.succeed(command, "small")
    assert requests(hub) == {}
    user.succeed("submit", manifest, *options)
    assert requests(hub) == asked

    folder = user.hpcq.folder / "runs" / "small"
    (variant,) = variants_of(folder / "results.h5").values()
    check_responses(folder / "results.h5", variant, expected["bf16"])
    assert set(lock_repositories(folder / "manifest.lock.toml")) == {MODEL, ARC}
    user.succeed("submit", folder / "manifest.lock.toml")
    assert requests(hub) == {}


LOCAL_PROFILE = f"""
name = "here"
scheduler = "local"
[local]
parallel_units = {UNITS}
[gpu_classes.cpu]
cpus_per_node = {UNITS}
memory_gib = 64
"""


def evaluated_by(run: str, user: User) -> int:
    """Return the number of units that have evaluated."""
    units = user.succeed("status", run, "--json").document["units"]
    return sum(unit["kind"] == "evaluate" and unit["state"] == "done" for unit in units)


def lock_repositories(lock: Path) -> list[str]:
    """Return the ids of the repositories in a lock file."""
    return [row["id"] for row in tomllib.loads(lock.read_text(encoding="utf-8"))["locked"]["repositories"]]
