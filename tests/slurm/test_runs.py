"""Whole runs on a real Slurm, through the command line."""

from __future__ import annotations

import itertools
import json
import subprocess
import time
from pathlib import Path

import pytest

from hpcq.core.work_records import UnitState
from hpcq.slurm.squeue import poll
from tests.command_line import REHEARSAL, Hpcq
from tests.results_data import read_datasets
from tests.slurm.cluster import VirtualCluster

SMALL = """
[run]
name = "small"
[cluster]
profile = "local"
[[models]]
id = "HuggingFaceTB/SmolLM2-135M-Instruct"
source = "packages"
[schemes]
use = ["bf16", "fp8-dynamic"]
[tasks]
use = ["arc_challenge", "winogrande", "gsm8k"]
data = "packages"
limit = 3
[tasks.options.gsm8k]
limit = 1
num_fewshot = 0
max_gen_toks = 8
[quantize]
device = "cpu"
[evaluate]
device = "cpu"
dtype = "float32"
batch_size = 4
"""
"""A smaller version of the quickstart manifest."""

MANY = (
    REHEARSAL.replace('"rehearsal"', '"many"')
    .replace("shards = 2", "shards = 70")
    .replace(
        '"synthetic-w4a16"]',
        '"synthetic-w4a16", "other"]\n[[schemes.define]]\nname = "other"\nbase = "synthetic-w4a16"\ngroup_size = 32',
    )
)
"""3 variants × 70 shards, two quantizations, one merge: 213 units."""


@pytest.fixture
def hpcq(cluster: VirtualCluster, core_python: Path, transformers_python: Path, tmp_path: Path) -> Hpcq:
    """The command line in an empty folder, with an idle cluster whose profile is written."""
    cluster.write_profile({"core": str(core_python), "transformers": str(transformers_python)})
    cluster.cancel_all_jobs()
    return Hpcq(python=core_python, folder=tmp_path)


def test_two_hundred_units_give_the_same_results_as_a_local_run(hpcq: Hpcq, cluster: VirtualCluster) -> None:
    """Evaluations wait for their quantization, the merge starts by itself, and the data equal those of a local run."""
    manifest = hpcq.write(MANY)
    done = hpcq("submit", manifest, "-O", f"cluster.profile={cluster.profile}", "--json")
    assert done.code == 0, done.err
    submitted = done.document["submitted"]
    assert sum(len(item["units"]) for item in submitted) == 213
    assert len(submitted) == 1 + 1 + 2 + 1  # unquantized shards, quantizations, shards of each, merge
    queued = poll("many")
    assert {job.state.unit_state for job in queued.values()} <= {UnitState.PENDING, UnitState.RUNNING, UnitState.DONE}
    while (document := hpcq("status", "many", "--json").document)["state"] in ("running", "pending"):
        time.sleep(2)
    assert document["counts"] == {"done": 213}
    finished = {unit["id"]: unit for unit in document["units"]}
    ends = attempt_times(hpcq.folder / "runs" / "many")
    for unit in json.loads((hpcq.folder / "runs" / "many" / "plan.json").read_text())["units"]:
        for needed in unit["depends_on"]:
            assert ends[needed][1] <= ends[unit["id"]][0]
    assert all(unit["done"] == unit["total"] for unit in finished.values() if unit["kind"] == "evaluate")
    merged = hpcq.folder / "runs" / "many" / "results.h5"

    local = Hpcq(python=hpcq.python, folder=hpcq.folder / "local")
    local.folder.mkdir()
    assert local("submit", manifest, "-O", "evaluate.shards=1").code == 0
    expected = read_datasets(local.folder / "runs" / "many" / "results.h5")
    assert read_datasets(merged) == expected
    assert len(expected) > 10


def attempt_times(run: Path) -> dict[str, tuple[str, str]]:
    """Return start and end of each unit's last attempt. ISO 8601 strings of one time zone compare like times."""
    records = [json.loads(path.read_text()) for path in sorted(run.glob("attempts/*.json"))]
    return {record["unit"]: (record["start"], record["end"]) for record in records}


def test_a_real_model_has_the_same_scores_on_slurm_and_locally(hpcq: Hpcq, cluster: VirtualCluster) -> None:
    """Quantized and evaluated on virtual nodes or locally, `report` shows identical scores."""
    manifest = hpcq.write(SMALL)
    on_slurm = hpcq(
        "submit",
        manifest,
        "-O",
        f"cluster.profile={cluster.profile}",
        "-O",
        "evaluate.shards=2",
        "--wait",
        timeout_s=1800,
    )
    assert on_slurm.code == 0, on_slurm.err + on_slurm.out
    local = Hpcq(python=hpcq.python, folder=hpcq.folder / "local")
    local.folder.mkdir()
    locally = local("submit", manifest, timeout_s=1800)
    assert locally.code == 0, locally.err + locally.out

    def scores(command: Hpcq) -> list[tuple[object, ...]]:
        rows = command("report", "small", "--format", "json").document["rows"]
        return [
            (row["variant"], row["task"], row["metric"], row["filter"], row["value"], row["stderr"]) for row in rows
        ]

    assert scores(hpcq) == scores(local)
    assert len(scores(local)) >= 2 * 5
    assert quantized_weights(hpcq.folder) == quantized_weights(local.folder)


def quantized_weights(folder: Path) -> bytes:
    """Return the content of the quantized weights file."""
    (weights,) = folder.glob("checkpoints/*/fp8-dynamic-*/model.safetensors")
    return weights.read_bytes()


def test_cancelled_units_can_be_resumed(hpcq: Hpcq, cluster: VirtualCluster) -> None:
    """After `cancel`, no unit of the run is in the queue. After `resume --wait`, nothing is missing."""
    manifest = hpcq.write(REHEARSAL + "synthetic = { load_seconds = 60.0 }\n")
    assert hpcq("submit", manifest, "-O", f"cluster.profile={cluster.profile}").code == 0
    cancelled = hpcq("cancel", "rehearsal")
    assert cancelled.code == 0, cancelled.err
    assert hpcq("status", "rehearsal", "--json").document["state"] == "cancelled"
    assert hpcq("status", "rehearsal").code == 1
    lock = hpcq.folder / "runs" / "rehearsal" / "manifest.lock.toml"
    lock.write_text(lock.read_text().replace("load_seconds = 60.0", "load_seconds = 0.0"))
    resumed = hpcq("resume", "rehearsal", "--failed", "--wait")
    assert resumed.code == 0, resumed.err + resumed.out
    assert hpcq("merge", "rehearsal", "--json").document["missing"] == 0


def test_jobs_are_printed_while_submit_waits(
    hpcq: Hpcq, cluster: VirtualCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their ids and the next commands are readable before any job can start; then the reader may leave."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    manifest = hpcq.write(REHEARSAL)
    command = [str(hpcq.python), "-m", "hpcq", "submit", str(manifest), "-O", f"cluster.profile={cluster.profile}"]
    partitions = cluster.call("sinfo", "--noheader", "--format=%R").split()
    set_partitions(cluster, partitions, "DOWN")
    try:
        with subprocess.Popen([*command, "--wait"], cwd=hpcq.folder, stdout=subprocess.PIPE, text=True) as waiting:
            assert waiting.stdout
            lines = list(itertools.takewhile(lambda line: not line.startswith("Report:"), waiting.stdout))
            waiting.stdout.close()
            set_partitions(cluster, partitions, "UP")
            assert waiting.wait(200) == 0
    finally:
        set_partitions(cluster, partitions, "UP")
    assert sum(line.startswith("job ") for line in lines) == 4
    assert any(line.startswith("Watch: ") for line in lines)
    assert hpcq("status", "rehearsal", "--json").document["state"] == "done"


def set_partitions(cluster: VirtualCluster, names: list[str], state: str) -> None:
    """Let jobs start in these partitions (UP), or only wait there (DOWN)."""
    for name in names:
        cluster.call("scontrol", "update", f"PartitionName={name}", f"State={state}")


def test_a_second_submit_submits_no_pending_unit_again(hpcq: Hpcq, cluster: VirtualCluster) -> None:
    """The second `submit` finds all units in the queue."""
    manifest = hpcq.write(REHEARSAL + "synthetic = { load_seconds = 60.0 }\n")
    profile = f"cluster.profile={cluster.profile}"
    assert len(hpcq("submit", manifest, "-O", profile, "--json").document["submitted"]) == 4
    again = hpcq("submit", manifest, "-O", profile, "--json")
    assert (again.code, again.document["submitted"]) == (0, [])
    hpcq("cancel", "rehearsal")
