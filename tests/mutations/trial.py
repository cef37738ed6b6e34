"""A trial: restore a family's finished runs, mutate their input, submit again, and judge the result."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from hpcq.catalog.packages import staged_dataset_path, staged_model_path
from tests.families import TOKENIZER_MODEL
from tests.mutations.checkpoint_edit import split_checkpoint
from tests.mutations.kinds.registry import Case, Kind, Target
from tests.mutations.oracle import BASE, Class, Judgement, Responses, RunResult, judge, read_marks, read_run, tail
from tests.mutations.processes import HungError, in_fork, run_command
from tests.mutations.warm_workers import WarmWorkers

FAMILIES = {
    "llama": False,
    "gpt2": False,
    "gemma3": False,
    "mixtral": True,
    "qwen3_moe": False,
    "deepseek_v3": False,
    "gemma2": True,
    "qwen2": True,
}
"""Families of tests/families.py, and whether their checkpoint has several files."""

FP8, GPTQ = "fp8-dynamic", "gptq-w4a16-g32"
RESUBMITTED_SHARE = 0.3
"""Share of trials in which the finished run is submitted again, too, with the mutated input."""
TASKS: dict[str, dict[str, object]] = {
    "arc_challenge": {"limit": 2},
    "gsm8k": {"limit": 2, "num_fewshot": 1, "max_gen_toks": 8},
}
ITEMS = 6

MANIFEST = """
[run]
name = "fresh"
[cluster]
profile = "local"
[[models]]
id = "tests/model"
path = "model"
[schemes]
use = ["bf16"]
[calibration]
dataset = "text.jsonl"
samples = 8
sequence_length = 64
[tasks]
use = ["arc_challenge", "gsm8k"]
limit = 2
data = "items"
[tasks.options.gsm8k]
num_fewshot = 1
max_gen_toks = 8
[evaluate]
backend = "accelerate"
dtype = "float32"
batch_size = 2
"""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Result of a trial.

    Attributes:
        family: The family.
        kind: Name of the kind of mutation.
        seed: Seed of the trial.
        done: What was changed.
        schemes: Schemes of the run.
        outcome: The class.
        text: Message, or the differences.
        seconds: Duration.
    """

    family: str
    kind: str
    seed: int
    done: str
    schemes: tuple[str, ...]
    outcome: Class
    text: str
    seconds: float

    @property
    def reproduction(self) -> str:
        """The command that repeats the trial."""
        return f"python -m tests.mutations --only {self.family}:{self.kind}:{self.seed}"


@dataclass(kw_only=True)
class Laboratory:
    """Folder with the prepared families; all trials run in one after the other.

    Attributes:
        folder: Folder for everything.
        workers: Where units run.
    """

    folder: Path
    workers: WarmWorkers
    _pristine: dict[str, dict[str, RunResult]] = field(default_factory=dict)

    def run_trial(self, family: str, kind: Kind, seed: int) -> Verdict | None:
        """Mutate an input of `family` and judge what hpcq does; None: the family does not have what is mutated."""
        begin_s = time.monotonic()
        random = Random(f"{family}:{kind.name}:{seed}")  # noqa: S311 (not for cryptography)
        run, before = self._prepared(family, _pick_run(kind, random))
        resubmits = random.random() < RESUBMITTED_SHARE
        self._restore(family)
        done = kind.apply(self._case, random)
        if done is None:
            return None
        judgement = self._judge(kind, before, run, resubmits=resubmits)
        return Verdict(
            family=family,
            kind=kind.name,
            seed=seed,
            done=done,
            schemes=_schemes(run),
            outcome=judgement.outcome,
            text=judgement.text,
            seconds=time.monotonic() - begin_s,
        )

    @property
    def work(self) -> Path:
        """Folder of the current trial."""
        return self.folder / "work"

    @property
    def _case(self) -> Case:
        return Case(
            model=self.work / "model",
            items=self.work / "items",
            calibration=self.work / "text.jsonl",
            spare=self.folder / "spare",
        )

    def _prepared(self, family: str, run: str) -> tuple[str, RunResult]:
        """Finish a run with a family's undamaged input, and return its result; without a checkpoint where it fails."""
        results = self._pristine.setdefault(family, {})
        if run not in results:
            if results:
                self._restore(family)
            else:
                self._write_input(family)
            results[run] = self.submit(run, _schemes(run))
            if run == BASE and results[run].command.code:
                raise RuntimeError(f"{family}: {results[run].command.text} {results[run].failures}")
            self._save(family)
        if results[run].command.code:
            return self._prepared(family, BASE)
        return run, results[run]

    def _write_input(self, family: str) -> None:
        self._write_spare()
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        self._write_model(family, self.work / "model")
        if FAMILIES.get(family):
            split_checkpoint(self.work / "model")
        _write_items(self.work / "items")
        _write_calibration(self.work / "text.jsonl")
        (self.work / "manifest.toml").write_text(MANIFEST, encoding="utf-8")

    def _save(self, family: str) -> None:
        target = self.folder / "pristine" / family
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.work, target)

    def _restore(self, family: str) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.folder / "pristine" / family, self.work)

    def _write_spare(self) -> None:
        spare = self.folder / "spare"
        if not spare.is_dir():
            spare.mkdir(parents=True)
            source = staged_model_path(TOKENIZER_MODEL)
            assert source
            (spare / "tokenizer").symlink_to(source)
            self._write_model("qwen3", spare / "other")

    def _write_model(self, family: str, folder: Path) -> None:
        source = staged_model_path(TOKENIZER_MODEL)
        self._call("tests.families:write_family", name=family, folder=str(folder), tokenizer=str(source))
        assert (folder / "config.json").is_file(), (self.folder / "call.log").read_text()

    def _call(self, function: str, /, **arguments: object) -> None:
        log = str(self.folder / "call.log")
        self.workers.run(
            {"call": function, "arguments": arguments, "folder": str(self.folder), "log": log, "environment": {}}
        )

    def submit(self, run: str, schemes: Sequence[str]) -> RunResult:
        """Submit the manifest as the run `run`, and return what it left.

        Raises:
            HungError: The command does not end.
        """
        options = [f"run.name={json.dumps(run)}", f"schemes.use={json.dumps(list(schemes))}"]
        arguments = ["submit", "manifest.toml", *(word for option in options for word in ("-O", option))]
        start = self.workers.start_process
        command = run_command(arguments, folder=self.work, start_process=start, timeout_s=4 * self.workers.timeout_s)
        if [*(self.work / "logs").rglob("hung")]:
            raise HungError
        result = RunResult(command=command)
        folder = self.work / "runs" / run
        if command.code in (0, 1) and folder.is_dir():
            found = in_fork(lambda: read_run(folder), folder=self.work, timeout_s=60)
            if found is not None:
                result.responses, result.addresses, result.failures = found
            if result.responses:
                report = run_command(
                    ["report", run, "--format", "json"], folder=self.work, start_process=start, timeout_s=60
                )
                result.marks = read_marks(report.text) if not report.code else {}
        return result

    def _judge(self, kind: Kind, before: RunResult, run: str, *, resubmits: bool) -> Judgement:
        try:
            if resubmits:
                again = self.submit(run, _schemes(run))
                if again.command.has_traceback:
                    return Judgement(outcome=Class.TRACEBACK, text=f"second submission: {tail(again.command.text)}")
            return judge(kind, before, self.submit("fresh", _schemes(run)), self._reference)
        except HungError:
            return Judgement(outcome=Class.HUNG, text="a command or a unit did not end")

    def _reference(self) -> Responses | None:
        output = self.folder / "reference.json"
        output.unlink(missing_ok=True)
        tasks = [
            {"name": name, **options, "data_path": str(self.work / "items" / name)} for name, options in TASKS.items()
        ]
        self._call(
            "tests.lm_eval_reference:write_reference", model=str(self.work / "model"), tasks=tasks, output=str(output)
        )
        if not output.is_file():
            return None
        rows = json.loads(output.read_text(encoding="utf-8"))
        return {f"{task}/{document}/{request}": (value, flag) for task, document, request, value, flag in rows}


def _pick_run(kind: Kind, random: Random) -> str:
    if kind.target is Target.CALIBRATION:
        return GPTQ
    if kind.target in (Target.ITEMS, Target.TOKENIZER):
        return BASE
    return random.choices((BASE, FP8, GPTQ), weights=(6, 3, 1))[0]


def _schemes(run: str) -> tuple[str, ...]:
    return (BASE,) if run == BASE else (BASE, run)


def _write_items(folder: Path) -> None:
    for task in TASKS:
        source = staged_dataset_path(task)
        assert source
        (folder / task).mkdir(parents=True)
        for path in source.glob("*.jsonl"):
            lines = path.read_text(encoding="utf-8").splitlines()[:ITEMS]
            (folder / task / path.name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _write_calibration(path: Path) -> None:
    rows = ({"text": f"Passage {number} says that {number} times {number} is {number**2}."} for number in range(100))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
