"""Every quantization tool on real and tiny models: quantized in its environment, then loaded and scored by accelerate.

    python -m tests.quantizer_tools [--families a,b] [--schemes x,y] [--samples N] [--length N] [--folder F] [--write]

prints one line per pair of family and scheme, and exits with 1 if a pair that the planner accepts gives no checkpoint,
or a checkpoint does not compute what the tool computed. With --write it writes the table in docs/quantizers.md. The
families are SmolLM2-135M (staged by tests/staged.toml), and tiny random models with qkv biases (qwen2) and with experts
(mixtral). It needs `make environments environments-quantizers`, one core, and about half an hour.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcq.catalog.hf_config import find_config_shape
from hpcq.catalog.packages import staged_calibration_path, staged_model_path
from hpcq.catalog.schemes import find_scheme, group_size_problem
from hpcq.catalog.tool_limits import width_problem
from hpcq.catalog.tools import quantizers
from hpcq.catalog.unquantized_modules import quantization_problem
from hpcq.core import environments

CHECKOUT = Path(__file__).resolve().parents[1]
DOCUMENT = CHECKOUT / "docs" / "quantizers.md"
BEGIN, END = "<!-- table: python -m tests.quantizer_tools --write -->", "<!-- end of table -->"
SMOLLM = "SmolLM2-135M"
MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
FAMILIES = (SMOLLM, "qwen2", "mixtral")
SCHEMES = (
    "bf16",
    "llmcompressor:gptq-w4a16-g64",
    "autogptq:gptq-w4a16-g64",
    "gptqmodel:gptq-w4a16-g64",
    "autoround:w4a16-g64",
    "llmcompressor:awq-w4a16-g64",
    "autoawq:awq-w4a16-g64",
    "gptqmodel:awq-w4a16-g64",
    "bitsandbytes:nf4",
    "bitsandbytes:fp4",
    "bitsandbytes:int8",
)
TUNING_STEPS = 20
"""Steps of AutoRound per block: a tenth of its default, because a CPU takes seconds per step."""
TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of one pair.

    Attributes:
        family: Family or model.
        scheme: The scheme.
        planned: Why the planner refuses it; None: it accepts it.
        error: Why there is no checkpoint, or it cannot be scored.
        metadata: Content of hpcq.json.
        perplexity: Of the first tokens of the Apache licence.
        seconds: Of the whole worker process, with imports.
    """

    family: str
    scheme: str
    planned: str | None
    error: str | None = None
    metadata: dict[str, Any] | None = None
    perplexity: float | None = None
    seconds: float = 0.0

    @property
    def is_expected(self) -> bool:
        """Whether the planner was right."""
        return (self.planned is None) == (self.error is None)


def base_folder(family: str, folder: Path) -> Path:
    """Return the folder of a family's base checkpoint."""
    if family == SMOLLM:
        found = staged_model_path(MODEL_ID)
        assert found
        return found
    target = folder / "bases" / family
    if not target.exists():
        code = "import sys; from tests.families import write_family; write_family(*sys.argv[1:])"
        _run("transformers", ["-c", code, family, str(target), str(staged_model_path(MODEL_ID))])
    return target


def planned_problem(base: Path, scheme_name: str) -> str | None:
    """Return why the planner refuses a pair; None: it accepts it."""
    scheme = find_scheme(scheme_name)
    assert scheme
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    shape = find_config_shape(config)
    problem = group_size_problem(scheme, shape) if shape else None
    return (
        quantization_problem(config, scheme)
        or (width_problem(scheme, shape) if shape else None)
        or (problem.sentence(base.name) if problem else None)
    )


def quantize(base: str, scheme_name: str, text: str, output: str, samples: str, length: str) -> None:
    """Create one checkpoint; runs in the environment of the tool."""
    from dataclasses import replace

    from hpcq.core.attempts import Attempt, AttemptRecord, utc_now
    from hpcq.core.files import digest_of_file
    from hpcq.core.work_records import Calibration, Model, QuantizeWork, Variant
    from hpcq.quantize.worker import quantize as create

    scheme = find_scheme(scheme_name)
    assert scheme
    if scheme.method == "autoround":
        scheme = replace(scheme, tuning_steps=TUNING_STEPS)
    calibration = Calibration(
        digest=digest_of_file(Path(text)), samples=int(samples), sequence_length=int(length), path=text
    )
    variant = Variant(
        model=Model(id="org/model", path=base),
        scheme=scheme,
        calibration=calibration if scheme.needs_calibration else None,
    )
    record = AttemptRecord(unit=f"quantize.{variant.id}", attempt=1, job_id="1", node="here", pid=1, start=utc_now())
    work = QuantizeWork(variant=variant, checkpoint_path=output, device="cpu")
    create(work, Attempt(Path(output).parent / "attempts", record))


def score(base: str, scheme_name: str, checkpoint: str) -> None:
    """Print the perplexity of a checkpoint as the accelerate backend computes it, in float32."""
    import torch

    from hpcq.core.work_records import EvaluateWork, Model, Variant
    from hpcq.evaluate.backends.transformers.backend import AccelerateBackend

    scheme = find_scheme(scheme_name)
    assert scheme
    work = EvaluateWork(
        variant=Variant(model=Model(id="org/model", path=base), scheme=scheme),
        tasks=(),
        backend="accelerate",
        dtype="float32",
        device="cpu",
        segments_path="",
        checkpoint_path=checkpoint,
        options=(("prefix_sharing", False),),
    )
    backend = AccelerateBackend(work)
    backend.load()
    lm = backend._lm
    ids = lm.tokenizer((CHECKOUT / "LICENSE").read_text(encoding="utf-8"), return_tensors="pt").input_ids[:, :TOKENS]
    with torch.no_grad():
        loss = lm.model(input_ids=ids, labels=ids).loss
    sys.stdout.write(f"PERPLEXITY {float(loss.exp())}\n")


def measure(family: str, scheme_name: str, folder: Path, text: Path, samples: int, length: int) -> Outcome:
    """Quantize and score one pair."""
    base = base_folder(family, folder)
    scheme = find_scheme(scheme_name)
    assert scheme
    planned = planned_problem(base, scheme_name) if scheme.is_quantized else None
    outcome = {"family": family, "scheme": scheme_name, "planned": planned}
    checkpoint, began_s = base, time.monotonic()
    if scheme.is_quantized:
        checkpoint = folder / family / scheme.slug
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        words = [str(base), scheme_name, str(text), str(checkpoint), str(samples), str(length)]
        done = _call(quantizers()[scheme.tool].environment, "quantize", words)
        if done.returncode:
            return Outcome(**outcome, error=_last_line(done.stderr), seconds=time.monotonic() - began_s)
    seconds = time.monotonic() - began_s
    done = _call("transformers", "score", [str(base), scheme_name, str(checkpoint)])
    if done.returncode:
        return Outcome(**outcome, error=f"not scored: {_last_line(done.stderr)}", seconds=seconds)
    line = next(line for line in done.stdout.splitlines() if line.startswith("PERPLEXITY"))
    metadata = checkpoint / "hpcq.json"
    return Outcome(
        **outcome,
        metadata=json.loads(metadata.read_text(encoding="utf-8")) if metadata.is_file() else None,
        perplexity=float(line.split()[1]),
        seconds=seconds,
    )


def _call(environment: str, function: str, words: list[str]) -> subprocess.CompletedProcess[str]:
    # By its path: the environment 'legacy' has a package 'tests' of another distribution.
    code = f"import runpy, sys; runpy.run_path({__file__!r})[{function!r}](*sys.argv[1:])"
    return _run(environment, ["-c", code, *words], check=False)


def _run(environment: str, arguments: list[str], *, check: bool = True) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT), "TOKENIZERS_PARALLELISM": "false"}
    command = [str(environments.interpreter(environment)), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=check, env=variables, cwd=CHECKOUT)


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.strip().splitlines()) if line.strip()), "no output")[:300]


def table(outcomes: list[Outcome], samples: int, length: int) -> str:
    """Return the outcomes as a table in Markdown."""
    lines = [
        f"Calibrated with {samples} × {length} tokens, on one core, in float32 (gptqmodel's AWQ, AutoRound: bfloat16).",
        f"AutoRound has {TUNING_STEPS} steps. Perplexity: {TOKENS} tokens of the Apache licence, with accelerate.",
        "The tiny models have random weights: their perplexities show only that the checkpoints load.",
        "",
        "| model | scheme | layers | perplexity | checkpoint, MB | seconds | peak memory, GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in outcomes:
        found = one.metadata or {}
        cells = [one.family, f"`{one.scheme}`"]
        if one.error:
            cells += [f"refused: {one.planned or one.error}", *["–"] * 4]
        else:
            coverage = found.get("coverage", {})
            total = coverage.get("quantized_linears", 0) + coverage.get("unquantized_linears", 0)
            size, peak = found.get("bytes_on_disk"), found.get("peak_memory_bytes")
            cells += [
                f"{coverage['quantized_linears']} of {total}" if coverage else "–",
                f"{one.perplexity:.2f}",
                f"{size / 1e6:.1f}" if size else "–",
                f"{one.seconds:.0f}" if found else "–",
                f"{peak / 1e9:.1f}" if peak else "–",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Run the matrix."""
    parser = argparse.ArgumentParser(prog="python -m tests.quantizer_tools", description=__doc__)
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--schemes", default=",".join(SCHEMES))
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--write", action="store_true", help="write the table in docs/quantizers.md")
    options = parser.parse_args()
    text = staged_calibration_path("boolq-passages")
    assert text
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="hpcq-tools-") as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        for family in options.families.split(","):
            for scheme in options.schemes.split(","):
                one = measure(family, scheme, folder, text, options.samples, options.length)
                outcomes.append(one)
                sys.stdout.write(
                    f"{family} {scheme}: perplexity {one.perplexity}, {one.seconds:.0f} s,"
                    f" planned {one.planned or 'yes'}, error {one.error or 'none'}\n"
                )
                sys.stdout.flush()
    if options.write:
        content = DOCUMENT.read_text(encoding="utf-8")
        head, _, rest = content.partition(BEGIN)
        tail = rest.partition(END)[2]
        rows = table(outcomes, options.samples, options.length)
        DOCUMENT.write_text(f"{head}{BEGIN}\n{rows}\n{END}{tail}", encoding="utf-8")
    return 0 if all(one.is_expected for one in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
