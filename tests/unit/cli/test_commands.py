"""Every verb, as a user types it, on a rehearsal that ran on this machine."""

from __future__ import annotations

import json

import pytest

from tests.command_line import REHEARSAL, Hpcq


def test_plan_writes_nothing(hpcq: Hpcq) -> None:
    """After `plan` the folder holds the manifest alone, and the JSON has the contract's fields."""
    manifest = hpcq.write(REHEARSAL)
    done = hpcq("plan", manifest, "--json")
    assert (done.code, done.err) == (0, "")
    assert [path.name for path in hpcq.folder.iterdir()] == ["manifest.toml"]
    document = done.document
    assert {"schema", "run", "units", "arrays", "totals", "refused"} <= set(document)
    assert {
        "id", "kind", "variant", "model", "scheme", "tasks", "shard", "gpu_class", "nodes", "gpus_per_node",
        "tensor_parallel", "pipeline_parallel", "memory_gib_per_gpu", "seconds", "depends_on", "state",
    } <= set(document["units"][0])  # fmt: skip
    assert {
        "name", "kind", "gpu_class", "nodes", "gpus_per_node", "environment", "units", "throttle", "time_limit_minutes",
        "depends_on",
    } <= set(document["arrays"][0])  # fmt: skip
    assert {"gpu_hours", "wall_seconds", "checkpoint_bytes"} <= set(document["totals"])
    assert [unit["kind"] for unit in document["units"]] == ["evaluate"] * 2 + ["quantize"] + ["evaluate"] * 2 + [
        "merge"
    ]


def test_a_dry_run_submits_nothing(hpcq: Hpcq) -> None:
    """`submit --dry-run` checks, prints the plan, says so, and writes nothing."""
    done = hpcq("submit", "--dry-run", hpcq.write(REHEARSAL))
    assert done.code == 0
    assert "Nothing was submitted" in done.out
    assert [path.name for path in hpcq.folder.iterdir()] == ["manifest.toml"]


def test_a_run_leaves_what_the_contract_names(rehearsed: Hpcq) -> None:
    """Lock, plan, segments, results, attempts, checkpoints and logs lie where others look for them."""
    run = rehearsed.folder / "runs" / "rehearsal"
    assert (run / "manifest.lock.toml").is_file()
    assert json.loads((run / "plan.json").read_text())["run"] == "rehearsal"
    assert len(list(run.glob("segments/evaluate.*/*.h5"))) >= 4
    assert (run / "results.h5").is_file()
    assert len(list(run.glob("attempts/*.json"))) == 6
    assert len(list(rehearsed.folder.glob("checkpoints/llama-3.1-8b-instruct/synthetic-w4a16-*"))) == 1
    assert len(list(rehearsed.folder.glob("logs/rehearsal/*.1.log"))) == 6


def test_typing_submit_again_does_nothing(rehearsed: Hpcq) -> None:
    """The second time no unit has a second attempt."""
    before = sorted(path.name for path in rehearsed.folder.glob("runs/rehearsal/attempts/*"))
    done = rehearsed("submit", "manifest.toml")
    assert done.code == 0
    assert sorted(path.name for path in rehearsed.folder.glob("runs/rehearsal/attempts/*")) == before


@pytest.mark.parametrize("name", ["rehearsal", "runs/rehearsal", "manifest.toml"])
def test_a_run_is_named_by_its_name_folder_or_manifest(rehearsed: Hpcq, name: str) -> None:
    """All three name the same run."""
    document = rehearsed("status", name, "--json").document
    assert (document["run"], document["state"], document["counts"]) == ("rehearsal", "done", {"done": 6})
    assert {"id", "kind", "variant", "state", "done", "total", "job_id", "attempts", "reason"} <= set(
        document["units"][0]
    )


def test_the_lock_is_itself_submittable(rehearsed: Hpcq) -> None:
    """Submitting a run's lock finds the run done; nothing is computed, nothing changes."""
    done = rehearsed("submit", "runs/rehearsal/manifest.lock.toml")
    assert done.code == 0
    assert len(list(rehearsed.folder.glob("runs/rehearsal/attempts/*.json"))) == 6


def test_merge_counts_and_can_be_repeated(rehearsed: Hpcq) -> None:
    """A second merge finds the same and leaves the same bytes."""
    results = rehearsed.folder / "runs" / "rehearsal" / "results.h5"
    before = results.read_bytes()
    results.unlink()
    document = rehearsed("merge", "rehearsal", "--json").document
    assert (document["expected"], document["found"], document["missing"]) == (50, 50, 0)
    assert (document["duplicates"], document["conflicts"], document["set_aside"]) == (0, 0, 0)
    assert results.read_bytes() == before


def test_a_rehearsal_is_never_shown_as_scores(rehearsed: Hpcq) -> None:
    """`report` says that it was a rehearsal."""
    done = rehearsed("report", "rehearsal")
    assert (done.code, done.out) == (1, "")
    assert "was a rehearsal" in done.err


def test_logs_of_one_unit(rehearsed: Hpcq) -> None:
    """A part of a unit's id chooses its log."""
    done = rehearsed("logs", "rehearsal", "merge")
    assert done.code == 0
    assert done.out.count("==>") == 1
    assert "merge.rehearsal.1.log" in done.out


def test_cancelling_a_run_that_has_ended_says_so(rehearsed: Hpcq) -> None:
    """Nothing to cancel is no failure."""
    done = rehearsed("cancel", "rehearsal")
    assert (done.code, done.out.startswith("Nothing to cancel")) == (0, True)


def test_a_segment_cut_in_half_is_set_aside_and_its_requests_run_again(rehearsed: Hpcq) -> None:
    """The merge names the file and the reason and exits 1; after `resume` nothing is missing."""
    run = rehearsed.folder / "runs" / "rehearsal"
    segment = next(run.glob("segments/evaluate.*0of2/*.h5"))
    segment.write_bytes(segment.read_bytes()[: segment.stat().st_size // 2])
    (run / "results.h5").unlink()
    done = rehearsed("merge", "rehearsal", "--json")
    assert done.code == 1
    assert done.document["set_aside"] == 1
    assert done.document["set_aside_details"][0]["file"].endswith(segment.name)
    assert done.document["missing"] > 0
    assert rehearsed("status", "rehearsal").code == 1
    assert rehearsed("resume", "rehearsal").code == 0
    assert rehearsed("merge", "rehearsal", "--json").document["missing"] == 0


def test_a_folder_of_another_run_is_refused_with_what_differs(rehearsed: Hpcq) -> None:
    """The same name with other content names the key, its values, and two ways out."""
    done = rehearsed("submit", "manifest.toml", "-O", "tasks.limit=6")
    assert (done.code, done.out) == (2, "")
    assert done.err.strip() == (
        f"{rehearsed.folder}/runs/rehearsal: this run was made from another manifest (tasks.limit was 5 and is 6). "
        "Give this one its own name (-O run.name=rehearsal-2), or remove the folder."
    )


def test_where_a_run_runs_may_change(rehearsed: Hpcq) -> None:
    """Another pace of flushing, batch size or number of shards is the same run, and computes nothing twice."""
    done = rehearsed("submit", "manifest.toml", "-O", "evaluate.flush_interval_s=3", "-O", "evaluate.batch_size=3")
    assert done.code == 0
    assert len(list(rehearsed.folder.glob("runs/rehearsal/attempts/*.json"))) == 6


def test_an_unknown_run_is_one_sentence_with_those_there_are(rehearsed: Hpcq) -> None:
    """Exit code 2, and the known runs."""
    for words in (["status"], ["report"], ["merge"], ["logs"], ["cancel"], ["resume"]):
        done = rehearsed(*words, "rehersal")
        assert (done.code, done.out) == (2, "")
        assert done.err.strip() == "rehersal: there is no run in runs/rehersal. Runs in runs: rehearsal."


def test_an_unknown_unit_is_one_sentence(rehearsed: Hpcq) -> None:
    """`logs RUN nonsense` and `cancel RUN nonsense` name the part that no unit has."""
    for verb in ("logs", "cancel"):
        done = rehearsed(verb, "rehearsal", "nonsense")
        assert (done.code, done.err.strip()) == (
            2,
            "nonsense: no unit of run 'rehearsal' has this in its id; see `hpcq status`.",
        )


def test_a_report_goes_to_a_file_or_says_why_not(rehearsed: Hpcq) -> None:
    """An output file in a folder that is a file is refused in one sentence, exit code 3 or 1, without a traceback."""
    done = rehearsed("report", "rehearsal", "--output", "manifest.toml/report.md")
    assert done.code == 1
    assert "Traceback" not in done.err


def test_a_disk_without_room_is_one_sentence(hpcq: Hpcq) -> None:
    """Where no file may grow, nothing is half-written: exit code 3, the path and the cure."""
    hpcq.write(REHEARSAL)
    limited = Hpcq(python=hpcq.python, folder=hpcq.folder, before=("prlimit", "--fsize=1000"))
    done = limited("submit", "manifest.toml")
    assert (done.code, done.out) == (3, "")
    lock = hpcq.folder / "runs" / "rehearsal" / "manifest.lock.toml"
    assert done.err.strip() == (
        f"{lock}: the file is larger than the file system or your limit (ulimit -f) allows (File too large)."
    )
    assert sorted(path.name for path in lock.parent.iterdir()) == [".lock"]


def test_a_file_where_the_runs_should_be_is_the_manifests_fault(hpcq: Hpcq) -> None:
    """`paths.runs` that is a file is refused before anything is written, exit code 2."""
    (hpcq.folder / "runs").write_text("a file where a folder should be")
    done = hpcq("submit", hpcq.write(REHEARSAL))
    assert (done.code, done.out) == (2, "")
    assert "runs" in done.err
    assert "Traceback" not in done.err
    assert not (hpcq.folder / "checkpoints").exists()


TWO_NODES = """
name = "two"
scheduler = "local"
[gpu_classes.small]
gpu = "L4-24"
gpus_per_node = 2
nodes = 6
cpus_per_node = 8
memory_gib = 64
"""


@pytest.mark.parametrize(
    ("model", "options", "sentence"),
    [
        (
            "meta-llama/Llama-3.1-70B-Instruct",
            [],
            "takes 6 nodes of class 'small', and a profile with scheduler = 'local' has this machine alone. Try one",
        ),
        (
            "meta-llama/Llama-3.1-8B-Instruct",
            ["-O", "evaluate.engine.tensor_parallel_size=32", "-O", "evaluate.max_length=4096"],
            "it has no 32 GPUs in 6 nodes, evenly. Try this: leave evaluate.engine.tensor_parallel_size out",
        ),
    ],
)
def test_what_vllms_engine_cannot_do_is_planned_and_refused_by_submit(
    hpcq: Hpcq, model: str, options: list[str], sentence: str
) -> None:
    """vLLM over nodes without Slurm, or over more GPUs than there are, is refused with the cure; nothing is written."""
    hpcq.write(TWO_NODES, "two.toml")
    text = REHEARSAL.replace("meta-llama/Llama-3.1-8B-Instruct", model).replace('"local"', '"two.toml"')
    text = text.replace("shards = 2", "")
    manifest = hpcq.write(text.replace('"synthetic"\n', '"vllm"\n').replace(', "synthetic-w4a16"', ""))
    assert hpcq("plan", manifest, *options).code == 0
    done = hpcq("submit", manifest, *options)
    assert done.code == 2
    assert sentence in done.err
    assert not (hpcq.folder / "runs").exists()


def test_an_environment_that_is_not_made_is_asked_for_by_its_name(hpcq: Hpcq) -> None:
    """vLLM on GPUs needs an environment that is made only when it is wanted: submit says how, exit code 3."""
    hpcq.write(TWO_NODES, "two.toml")
    text = REHEARSAL.replace('"synthetic"\n', '"vllm"\n').replace(', "synthetic-w4a16"', "")
    manifest = hpcq.write(text.replace('"local"', '"two.toml"'))
    done = hpcq("submit", manifest, "-O", "evaluate.max_length=4096", env={"HPCQ_CACHE": str(hpcq.folder)})
    assert done.code == 3
    assert "The environment 'vllm' has not been made: type `python3 -m hpcq.core.environments vllm`." in done.err
