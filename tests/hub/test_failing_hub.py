"""A hub that fails: staging goes on, or `stage` and `submit` refuse with one sentence, and nothing is queued."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from hpcq.core.digests import digest_of_files
from hpcq.core.hub_cache import HubCache, RepoKind
from hpcq.core.paths import cache_folder
from hpcq.stage.snapshot import is_staged
from tests import isolation
from tests.hub.changes import gated
from tests.hub.conftest import Submitted
from tests.hub.manifests import SMALL
from tests.hub.repositories import ARC, MODEL, PASSAGES
from tests.hub.scores import Expected, check_responses, variants_of
from tests.hub.user import User
from tests.hub_server import HubServer

KILLS = int(os.environ.get("HPCQ_TEST_HUB_KILLS", "3"))
SEED = 11
KILLED_AFTER_S = (0.5, float(os.environ.get("HPCQ_TEST_HUB_KILLED_AFTER_S", "15")))
TOKEN = "hf_someone"  # noqa: S105 (of the local hub)
CALIBRATED = SMALL.replace('["bf16"]', '["bf16", "gptq-w4a16-g64"]') + f"""
[calibration]
dataset = "{PASSAGES}"
samples = 2
sequence_length = 128
"""  # fmt: skip
"""Model, one benchmark, and a text."""

FAILURES: Mapping[str, Mapping[str, object]] = {
    "some requests fail with 500, and all are slow": {"fail_rate": 0.25, "delay_s": 0.1},
    "too many requests": {"rate_limit": "6/2"},
}


@pytest.mark.parametrize("options", FAILURES.values(), ids=FAILURES)
def test_staging_goes_on(user: User, hub: HubServer, submitted: Submitted, options: Mapping[str, object]) -> None:
    """Transient failures are retried, and what is staged equals what a good hub gives."""
    hub.set(**options)
    user.succeed("stage", user.hpcq.write(CALIBRATED))
    assert any(label.endswith((" 500", " 429")) for label in hub.counts()), "the hub has not failed"
    assert staged_files(user.cache) <= staged_files(submitted.user.cache)
    assert is_staged(RepoKind.MODEL, MODEL, hub.commit(MODEL), user.cache)


def test_cut_connections(user: User, hub: HubServer, submitted: Submitted) -> None:
    """After connections have been cut in the middle of files, staging goes on as soon as they hold."""
    hub.set(cut_after=1000)
    process, labels = start_stage(user, user.hpcq.write(CALIBRATED)), set[str]()
    while not any("cut" in label for label in labels) and process.poll() is None:
        labels |= hub.counts().keys()
        time.sleep(0.1)
    hub.set(cut_after=0)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert any("cut" in label for label in labels)
    assert staged_files(user.cache) <= staged_files(submitted.user.cache)


def staged_files(cache: HubCache) -> set[tuple[str, str]]:
    """Return name and digest of each file with content that is staged: model, rows of data sets, calibration text."""
    folders = (cache.repository(RepoKind.MODEL, MODEL) / "snapshots", cache.prepared)
    paths = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    kept = [
        path
        for path in paths
        if path.suffix in (".arrow", ".jsonl", ".safetensors") or path.parent.parent.name == "snapshots"
    ]
    root = cache.hub.parent
    return {(str(path.relative_to(root)), digest_of_files(path.parent, [path.name])) for path in kept}


def test_two_commands_at_once(user: User, hub: HubServer, submitted: Submitted) -> None:
    """Two users of one cache stage the same at once: both end well, and each file is there once and whole."""
    manifest = user.hpcq.write(SMALL)
    first, second = (start_stage(user, manifest) for _ in range(2))
    for process in (first, second):
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    assert is_staged(RepoKind.MODEL, MODEL, hub.commit(MODEL), user.cache)
    assert staged_files(user.cache) <= staged_files(submitted.user.cache)


@pytest.mark.parametrize("status", [500, 429])
def test_a_hub_that_always_fails(user: User, hub: HubServer, status: int) -> None:
    """After the time for retries, stage and submit end with exit code 3, and nothing is queued."""
    hub.set(fail_rate=1, fail_status=status)
    for command in ("stage", "submit"):
        done = user(command, user.hpcq.write(CALIBRATED), HPCQ_HUB_RETRY_S="2")
        check_refusal(user, done.code, done.err, 3, f"the hub answered with HTTP status {status}")


def test_a_hub_that_fails_after_the_commits_are_known(user: User, hub: HubServer) -> None:
    """If only the files of a data set fail, submit names the data set, and nothing is queued."""
    hub.set(fail_rate=1, only=f"datasets/{ARC}/resolve")
    done = user("submit", user.hpcq.write(SMALL), HPCQ_HUB_RETRY_S="2")
    check_refusal(user, done.code, done.err, 3, ARC)
    hub.set(fail_rate=0)
    user.succeed("stage", user.hpcq.write(SMALL))


def check_refusal(user: User, code: int, errors: str, expected: int, *words: str) -> None:
    """Check the exit code, and that the last line is one sentence with `words`; nothing may have been queued."""
    last = errors.splitlines()[-1]
    assert code == expected, errors
    assert "Retrying in" not in errors  # a line of huggingface_hub
    assert last.endswith("."), errors
    assert all(word in last for word in words), errors
    assert not [*user.hpcq.folder.glob("runs/*/plan.json")]


REFUSALS: Mapping[str, tuple[Callable[[str], str], int, tuple[str, ...]]] = {
    "no such model": (lambda text: text.replace(MODEL, "acme/nothing"), 2, ("acme/nothing@main", "no such model")),
    "no such revision of a model": (
        lambda text: text.replace(f'"{MODEL}"', f'"{MODEL}"\nrevision = "v9"'),
        2,
        (f"{MODEL}@v9", "no branch, tag or commit 'v9'"),
    ),
    "no such checkpoint": (
        lambda text: text.replace(f'"{MODEL}"', f'"{MODEL}"\ncheckpoints = ["acme/nothing"]'),
        2,
        ("acme/nothing@main", "no such model"),
    ),
    "no such calibration set": (
        lambda text: text.replace(PASSAGES, "acme/nothing"),
        2,
        ("acme/nothing@main", "no such data set"),
    ),
    "no such revision of a data set": (
        lambda text: f'{text}\n[data.revisions]\n"{ARC}" = "v9"\n',
        2,
        (f"{ARC}@v9", "no branch, tag or commit 'v9'"),
    ),
}


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(("change", "code", "words"), REFUSALS.values(), ids=REFUSALS)
def test_names_that_the_hub_does_not_have(
    user: User, change: Callable[[str], str], code: int, words: tuple[str, ...]
) -> None:
    """Plan, stage and submit refuse with the same sentence, which is all that they print; plan used to exit with 0."""
    manifest = user.hpcq.write(change(CALIBRATED))
    refusals = [user(command, manifest) for command in ("plan", "stage", "submit")]
    for done in refusals:
        check_refusal(user, done.code, done.err, code, *words)
    assert len({(done.out, done.err) for done in refusals}) == 1


def test_no_connection(user: User) -> None:
    """Without a hub and with an empty cache, the sentence names the hub's address and the fix."""
    unreachable = dataclasses.replace(user, url="http://127.0.0.1:9")
    for command in ("stage", "submit"):
        done = unreachable(command, user.hpcq.write(SMALL), HPCQ_HUB_RETRY_S="2")
        check_refusal(user, done.code, done.err, 3, "http://127.0.0.1:9 cannot be reached", "`hpcq stage`")


@pytest.mark.parametrize(("name", "kind"), [(MODEL, "models"), (ARC, "datasets")])
def test_gated_repositories(user: User, hub: HubServer, name: str, kind: str) -> None:
    """Without a token, or with one without access, hpcq refuses with one sentence; with access it goes on."""
    manifest = user.hpcq.write(SMALL)
    with gated(hub, name, kind, TOKEN):
        done = user("submit", manifest)
        check_refusal(user, done.code, done.err, 3, name, "gated", "there is no token", "request access")
        done = user("stage", manifest, HF_TOKEN="hf_other")  # noqa: S106
        check_refusal(user, done.code, done.err, 3, name, "gated", "the account of the token has no access")
        user.succeed("stage", manifest, HF_TOKEN=TOKEN)
    for path in (path for path in user.hpcq.folder.parent.rglob("*") if path.is_file()):
        assert TOKEN.encode() not in path.read_bytes(), path


def test_kills(
    user: User, hub: HubServer, submitted: Submitted, expected: Mapping[str, Expected], tmp_path: Path
) -> None:
    """`hpcq stage` killed at random moments goes on, and nothing half-staged is taken for whole."""
    # Killed processes leave temporary files in hpcq's cache, which is that of all tests.
    isolation.link_cache(tmp_path / "hpcq-cache", cache_folder())
    user = dataclasses.replace(user, variables={"HPCQ_CACHE": str(tmp_path / "hpcq-cache")})
    manifest, chance = user.hpcq.write(CALIBRATED), random.Random(SEED)  # noqa: S311
    whole = staged_files(submitted.user.cache)
    for number in range(KILLS):
        if not kill_stage(user, manifest, chance.uniform(*KILLED_AFTER_S)):
            shutil.rmtree(user.home)  # it ended before: begin again
            continue
        assert prepared_files(user.cache) <= whole, number
        if is_staged(RepoKind.MODEL, MODEL, hub.commit(MODEL), user.cache):
            assert model_files(whole) <= staged_files(user.cache), number
    user.succeed("stage", manifest)
    assert staged_files(user.cache) <= whole
    user.succeed("submit", user.hpcq.write(SMALL), HF_ENDPOINT="http://127.0.0.1:9", HPCQ_HUB_RETRY_S="0")
    results = user.hpcq.folder / "runs" / "small" / "results.h5"
    (variant,) = variants_of(results).values()
    check_responses(results, variant, expected["bf16"])


def model_files(files: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return those in the model's snapshot."""
    return {one for one in files if "/snapshots/" in one[0]}


def prepared_files(cache: HubCache) -> set[tuple[str, str]]:
    """Return what hpcq has prepared, without the folders and files that it has not committed, which are hidden."""
    return {one for one in staged_files(cache) - model_files(staged_files(cache)) if "/." not in one[0]}


def kill_stage(user: User, manifest: Path, after_s: float) -> bool:
    """Run `hpcq stage` in its own process group, and kill it after some time; False: it had ended."""
    process = start_stage(user, manifest)
    try:
        _, errors = process.communicate(timeout=after_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return True
    assert process.returncode == 0, errors
    return False


def start_stage(user: User, manifest: Path) -> subprocess.Popen[str]:
    """Start `hpcq stage` in its own process group."""
    return subprocess.Popen(
        [user.hpcq.python, "-m", "hpcq", "stage", manifest],
        cwd=user.hpcq.folder,
        env={**os.environ, **user.environment()},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
