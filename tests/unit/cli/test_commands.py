"""Every verb of the command line, on a finished local run with synthetic responses."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hpcq.catalog.models import find_model_config
from hpcq.launch.visible_gpus import installed_gpus, visible_gpus
from hpcq.manifest.profiles import load_profile
from hpcq.run.preflight import absent_gpu_problem, gpu_count
from tests.command_line import REHEARSAL, Hpcq


def test_plan_writes_nothing(hpcq: Hpcq) -> None:
    """`plan` writes no file, and its JSON document has the contract's fields."""
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
    """`submit --dry-run` prints the plan and that nothing was submitted, and writes no file."""
    done = hpcq("submit", "--dry-run", hpcq.write(REHEARSAL))
    assert done.code == 0
    assert "Nothing was submitted" in done.out
    assert [path.name for path in hpcq.folder.iterdir()] == ["manifest.toml"]


def test_a_run_creates_the_files_of_the_contract(finished: Hpcq) -> None:
    """Lock, plan, segments, results, attempts, checkpoints and logs are at their documented paths."""
    run = finished.folder / "runs" / "rehearsal"
    assert (run / "manifest.lock.toml").is_file()
    assert json.loads((run / "plan.json").read_text())["run"] == "rehearsal"
    assert len(list(run.glob("segments/evaluate.*/*.h5"))) >= 4
    assert (run / "results.h5").is_file()
    assert len(list(run.glob("attempts/*.json"))) == 6
    assert len(list(finished.folder.glob("checkpoints/llama-3.1-8b-instruct/synthetic-w4a16-*"))) == 1
    assert len(list(finished.folder.glob("logs/rehearsal/*.1.log"))) == 6


def test_a_second_submit_does_nothing(finished: Hpcq) -> None:
    """No unit gets a second attempt."""
    before = sorted(path.name for path in finished.folder.glob("runs/rehearsal/attempts/*"))
    done = finished("submit", "manifest.toml")
    assert done.code == 0
    assert sorted(path.name for path in finished.folder.glob("runs/rehearsal/attempts/*")) == before


@pytest.mark.parametrize("name", ["rehearsal", "runs/rehearsal", "manifest.toml"])
def test_a_run_is_given_by_name_folder_or_manifest(finished: Hpcq, name: str) -> None:
    """All three select the same run."""
    document = finished("status", name, "--json").document
    assert (document["run"], document["state"], document["counts"]) == ("rehearsal", "done", {"done": 6})
    assert {"id", "kind", "variant", "state", "done", "total", "job_id", "attempts", "reason"} <= set(
        document["units"][0]
    )


def test_the_lock_is_itself_submittable(finished: Hpcq) -> None:
    """Submitting the lock of a finished run computes nothing and changes nothing."""
    done = finished("submit", "runs/rehearsal/manifest.lock.toml")
    assert done.code == 0
    assert len(list(finished.folder.glob("runs/rehearsal/attempts/*.json"))) == 6


def test_merge_counts_and_can_be_repeated(finished: Hpcq) -> None:
    """A second merge finds the same responses and writes the same bytes."""
    results = finished.folder / "runs" / "rehearsal" / "results.h5"
    before = results.read_bytes()
    results.unlink()
    document = finished("merge", "rehearsal", "--json").document
    assert (document["expected"], document["found"], document["missing"]) == (50, 50, 0)
    assert (document["duplicates"], document["conflicts"], document["set_aside"]) == (0, 0, 0)
    assert results.read_bytes() == before


def test_synthetic_responses_have_no_scores(finished: Hpcq) -> None:
    """`report` refuses a run with synthetic responses, exit code 1."""
    done = finished("report", "rehearsal")
    assert (done.code, done.out) == (1, "")
    assert "the responses are synthetic" in done.err


def test_logs_of_one_unit(finished: Hpcq) -> None:
    """The kind of a unit selects its log."""
    done = finished("logs", "rehearsal", "merge")
    assert done.code == 0
    assert done.out.count("==>") == 1
    assert "merge.rehearsal.1.log" in done.out


@pytest.mark.parametrize("name", ["Llama-3.1-8B-Instruct synthetic-w4a16", "rehearsal: SYNTHETIC-W4A16"])
def test_logs_accept_the_names_of_variants_in_reports(finished: Hpcq, name: str) -> None:
    """Model and scheme, also with the run, select the quantization and both shards; only ids were accepted."""
    done = finished("logs", "rehearsal", name)
    paths = [line for line in done.out.splitlines() if line.startswith("==> ")]
    assert (done.code, len(paths), all("synthetic-w4a16--" in path for path in paths)) == (0, 3, True), done.err


def test_a_folder_that_is_no_run_is_refused(hpcq: Hpcq) -> None:
    """A folder in place of a manifest or a run: the message says what may be given."""
    for verb in ("plan", "submit", "stage", "status"):
        done = hpcq(verb, hpcq.folder)
        assert (done.code, done.out) == (2, "")
        assert done.err.strip() == (
            f"{hpcq.folder}: this folder is not a run, because it has no manifest.lock.toml. Give a manifest (a .toml"
            " file), or the name or folder of a run."
        )


def test_cancelling_a_finished_run_succeeds(finished: Hpcq) -> None:
    """Without jobs, `cancel` prints that there is nothing to cancel, exit code 0."""
    done = finished("cancel", "rehearsal")
    assert (done.code, done.out.startswith("Nothing to cancel")) == (0, True)


def test_a_truncated_segment_is_rejected_and_its_requests_run_again(finished: Hpcq) -> None:
    """The merge reports the file and the reason and exits with 1; after `resume` nothing is missing."""
    run = finished.folder / "runs" / "rehearsal"
    segment = next(run.glob("segments/evaluate.*0of2/*.h5"))
    segment.write_bytes(segment.read_bytes()[: segment.stat().st_size // 2])
    (run / "results.h5").unlink()
    done = finished("merge", "rehearsal", "--json")
    assert done.code == 1
    assert done.document["set_aside"] == 1
    assert done.document["set_aside_details"][0]["file"].endswith(segment.name)
    assert done.document["missing"] > 0
    assert finished("status", "rehearsal").code == 1
    assert finished("resume", "rehearsal").code == 0
    assert finished("merge", "rehearsal", "--json").document["missing"] == 0


def test_a_folder_of_another_run_is_refused_with_what_differs(finished: Hpcq) -> None:
    """The message has the key, both values, and two solutions."""
    done = finished("submit", "manifest.toml", "-O", "tasks.limit=6")
    assert (done.code, done.out) == (2, "")
    assert done.err.strip() == (
        f"{finished.folder}/runs/rehearsal: this run has other settings (tasks.limit was 5 and is 6), so"
        " Llama-3.1-8B-Instruct bf16 and Llama-3.1-8B-Instruct synthetic-w4a16 would be evaluated again on"
        " arc_challenge and gsm8k. "
        "Submit another run with these options: `hpcq submit MANIFEST -O run.name=rehearsal-2`."
    )


def test_settings_that_cannot_change_results_may_change(finished: Hpcq) -> None:
    """With another flush interval or batch size it is the same run, and nothing is computed again."""
    done = finished("submit", "manifest.toml", "-O", "evaluate.flush_interval_s=3", "-O", "evaluate.batch_size=3")
    assert done.code == 0
    assert len(list(finished.folder.glob("runs/rehearsal/attempts/*.json"))) == 6


def test_an_unknown_run_is_reported_with_the_known_runs(finished: Hpcq) -> None:
    """Exit code 2 and the known runs, for every verb that takes a run."""
    for arguments in (["status"], ["report"], ["merge"], ["logs"], ["cancel"], ["resume"]):
        done = finished(*arguments, "rehersal")
        assert (done.code, done.out) == (2, "")
        assert done.err.strip() == "rehersal: no run in runs/rehersal. Runs in runs: rehearsal."


def test_an_unknown_unit_is_reported(finished: Hpcq) -> None:
    """`logs RUN merg` and `cancel RUN merg` exit with 2 and print the nearest ids; nothing is cancelled or printed."""
    for verb in ("logs", "cancel"):
        done = finished(verb, "rehearsal", "merg")
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith("merg: no unit of this run has this id")
        assert "Nearest: merge.rehearsal." in done.err


def test_cancel_prints_what_each_name_selects(finished: Hpcq) -> None:
    """A scheme selects the quantization and both shards of its evaluation, a pattern the merge."""
    lines = finished("cancel", "rehearsal", "synthetic-w4a16", "merge.*").out.splitlines()
    assert lines[0] == "synthetic-w4a16: 3 units"
    assert [line.strip().partition(".")[0] for line in lines[1:4]] == ["quantize", "evaluate", "evaluate"]
    assert lines[4:6] == ["merge.*: 1 unit", "  merge.rehearsal"]
    assert lines[6] == "Nothing to cancel: no job of these units is pending or running."


def test_a_report_that_cannot_be_written_is_an_error(finished: Hpcq) -> None:
    """An output file below a path that is a file is an error without a traceback."""
    done = finished("report", "rehearsal", "--output", "manifest.toml/report.md")
    assert done.code == 1
    assert "Traceback" not in done.err


def test_a_file_size_limit_is_reported(hpcq: Hpcq) -> None:
    """If files cannot grow, none is partly written: exit code 3, the path and the fix."""
    hpcq.write(REHEARSAL)
    limited = Hpcq(python=hpcq.python, folder=hpcq.folder, wrapper=("prlimit", "--fsize=1000"))
    done = limited("submit", "manifest.toml")
    assert (done.code, done.out) == (3, "")
    lock = hpcq.folder / "runs" / "rehearsal" / "manifest.lock.toml"
    assert done.err.strip() == (
        f"{lock}: the file is larger than the file system or your limit (ulimit -f) allows (File too large)."
    )
    assert sorted(path.name for path in lock.parent.iterdir()) == [".lock"]


def test_a_file_at_the_path_of_the_runs_is_a_manifest_error(hpcq: Hpcq) -> None:
    """`paths.runs` that is a file is refused before anything is written, exit code 2."""
    (hpcq.folder / "runs").write_text("a file where a folder should be")
    done = hpcq("submit", hpcq.write(REHEARSAL))
    assert (done.code, done.out) == (2, "")
    assert "runs" in done.err
    assert "Traceback" not in done.err
    assert not (hpcq.folder / "checkpoints").exists()


EIGHT_GPUS = """
name = "mine"
scheduler = "local"
[gpu_classes.h100]
gpu = "H100-80"
gpus_per_node = 8
cpus_per_node = 64
memory_gib = 1000
[environments.vllm]
python = "/missing/python"
[environments.transformers]
python = "/missing/python"
"""


@pytest.mark.skipif(installed_gpus() is not None, reason="GPUs that this machine lacks are refused first")
@pytest.mark.parametrize(
    ("visible", "code", "sentence"),
    [
        ("2,3", 2, "'2,3' makes 2 of 8 GPUs visible, but evaluate.llama-3.1-70b-instruct--bf16-"),
        ("", 2, "'' makes 0 of 8 GPUs visible, but evaluate."),
        ("0,1,2,3", 0, "profile 'mine': CUDA_VISIBLE_DEVICES = '0,1,2,3' makes 4 of 8 GPUs visible. The run uses only"),
    ],
)
def test_a_unit_that_needs_more_gpus_than_are_visible_is_refused(
    hpcq: Hpcq, visible: str, code: int, sentence: str
) -> None:
    """A unit that needs four GPUs; if it fits, a warning says that the run uses fewer than the profile has."""
    hpcq.write(EIGHT_GPUS, "eight.toml")
    text = REHEARSAL.replace('"local"', '"eight.toml"').replace("8B", "70B").replace(', "synthetic-w4a16"', "")
    _write_mirror(hpcq.folder / "mirror", "meta-llama/Llama-3.1-70B-Instruct")
    manifest = hpcq.write(text.replace('"synthetic"', '"vllm"').replace("shards = 2", ""))
    done = hpcq("submit", manifest, "--dry-run", "-O", "data.mirror=mirror", env={"CUDA_VISIBLE_DEVICES": visible})
    assert (done.code, "Nothing was submitted" in done.out) == (code, code == 0)
    assert sentence in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("visible", "installed", "problem"),
    [
        (
            "7",
            4,
            "CUDA_VISIBLE_DEVICES = '7' selects GPU 7, but the 4 GPUs of this machine are numbered from 0: correct",
        ),
        ("0,4,5", 4, "selects GPU 4, 5, but"),
        ("0,3", 4, None),
        ("7", None, None),
        ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", 4, None),
        (None, 4, "profile 'mine': gpus_per_node is 8, but this machine has 4 GPUs: set gpus_per_node = 4."),
        (None, 8, None),
    ],
)
def test_gpus_that_the_machine_does_not_have_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, installed: int | None, problem: str | None
) -> None:
    """An index beyond the machine's GPUs, of CUDA's variable or of the profile; with AMD's driver nothing is known."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    (tmp_path / "eight.toml").write_text(EIGHT_GPUS)
    gpus = tmp_path / "gpus"
    if installed is not None:
        for number in range(installed):
            (gpus / str(number)).mkdir(parents=True)
    profile = load_profile("eight.toml", tmp_path)
    found = absent_gpu_problem(profile, visible_gpus(os.environ, gpu_count(profile)), installed_gpus(gpus))
    assert (found is None) == (problem is None)
    assert (problem or "") in (found or "")


def _write_mirror(mirror: Path, model: str) -> None:
    """Write what a plan reads of a model and of the rehearsal's tasks."""
    (mirror / "models" / model).mkdir(parents=True)
    (mirror / "models" / model / "config.json").write_text(json.dumps(find_model_config(model)))
    for name in ("allenai/ai2_arc", "openai/gsm8k"):
        (mirror / "datasets" / name).mkdir(parents=True)


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
            "needs 6 nodes of class 'small', but a profile with scheduler = 'local' has only this machine. Try",
        ),
        (
            "meta-llama/Llama-3.1-8B-Instruct",
            ["-O", "evaluate.engine.tensor_parallel_size=32", "-O", "evaluate.max_length=4096"],
            "32 GPUs do not fit evenly on up to 6 nodes. Try this: remove evaluate.engine.tensor_parallel_size",
        ),
    ],
)
def test_what_vllm_cannot_run_is_planned_but_not_submitted(
    hpcq: Hpcq, model: str, options: list[str], sentence: str
) -> None:
    """vLLM over nodes without Slurm, or over too many GPUs, is refused with a fix; nothing is written."""
    hpcq.write(TWO_NODES, "two.toml")
    text = REHEARSAL.replace("meta-llama/Llama-3.1-8B-Instruct", model).replace('"local"', '"two.toml"')
    text = text.replace("shards = 2", "")
    manifest = hpcq.write(text.replace('"synthetic"\n', '"vllm"\n').replace(', "synthetic-w4a16"', ""))
    assert hpcq("plan", manifest, *options).code == 0
    done = hpcq("submit", manifest, *options)
    assert done.code == 2
    assert sentence in done.err
    assert not (hpcq.folder / "runs").exists()


def test_a_missing_environment_is_reported_with_its_command(hpcq: Hpcq) -> None:
    """vLLM needs an optional environment: `submit` reports the command that creates it, exit code 3."""
    hpcq.write(TWO_NODES, "two.toml")
    text = REHEARSAL.replace('"synthetic"\n', '"vllm"\n').replace(', "synthetic-w4a16"', "")
    manifest = hpcq.write(text.replace('"local"', '"two.toml"'))
    done = hpcq("submit", manifest, "-O", "evaluate.max_length=4096", env={"HPCQ_CACHE": str(hpcq.folder)})
    assert done.code == 3
    assert "The environment 'vllm' does not exist: run `python3 -m hpcq.core.environments vllm`." in done.err
