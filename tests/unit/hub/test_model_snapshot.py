"""Staging of models: what is downloaded, verified and marked, with failures of the hub, the disk and the process."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import pytest

from hpcq.core.digests import digest_of_model
from hpcq.core.errors import SetupError
from hpcq.core.files import digest_of_file
from hpcq.core.hub_cache import RepoKind
from hpcq.core.snapshot_marker import Reference
from hpcq.stage.hub_client import RepoFile
from hpcq.stage.snapshot import Snapshot, check_space, is_staged, read_marker
from tests.hub_client import FILE_LIMIT, HubClient, finish
from tests.hub_server import HubServer, running_hub
from tests.unit.hub.conftest import MODEL, NEEDED, SHARDS, write_model

KILLS = int(os.environ.get("HPCQ_TEST_KILLS", "5"))
"""Number of kills of a staging; set the variable for a longer test."""

TIMEOUT_S = 120.0


def snapshot_of(hub: HubServer, client: HubClient) -> Snapshot:
    """Return the snapshot of the model in the user's cache."""
    return Snapshot(kind=RepoKind.MODEL, repo_id=MODEL, commit=hub.commit(MODEL), cache=client.cache)


def staged(snapshot: Snapshot) -> bool:
    """Return what a plan asks."""
    return is_staged(snapshot.kind, snapshot.repo_id, snapshot.commit, snapshot.cache)


def has_content(snapshot: Snapshot, hub: HubServer) -> bool:
    """Return whether the snapshot has exactly the files of the hub that are needed."""
    original = hub.repository(MODEL)
    found = {path.relative_to(snapshot.folder).as_posix(): path for path in snapshot.folder.rglob("*")}
    return set(found) == NEEDED and all(
        path.read_bytes() == (original / name).read_bytes() for name, path in found.items()
    )


def test_a_model_is_staged_once(hub: HubServer, client: HubClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The needed files, and no others, are downloaded; the second time needs no request."""
    snapshot = snapshot_of(hub, client)
    size = sum((hub.repository(MODEL) / name).stat().st_size for name in NEEDED)
    assert not staged(snapshot)
    assert client("missing", MODEL, snapshot.commit).value == {
        "files": len(NEEDED) - 1,  # the index is already there
        "size": size - (snapshot.folder / "model.safetensors.index.json").stat().st_size,
        "total": size,
    }
    hub.counts()
    answer = client("stage", MODEL, snapshot.commit, revision="main")
    assert answer.error is None
    assert (answer.value["origin"], answer.value["size"]) == ("downloaded", size)
    assert staged(snapshot)
    assert has_content(snapshot, hub)
    assert hub.counts() == {
        "GET revision 200": 1,
        "HEAD resolve 200": 4,
        "GET resolve 200": 4,
        "HEAD resolve 302": 3,  # one of them checks the access
        "GET cdn 200": 2,
    }
    for call in (("stage", MODEL, snapshot.commit), ("missing", MODEL, snapshot.commit)):
        again = client(*call)
        assert again.value.get("origin", "already staged") == "already staged"
        assert hub.counts() == {}
    marker = read_marker(snapshot)
    assert marker is not None
    monkeypatch.setenv("HPCQ_CACHE", str(client.home / "other"))
    assert marker.digest == digest_of_model(snapshot.folder)
    assert {file.path: file.sha256 for file in marker.files} == {
        name: digest_of_file(hub.repository(MODEL) / name) for name in NEEDED
    }
    assert (client.cache.repository(RepoKind.MODEL, MODEL) / "refs/main").read_text() == snapshot.commit


def test_nothing_but_the_marker_says_that_a_model_is_staged(hub: HubServer, client: HubClient) -> None:
    """Without the marker, or with a file that is missing or has another size, the model is not staged."""
    snapshot = snapshot_of(hub, client)
    client("stage", MODEL, snapshot.commit)
    shard = (snapshot.folder / SHARDS[0]).resolve()
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    assert not staged(snapshot)
    shard.unlink()
    assert not staged(snapshot)
    shard.write_bytes(content)
    assert staged(snapshot)
    marker = snapshot.marker.read_text()
    for damaged in (marker[:-10], json.dumps({**json.loads(marker), "files": []})):
        snapshot.marker.write_text(damaged)
        assert not staged(snapshot)


@pytest.mark.parametrize(
    "options",
    [
        {"fail_rate": 0.2, "fail_status": 500},
        {"fail_rate": 0.2, "fail_status": 503, "only": "cdn|resolve"},
        {"rate_limit": "8/1"},
        {"delay_s": 0.3},
    ],
    ids=str,
)
def test_staging_survives_a_bad_hub(hub: HubServer, client: HubClient, options: dict[str, object]) -> None:
    """Errors of the server, rate limits and slow answers only cost time."""
    hub.set(**options)
    snapshot = snapshot_of(hub, client)
    answer = dataclasses.replace(client, variables={"HPCQ_HUB_RETRY_S": "200"})("stage", MODEL, snapshot.commit)
    assert answer.error is None, answer
    assert staged(snapshot)
    assert has_content(snapshot, hub)


def test_a_cut_download_continues(hub: HubServer, client: HubClient) -> None:
    """A connection that is cut again and again only costs the bytes since the last 10 MiB."""
    write_model(hub.repository(MODEL), shard_bytes=30_000_000)
    hub.set(cut_after=12_000_000, only="cdn")
    snapshot = snapshot_of(hub, client)
    answer = client("stage", MODEL, snapshot.commit)
    assert answer.error is None, answer
    assert has_content(snapshot, hub)
    counts = hub.counts()
    assert counts["GET cdn range cut 206"] == 2  # the second of three parts, of both shards
    assert counts["GET cdn range 206"] == 2


def test_a_connection_that_is_always_cut_is_a_lost_connection(hub: HubServer, client: HubClient) -> None:
    """Without progress the command ends, and what was complete is kept."""
    hub.set(cut_after=1000, only="cdn")
    snapshot = snapshot_of(hub, client)
    answer = dataclasses.replace(client, variables={"HPCQ_HUB_RETRY_S": "3"})("stage", MODEL, snapshot.commit)
    assert f"org/model@{snapshot.commit[:12]}: the connection was lost" in str(answer.error)
    assert (answer.exit_code, answer.failure) == (3, "connection lost")
    assert not staged(snapshot)
    hub.set(cut_after=0)
    hub.counts()
    assert client("stage", MODEL, snapshot.commit).error is None
    assert has_content(snapshot, hub)
    assert "GET resolve 200" not in hub.counts()  # the small files were complete


def test_a_hub_that_goes_away_during_a_download(tmp_path: Path) -> None:
    """The command ends as a lost connection; when the hub is back, staging goes on."""
    client = HubClient(tmp_path / "home", "", {"HPCQ_HUB_RETRY_S": "2"})
    with running_hub(tmp_path / "root", lfs_above=20_000, slow_s=1000, only="-of-") as hub:
        write_model(hub.repository(MODEL))
        snapshot = snapshot_of(hub, client)
        started = dataclasses.replace(client, url=hub.url).start("stage", MODEL, snapshot.commit)
        wait_for_blobs(snapshot, started)
    answer = finish(started)
    assert (answer.exit_code, answer.failure) == (3, "connection lost")
    assert not staged(snapshot)
    with running_hub(tmp_path / "root", lfs_above=20_000) as hub:
        assert dataclasses.replace(client, url=hub.url)("stage", MODEL, snapshot.commit).error is None
        assert has_content(snapshot, hub)


def wait_for_blobs(snapshot: Snapshot, process: subprocess.Popen[str]) -> None:
    """Wait until a process has begun a download."""
    blobs = snapshot.cache.repository(snapshot.kind, snapshot.repo_id) / "blobs"
    deadline_s = time.monotonic() + TIMEOUT_S
    while not any(blobs.glob("*.incomplete")):
        assert time.monotonic() < deadline_s
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def test_a_wrong_content_is_downloaded_again(hub: HubServer, client: HubClient) -> None:
    """A file of the cache with another content, or another size, is removed and downloaded; the others are not."""
    snapshot = snapshot_of(hub, client)
    client("stage", MODEL, snapshot.commit)
    for name, change in ((SHARDS[0], slice(1, None)), ("config.json", slice(2, None))):
        snapshot.marker.unlink()
        blob = (snapshot.folder / name).resolve()
        blob.write_bytes(b"x" + blob.read_bytes()[change])  # the same size, or one byte less
        hub.counts()
        answer = client("stage", MODEL, snapshot.commit)
        assert answer.error is None
        assert answer.notes == [f"{snapshot}: the content of {name} differs from the hub's; it is removed"]
        assert has_content(snapshot, hub)
        counts = hub.counts()
        assert counts.get("GET cdn 200", 0) + counts.get("GET resolve 200", 0) == 1


def test_a_content_that_stays_wrong_is_refused(hub: HubServer, client: HubClient) -> None:
    """A proxy that changes a file is not taken for the hub, and the file does not stay in the cache."""
    hub.set(corrupt=1, only="cdn")
    snapshot = snapshot_of(hub, client)
    answer = client("stage", MODEL, snapshot.commit)
    assert "differs from the hub's after 2 downloads: check the proxy between" in str(answer.error)
    assert answer.exit_code == 3
    assert not staged(snapshot)
    assert not any((snapshot.folder / name).exists() for name in SHARDS)


def test_a_damaged_repository_is_refused(hub: HubServer, client: HubClient) -> None:
    """A shard that the index lists is missing, or does not have the size that its header states."""
    folder = hub.repository(MODEL)
    size = (folder / SHARDS[1]).stat().st_size
    with (folder / SHARDS[1]).open("ab") as shard:
        shard.write(b"more")
    answer = client("stage", MODEL, hub.commit(MODEL))
    assert f"{SHARDS[1]} has {size + 4} bytes, {size} according to its header" in str(answer.error)
    assert answer.exit_code == 2
    (folder / SHARDS[1]).unlink()
    answer = client("stage", MODEL, hub.commit(MODEL))
    assert f"lacks '{SHARDS[1]}', which model.safetensors.index.json lists" in str(answer.error)
    (folder / SHARDS[1]).write_bytes((folder / SHARDS[0]).read_bytes())
    answer = client("stage", MODEL, hub.commit(MODEL))
    assert "model.safetensors.index.json lists 'layers.0.weight'" in str(answer.error)
    assert not staged(snapshot_of(hub, client))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_pointer_in_place_of_the_weights_is_refused(hub: HubServer, client: HubClient, name: str) -> None:
    """The repository has a Git LFS pointer as a file: it was called an incomplete safetensors file."""
    folder = hub.repository("org/other")
    for other in ("config.json", "tokenizer.json"):
        (folder / other).write_text("{}")
    (folder / name).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 9\n")
    answer = client("stage", "org/other", hub.commit("org/other"))
    assert f"'{name}' in the repository is a Git LFS pointer" in str(answer.error)
    assert str(answer.error).endswith("use another repository or revision.")
    assert answer.exit_code == 2


def test_an_adapter_and_an_id_with_a_revision_are_refused_when_a_manifest_is_planned(
    hub: HubServer, client: HubClient, tmp_path: Path
) -> None:
    """Plans have the fix, instead of a missing config.json and of an id that is none."""
    (hub.repository("org/adapter") / "adapter_config.json").write_text("{}")
    manifest = tmp_path / "m.toml"
    for name, sentence in (
        ("org/adapter", "is an adapter (adapter_config.json), not a model: merge it into its base model, and use the"),
        ("org/model@v1", "is not an id of a model on the hub: write 'org/model', with the key revision = 'v1'."),
    ):
        manifest.write_text(f'[run]\nname = "r"\n[[models]]\nid = "{name}"\n[tasks]\ndata = "packages"\n')
        assert sentence in str(client("pins", str(manifest)).value)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["adapter_config.json", "adapter_model.safetensors"],
            "is an adapter (adapter_config.json), not a model: merge",
        ),
        (["adapter_config.json", "adapter_model.safetensors", "config.json"], "the repository is an adapter"),
        (["config.json", "model.gguf"], "has no weights in *.safetensors or *.bin files (only .gguf, .json)"),
        (["model.safetensors"], "has no config.json (only .safetensors)"),
        ([], "has no config.json (only nothing)"),
        (["config.json", "model.safetensors", "tokenizer_config.json"], "has no tokenizer, so transformers"),
        (
            ["config.json", "tokenizer.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
            "has no index of its shards (*.index.json), so transformers cannot load it: use another repository",
        ),
    ],
)
def test_other_repositories_are_refused(hub: HubServer, client: HubClient, names: list[str], message: str) -> None:
    """An adapter, another format, and a repository without a model are invalid input."""
    for name in names:
        (hub.repository("org/other") / name).write_text(name)
    hub.repository("org/other")
    answer = client("stage", "org/other", hub.commit("org/other"))
    assert message in str(answer.error)
    assert answer.exit_code == 2


def test_two_commands_stage_once(hub: HubServer, client: HubClient) -> None:
    """The second waits for the first, and then finds the model complete."""
    hub.set(slow_s=1000, only="cdn")
    snapshot = snapshot_of(hub, client)
    first = client.start("stage", MODEL, snapshot.commit)
    wait_for_blobs(snapshot, first)
    second = client.start("stage", MODEL, snapshot.commit)
    assert second.stderr is not None
    assert second.stderr.readline()  # the line that it waits
    hub.set(slow_s=0)
    answers = [finish(first), finish(second)]
    assert [answer.value["origin"] for answer in answers] == ["downloaded", "already staged"]
    assert "which has been creating this snapshot since" in answers[1].notes[0]
    assert hub.counts()["GET cdn 200"] == 2
    assert [path.name for path in snapshot.marker.parent.iterdir()] == [snapshot.marker.name]


def download_with_the_hub_s_client(hub: HubServer, client: HubClient) -> None:
    """Download the whole repository to the cache, as the user's other programs do."""
    code = "import sys, huggingface_hub; huggingface_hub.snapshot_download(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, MODEL], env=client.environment(), check=True, capture_output=True)
    hub.counts()


def test_a_model_in_the_cache_is_adopted(hub: HubServer, client: HubClient) -> None:
    """What another program has downloaded is verified against the hub, and not downloaded again."""
    download_with_the_hub_s_client(hub, client)
    snapshot = snapshot_of(hub, client)
    answer = client("stage", MODEL, snapshot.commit)
    assert answer.value["origin"] == "verified in the cache"
    assert answer.value["downloaded"] == 0
    assert hub.counts() == {"GET revision 200": 1}
    marker = read_marker(snapshot)
    assert marker is not None
    assert marker.compared_with is Reference.HUB
    assert {file.path for file in marker.files} == NEEDED
    assert staged(snapshot)


def test_a_model_in_the_cache_is_adopted_without_a_network(hub: HubServer, client: HubClient) -> None:
    """Without the hub, contents are compared with their names in the cache, and the marker says so."""
    download_with_the_hub_s_client(hub, client)
    snapshot = snapshot_of(hub, client)
    offline = dataclasses.replace(client, variables={"HF_HUB_OFFLINE": "1"})
    shard = (snapshot.folder / SHARDS[0]).resolve()
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + b"x")
    answer = offline("stage", MODEL, snapshot.commit)
    assert f"{snapshot.folder / SHARDS[0]}: the digest of the content differs from its name in the cache" in str(
        answer.error
    )
    shard.unlink()
    answer = offline("stage", MODEL, snapshot.commit)
    reason = f"the cache {client.cache.hub} lacks '{SHARDS[0]}', and HF_HUB_OFFLINE is set: unset it, or run"
    assert str(answer.error).startswith(f"{snapshot}: {reason}")
    assert answer.exit_code == 3
    assert not staged(snapshot)
    shard.write_bytes(content)
    answer = offline("stage", MODEL, snapshot.commit)
    assert (answer.value["origin"], answer.value["note"]) == ("verified in the cache", "not compared with the hub")
    marker = read_marker(snapshot)
    assert marker is not None
    assert marker.compared_with is Reference.CACHE
    assert staged(snapshot)
    assert hub.counts() == {}


def test_a_file_system_that_refuses_a_file(hub: HubServer, client: HubClient) -> None:
    """The system's error is reported with the folder and a hint; what was complete is kept."""
    snapshot = snapshot_of(hub, client)
    answer = dataclasses.replace(client, variables={FILE_LIMIT: "100000"})("stage", MODEL, snapshot.commit)
    assert "the file is larger than the file system or your limit (ulimit -f) allows" in str(answer.error)
    assert str(client.cache.hub) in str(answer.error)
    assert (answer.exit_code, answer.failure) == (3, "full disk")
    hub.counts()
    assert client("stage", MODEL, snapshot.commit).error is None
    assert hub.counts().get("GET resolve 200", 0) <= 4


def test_a_killed_staging_goes_on(hub: HubServer, client: HubClient) -> None:
    """Killed at random moments, staging goes on; a model that is staged always has its whole content."""
    hub.set(slow_s=0.15, only="cdn")
    snapshot = snapshot_of(hub, client)
    begin_s = time.monotonic()
    assert client("stage", MODEL, snapshot.commit).error is None
    longest_s, chance, kills = time.monotonic() - begin_s, random.Random(11), 0  # noqa: S311 (reproducible)
    shutil.rmtree(client.home)
    while kills < KILLS:
        process = client.start("stage", MODEL, snapshot.commit)
        try:
            process.wait(chance.uniform(0, 1.2 * longest_s))
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        process.communicate()
        assert not staged(snapshot) or has_content(snapshot, hub)
        if staged(snapshot):
            shutil.rmtree(client.home)
    assert client("stage", MODEL, snapshot.commit).error is None
    assert staged(snapshot)
    assert has_content(snapshot, hub)
    blobs = client.cache.repository(RepoKind.MODEL, MODEL) / "blobs"
    assert len(list(blobs.iterdir())) == len(NEEDED)  # partial files of killed processes were removed


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ({"f_bavail": 1}, "1.27 GB of space are needed in .* has 0.00 GB"),
        ({"f_favail": 3}, "4 inodes are needed"),
    ],
)
def test_space_is_checked_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: dict[str, int], message: str
) -> None:
    """Without enough bytes or inodes nothing is downloaded; a file system without a number of inodes is not limited."""
    client = HubClient(tmp_path / "home", "")
    snapshot = Snapshot(kind=RepoKind.MODEL, repo_id=MODEL, commit="0" * 40, cache=client.cache)
    missing = [RepoFile(path="x", size=10**9, sha256=None, blob_id="")]
    plenty = {"f_bavail": 10**9, "f_frsize": 4096, "f_files": 10**6, "f_favail": 10**6}
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(**plenty))
    check_space(snapshot, missing)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(**{**plenty, "f_files": 0, "f_favail": 0}))
    check_space(snapshot, missing)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(**{**plenty, **status}))
    with pytest.raises(SetupError, match=message):
        check_space(snapshot, missing)
    check_space(snapshot, [])


@pytest.mark.parametrize("name", ["refs/pr/1", "v1/rc"])
def test_revisions_with_a_slash(hub: HubServer, client: HubClient, name: str) -> None:
    """A pull request and a tag with a slash are resolved and staged, and found without the hub."""
    folder = hub.repository(f"{MODEL}@{quote(name, safe='')}")
    write_model(folder, seed=1)
    commit = client("resolve", "model", MODEL, name).value["commit"]
    assert commit != hub.commit(MODEL)
    assert client("stage", MODEL, commit, revision=name).error is None
    offline = dataclasses.replace(client, variables={"HF_HUB_OFFLINE": "1"})
    assert offline("resolve", "model", MODEL, name).value["commit"] == commit


def test_a_renamed_repository(hub: HubServer, client: HubClient) -> None:
    """The hub redirects requests for the old id, under which the model is staged."""
    (hub.root / "models" / "org" / "old.moved").write_text(MODEL)
    commit = client("resolve", "model", "org/old", None).value["commit"]
    assert commit == hub.commit(MODEL)
    assert client("stage", "org/old", commit).error is None
    assert is_staged(RepoKind.MODEL, "org/old", commit, client.cache)
    assert hub.counts()["GET revision 307"] >= 1


def test_a_tokenizer_of_sentencepiece_alone(hub: HubServer, client: HubClient) -> None:
    """A repository with only tokenizer.model is a model."""
    folder = hub.repository(MODEL)
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    commit = hub.commit(MODEL)
    assert client("stage", MODEL, commit).error is None
    assert (client.cache.snapshot(RepoKind.MODEL, MODEL, commit) / "tokenizer.model").is_file()


def test_the_marker_is_readable(hub: HubServer, client: HubClient) -> None:
    """The marker is a JSON document that also names the repository, the commit and the hub."""
    snapshot = snapshot_of(hub, client)
    client("stage", MODEL, snapshot.commit)
    document = json.loads(snapshot.marker.read_text())
    facts = {"schema": 1, "kind": "model", "repository": MODEL, "commit": snapshot.commit, "endpoint": hub.url}
    assert {name: document[name] for name in facts} == facts
