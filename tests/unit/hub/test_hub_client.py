"""The client of the hub: revisions, files, access, and failures of the hub and the network."""

from __future__ import annotations

import dataclasses
import os
import re
import socket
import time
from pathlib import Path

import pytest

from hpcq.core.hub_cache import RepoKind
from tests.hub_client import Answer, HubClient, finish
from tests.hub_server import HubServer
from tests.unit.hub.conftest import MODEL, write_model

TOKEN = "hf_secretsecretsecret"  # noqa: S105
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def with_variables(client: HubClient, **variables: str) -> HubClient:
    """Return the same user with further environment variables."""
    return dataclasses.replace(client, variables={**client.variables, **variables})


def test_a_branch_a_tag_and_a_commit_are_resolved(hub: HubServer, client: HubClient) -> None:
    """No revision is main; a branch or tag costs one request, a full commit none."""
    write_model(hub.repository(f"{MODEL}@v2"), seed=2)
    main, v2 = hub.commit(MODEL), hub.commit(f"{MODEL}@v2")
    assert client("resolve", "model", MODEL, None).value == {
        "commit": main,
        "requested": "main",
        "is_offline": False,
        "note": None,
    }
    assert client("resolve", "model", MODEL, "v2").value["commit"] == v2
    assert hub.counts() == {"GET revision 200": 2}
    assert client("resolve", "model", MODEL, COMMIT.upper()).value["commit"] == COMMIT
    assert hub.counts() == {}


def test_a_data_set_is_resolved_and_listed(hub: HubServer, client: HubClient) -> None:
    """Data sets have their own namespace."""
    (hub.repository("org/data", "datasets") / "test.jsonl").write_text("{}\n")
    commit = hub.commit("org/data", "datasets")
    assert client("resolve", "dataset", "org/data", None).value["commit"] == commit
    (file,) = client("list", "dataset", "org/data", commit).value
    assert (file["path"], file["size"], file["sha256"], len(file["blob_id"])) == ("test.jsonl", 3, None, 40)


def test_files_are_listed_with_their_digests(hub: HubServer, client: HubClient) -> None:
    """One request lists all files; LFS files have a SHA-256."""
    files = {file["path"]: file for file in client("list", "model", MODEL, hub.commit(MODEL)).value}
    assert hub.counts() == {"GET revision 200": 1}
    assert len(files["model-00001-of-00002.safetensors"]["sha256"]) == 64
    assert files["config.json"]["sha256"] is None
    assert "original/params.json" in files


def test_small_files_are_fetched_once(hub: HubServer, client: HubClient) -> None:
    """The second time needs no request, also for a file that the repository does not have."""
    call = ("fetch", "model", MODEL, hub.commit(MODEL), ["config.json"])
    folder = Path(client(*call, optional=["generation_config.json"]).value)
    assert folder == client.cache.snapshot(RepoKind.MODEL, MODEL, hub.commit(MODEL))
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert sum(hub.counts().values()) == 3
    assert client(*call, optional=["generation_config.json"]).value == str(folder)
    assert hub.counts() == {}


NOT_FOUND: tuple[tuple[tuple[object, ...], str], ...] = (
    (("resolve", "model", "org/none", None), "has no such model, or it is private and there is no token"),
    (("resolve", "dataset", "org/none", None), "has no such data set"),
    (("resolve", "model", MODEL, "v9"), "org/model@v9: the model has no branch, tag or commit 'v9'"),
    (("resolve", "model", MODEL, "abcdef1"), "A commit needs all 40 digits."),
    (("list", "model", MODEL, COMMIT), "the model does not have this commit (any more): choose another one at"),
    (("resolve", "model", "a b", None), "'a b' is not an id of a model on the hub"),
    (("access", "model", MODEL, "main", "x.json"), "org/model@main: the model has no file 'x.json'"),
    (("fetch", "model", MODEL, "COMMIT", ["x.json"]), "the model has no file 'x.json'"),
)
NO_ACCESS: tuple[tuple[tuple[object, ...], str], ...] = (
    (("access", "model", "org/gated", "main", "config.json"), "gated, and there is no token: request access at"),
    (("fetch", "model", "org/gated", "main", ["config.json"]), "/org/gated, then log in (`hf auth login`) or set"),
)


@pytest.mark.parametrize(
    ("call", "message", "exit_code", "failure"),
    [
        *((call, message, 2, "invalid input") for call, message in NOT_FOUND),
        *((call, message, 3, "missing resource") for call, message in NO_ACCESS),
    ],
)
def test_permanent_failures_are_not_repeated(
    hub: HubServer, client: HubClient, call: tuple[object, ...], message: str, exit_code: int, failure: str
) -> None:
    """The message names the repository, the revision and the fix; the hub is asked at most twice."""
    (hub.repository("org/gated") / "config.json").write_text("{}")
    (hub.repository("org/gated") / ".gated").write_text(TOKEN)
    name, *arguments = (hub.commit(MODEL) if argument == "COMMIT" else argument for argument in call)
    answer = client(str(name), *arguments)
    assert message in str(answer.error)
    assert (answer.exit_code, answer.failure, answer.notes) == (exit_code, failure, [])
    assert sum(hub.counts().values()) <= 2


def test_a_token_is_used_and_reaches_no_file(hub: HubServer, client: HubClient, tmp_path: Path) -> None:
    """A token in HF_TOKEN, or in the client's own file, opens a gated repository, and is written nowhere."""
    write_model(hub.repository("org/gated"))
    (hub.repository("org/gated") / ".gated").write_text(TOKEN)
    commit = hub.commit("org/gated")
    staged = with_variables(client, HF_TOKEN=TOKEN)("stage", "org/gated", commit)
    assert staged.error is None
    assert TOKEN not in staged.output
    texts = (path.read_bytes() for path in client.home.rglob("*") if path.is_file())
    assert not any(TOKEN.encode() in text for text in texts)
    other = dataclasses.replace(client, home=tmp_path / "other")
    other.home.mkdir()
    (other.home / "token").write_text(TOKEN)
    assert other("access", "model", "org/gated", commit, "config.json").error is None


def test_tokens_without_access_are_explained(hub: HubServer, client: HubClient) -> None:
    """The account has no access; the token is not valid; the repository may be private."""
    write_model(hub.repository("org/gated"))
    (hub.repository("org/gated") / ".gated").write_text(TOKEN)
    other = with_variables(client, HF_TOKEN="hf_other")  # noqa: S106
    answer = other("stage", "org/gated", hub.commit("org/gated"))
    assert f"has no access: request access at {hub.url}/org/gated with this account" in str(answer.error)
    assert (answer.exit_code, answer.failure) == (3, "missing resource")
    assert "or it is private and the account of the token has no access" in str(
        other("resolve", "model", "org/x", None).error
    )
    hub.set(tokens=TOKEN)
    invalid = other("resolve", "model", MODEL, None)
    assert "the hub does not accept the token (HF_TOKEN, or `hf auth login`): renew it." in str(invalid.error)
    assert invalid.exit_code == 3


def resolve_with_failures(hub: HubServer, client: HubClient, count: int) -> Answer:
    """Resolve main while all requests fail, and let them succeed after at least `count` failures."""
    started, failed = client.start("resolve", "model", MODEL, None), 0
    while failed < count:
        failed += sum(hub.counts().values())
        time.sleep(0.01)
    hub.set(fail_rate=0)
    answer = finish(started)
    assert answer.value["commit"] == hub.commit(MODEL)
    failed += sum(number for label, number in hub.counts().items() if not label.endswith("200"))
    assert failed == len(answer.notes)
    return answer


def test_a_rate_limit_is_waited_for(hub: HubServer, client: HubClient) -> None:
    """The client waits as long as the hub asks (Retry-After), and reports it."""
    hub.set(fail_rate=1, fail_status=429, retry_after=4)
    begin_s = time.monotonic()
    answer = resolve_with_failures(hub, client, 1)
    assert time.monotonic() - begin_s >= 4
    assert answer.notes[0] == "org/model@main: the hub answered with HTTP status 429; retry 1 in 4 s"


def test_failures_of_the_hub_are_repeated(hub: HubServer, client: HubClient) -> None:
    """Errors of the server are repeated, each with a line."""
    hub.set(fail_rate=1)
    answer = resolve_with_failures(hub, client, 2)
    assert answer.notes[1] == "org/model@main: the hub answered with HTTP status 500; retry 2 in 2 s"


def test_without_the_hub_only_optional_files_may_be_missing(hub: HubServer, client: HubClient) -> None:
    """A staged model without an index can be planned offline; a missing configuration is an error."""
    commit = hub.commit(MODEL)
    assert client("stage", MODEL, commit).error is None
    offline = with_variables(client, HF_HUB_OFFLINE="1")
    call = ("fetch", "model", MODEL, commit)
    assert offline(*call, ["config.json"], optional=["generation_config.json"]).error is None
    answer = offline(*call, ["generation_config.json"])
    assert "HF_HUB_OFFLINE is set and 'generation_config.json' is not in the cache: unset it, or run" in str(
        answer.error
    )
    assert answer.exit_code == 3


@pytest.mark.parametrize("status", [429, 503])
def test_retries_end(hub: HubServer, client: HubClient, status: int) -> None:
    """A failure that lasts longer than the limit ends the command as a lost connection."""
    hub.set(fail_rate=1, fail_status=status)
    answer = with_variables(client, HPCQ_HUB_RETRY_S="8")("resolve", "model", MODEL, None)
    assert f"the hub answered with HTTP status {status}, and retries for 8 s did not help: " in str(answer.error)
    assert (answer.exit_code, answer.failure) == (3, "connection lost")
    assert 1 <= len(answer.notes) <= 3


def test_a_rate_limit_longer_than_the_retries_ends_at_once(hub: HubServer, client: HubClient) -> None:
    """The client does not wait for a time that it may not wait for, and does not speak of retries."""
    hub.set(rate_limit="1/3000")
    client("resolve", "model", MODEL, None)
    answer = client("resolve", "model", MODEL, None)
    assert re.search(
        r"HTTP status 429 and asks to wait \d{4} s, longer than the \d+ s of HPCQ_HUB_RETRY_S", str(answer.error)
    )
    assert answer.notes == []


def test_without_a_connection_the_refs_of_the_cache_decide(hub: HubServer, client: HubClient) -> None:
    """The commit is that of the last staging, and the note says so; without a ref the command fails."""
    commit = hub.commit(MODEL)
    assert client("stage", MODEL, commit, revision="main").error is None
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        down = with_variables(dataclasses.replace(client, url=url), HPCQ_HUB_RETRY_S="2")
        offline = with_variables(client, HF_HUB_OFFLINE="1")
        for user, reason, failure in (
            (down, f"{url} cannot be reached", "connection lost"),
            (offline, "HF_HUB_OFFLINE is set", "missing resource"),
        ):
            found = user("resolve", "model", MODEL, None).value
            assert (found["commit"], found["is_offline"]) == (commit, True)
            assert str(found["note"]).startswith("offline: 'main' is the commit of 20")
            answer = user("resolve", "model", MODEL, "v2")
            assert f"org/model@v2: the cache {client.cache.hub} has no commit for 'v2', and {reason}: " in str(
                answer.error
            )
            assert (answer.exit_code, answer.failure) == (3, failure)


def test_a_server_that_is_not_a_hub_is_recognized(hub: HubServer, client: HubClient) -> None:
    """An answer that is not JSON, as from the login page of a network, is explained."""
    answer = dataclasses.replace(client, url=f"{hub.url}/x")("resolve", "model", MODEL, None)
    assert f"the request to {hub.url}/x failed (HTTP status 404): check HF_ENDPOINT." in str(answer.error)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        started = dataclasses.replace(client, url=url).start("resolve", "model", MODEL, None)
        connection, _ = server.accept()
        connection.recv(1 << 16)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>")
        connection.close()
        answer = finish(started)
    assert f"the answer of {url} is not that of a hub: check HF_ENDPOINT and the proxy settings" in str(answer.error)
    assert answer.exit_code == 3


def test_messages_name_the_endpoint(hub: HubServer, client: HubClient) -> None:
    """Links lead to the configured hub."""
    assert f"choose one of those at {hub.url}/{MODEL}." in str(client("resolve", "model", MODEL, "v9").error)
    assert os.environ["HF_HUB_OFFLINE"] == "1"
