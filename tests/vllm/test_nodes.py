"""vLLM over virtual nodes, from `hpcq submit`: what one process answers, and how a unit ends with one of its nodes."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hpcq import environments
from hpcq.attempts import AttemptRecord, read_attempts
from hpcq.store import VariantScores, read_responses, read_results
from tests.command_line import Hpcq
from tests.slurm.cluster import VirtualCluster, slurm_conf
from tests.slurm.processes import commands, of_job
from tests.slurm.waiting import wait_for
from tests.tiny_llama import write_base
from tests.vllm import plugin
from tests.vllm.conftest import MODEL_ID

TINY = "tiny"
MANIFEST = """
[run]
name = "one"
[cluster]
profile = "profile.toml"
[schemes]
use = ["bf16"]
[tasks]
use = ["arc_challenge", "gsm8k"]
limit = 2
data = "packages"
[tasks.options.arc_challenge]
num_fewshot = 1
[tasks.options.gsm8k]
num_fewshot = 1
max_gen_toks = 8
[evaluate]
backend = "vllm"
environment = "vllm-cpu"
dtype = "float32"
max_length = 1024
[evaluate.engine]
kv_cache_gib = 0.25
"""
pytestmark = pytest.mark.slurm
DONE_S, WITHIN_S = 600, 60


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A virtual cluster, and a folder to type in."""

    hpcq: Hpcq
    model: Path

    def profile(self, *, nodes: int, gpus: int, **variables: str) -> Path:
        """So many nodes with so many GPUs each, whatever the virtual ones have."""
        told = {plugin.DEVICES_VARIABLE: str(gpus), **variables}
        text = f"""
name = "virtual"
scheduler = "slurm"
[gpu_classes.any]
partition = "all"
gpu = "H100-80"
nodes = {nodes}
gpus_per_node = {gpus}
cpus_per_node = 64
cpus_per_unit = 1
memory_gib_per_unit = 4
memory_gib = 500
[environments.vllm-cpu]
python = {json.dumps(str(environments.interpreter("vllm-cpu")))}
setup = ["export PYTHONPATH=$PYTHONPATH:{self.hpcq.folder}/plugin"]
variables = {json.dumps(told).replace(": ", " = ")}
[environments.transformers]
python = {json.dumps(str(environments.interpreter("transformers")))}
"""
        return self.hpcq.write(text, "profile.toml")

    def manifest(self, run: str, models: tuple[str, ...], *, tensor: int = 1, stages: int = 1) -> Path:
        """A run of `models` at TP × PP."""
        text = MANIFEST.replace('"one"', json.dumps(run))
        text += f"tensor_parallel_size = {tensor}\npipeline_parallel_size = {stages}\n"
        for model in models:
            text += f"[[models]]\nid = {json.dumps(model)}\n"
            text += f"path = {json.dumps(str(self.model))}\n" if model == TINY else ""
        return self.hpcq.write(text, f"{run}.toml")

    def submit(self, run: str, *models: str, nodes: int = 1, gpus: int = 1, tensor: int = 1, stages: int = 1) -> Path:
        """The results, when all is done."""
        self.profile(nodes=nodes, gpus=gpus)
        done = self.hpcq("submit", self.manifest(run, models, tensor=tensor, stages=stages), "--wait", timeout_s=DONE_S)
        assert done.code == 0, done.err
        return self.hpcq.folder / "runs" / run / "results.h5"

    def attempts(self, run: str) -> list[AttemptRecord]:
        """Those of the run's one evaluation."""
        found = read_attempts(self.hpcq.folder / "runs" / run / "attempts")
        return next((records for unit, records in found.items() if unit.startswith("evaluate.")), [])

    def log(self, run: str, attempt: int) -> str:
        """What node 0 printed in an attempt of the run's one evaluation."""
        return "".join(path.read_text() for path in (self.hpcq.folder / "logs" / run).glob(f"evaluate.*.{attempt}.log"))


@pytest.fixture(scope="module")
def scene(core_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """With the small random model, and the plugin that vLLM needs on CPUs."""
    folder = tmp_path_factory.mktemp("nodes")
    plugin.install(folder / "plugin")
    with VirtualCluster() as cluster, slurm_conf(cluster):
        yield Scene(hpcq=Hpcq(python=core_python, folder=folder), model=write_base(folder / "model"))


@pytest.fixture(scope="module")
def one(scene: Scene) -> Path:
    """The results of one process a model."""
    return scene.submit("one", TINY, MODEL_ID, nodes=5)


def of_model(results: Path, model: str) -> VariantScores:
    """What the results say of a model."""
    [found] = [each for each in read_results(results).variants if model in (each.variant, each.provenance["model"])]
    return found


@pytest.mark.parametrize(
    ("run", "model", "nodes", "gpus", "tensor", "stages"),
    [
        ("matrices", MODEL_ID, 3, 1, 3, 1),
        ("layers", MODEL_ID, 2, 1, 1, 2),
        ("both", TINY, 2, 2, 2, 2),
    ],
)
def test_nodes_answer_as_one_process_does(
    scene: Scene, one: Path, run: str, model: str, nodes: int, gpus: int, tensor: int, stages: int
) -> None:
    """TP3 and PP2 across nodes, and PP2 across with TP2 in each: log-likelihoods within 1e-4, the same scores."""
    results = scene.submit(run, model, nodes=nodes, gpus=gpus, tensor=tensor, stages=stages)
    wide, alone = of_model(results, model), of_model(one, model)
    ours, theirs = read_responses(results, wide.variant), read_responses(one, alone.variant)
    assert ours.keys() == theirs.keys()
    for key, response in ours.items():
        assert (response.text, response.is_greedy) == (theirs[key].text, theirs[key].is_greedy)
        assert response.loglikelihood == pytest.approx(theirs[key].loglikelihood, abs=1e-4)
    assert wide.scores == alone.scores
    [record] = scene.attempts(run)
    assert (record.facts["nodes"], record.facts["tensor_parallel"], record.facts["pipeline_parallel"]) == (
        nodes,
        tensor,
        stages,
    )
    assert record.facts["prefix_sharing"] == "exact"
    assert record.facts["computed_tokens"] < record.facts["asked_tokens"] / 2


@pytest.fixture(scope="module")
def trials(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> list[AttemptRecord]:
    """Attempts of a unit over two nodes: its port is taken; a worker on the other node is killed; that node runs out of
    memory; it is cancelled while its engine starts.
    """
    failing = tmp_path_factory.mktemp("failing") / "node"
    scene.profile(nodes=2, gpus=1, **{plugin.FAILING_VARIABLE: str(failing)})
    done = scene.hpcq("submit", scene.manifest("trials", (TINY,), stages=2))
    assert done.code == 0, done.err

    def attempt(number: int, phase: str | None) -> AttemptRecord:
        """That attempt, when it is in that phase; None: when it has ended."""

        def is_there() -> bool:
            found = scene.attempts("trials")[number - 1 :]
            return bool(found) and (found[0].phase == phase if phase else found[0].decision is not None)

        wait_for(f"attempt {number} is {phase or 'over'}", is_there, DONE_S)
        return scene.attempts("trials")[number - 1]

    first = attempt(1, "loading")
    wait_for("the nodes know their port", lambda: " meet at " in scene.log("trials", 1), DONE_S)
    port = int(scene.log("trials", 1).partition(" meet at ")[2].split()[0].rpartition(":")[2])
    with socket.create_server(("", port)):
        attempt(1, None)
    attempt(2, "loading")
    wait_for("the other node has its part", lambda: bool(workers(first.job_id, rank="1")), DONE_S)
    attempt(2, "answering")
    os.kill(workers(first.job_id, rank="1")[0], signal.SIGKILL)
    attempt(2, None)
    failing.write_text("1")
    attempt(3, None)
    failing.unlink()
    attempt(4, "loading")
    wait_for("both nodes have their part", lambda: all(workers(first.job_id, rank=one) for one in "01"), DONE_S)
    scene.hpcq("cancel", "trials")
    began_s = time.monotonic()
    wait_for("no process of the unit is left", lambda: not of_job(first.job_id), WITHIN_S)
    print(f"cancelled: the last process ended after {time.monotonic() - began_s:.1f} s")
    return scene.attempts("trials")


def workers(job: str, *, rank: str) -> list[int]:
    """Processes of vLLM's on the unit's node of that rank."""
    spawned = {process for process, command in commands() if "multiprocessing" in command or "VLLM" in command}
    return [process for process, told in of_job(job) if told["SLURM_PROCID"] == rank and process in spawned]


def test_a_port_that_is_taken_is_said_and_another_one_tried(trials: list[AttemptRecord]) -> None:
    """Whoever was quicker: the attempt says so, and the unit is tried again at once."""
    assert (trials[0].failure, trials[0].decision) == ("taken", "again")
    assert "EADDRINUSE" in str(trials[0].reason)


def test_a_worker_that_is_killed_is_named(trials: list[AttemptRecord]) -> None:
    """The reason is not that others lost their connection to it."""
    assert (trials[1].failure, trials[1].decision) == ("killed", "again")
    assert str(trials[1].reason).endswith("VllmWorker-1 was ended by SIGKILL.")
    assert not str(trials[1].reason).startswith(trials[1].node)


def test_a_node_that_runs_out_of_memory_makes_the_unit_smaller(trials: list[AttemptRecord]) -> None:
    """What its process printed is the reason, and decides what follows."""
    assert (trials[2].failure, trials[2].decision) == ("out of memory", "smaller")
    assert "torch.OutOfMemoryError: CUDA out of memory. Rehearsed." in str(trials[2].reason)


def test_what_is_cancelled_while_it_starts_leaves_nothing(trials: list[AttemptRecord]) -> None:
    """The last attempt has stopped; that no process was left has been waited for."""
    assert (trials[3].outcome, trials[3].decision, len(trials)) == ("interrupted", "stop", 4)
