"""Matrix of families and schemes: each pair gives a checked checkpoint, or is refused at plan time in one sentence.

    python -m tests.quantize_matrix [--families a,b] [--schemes x,y | --formats] [--sample N --seed S]
                                    [--folder FOLDER] [--write]

prints one line per pair, and exits with 1 if a pair that the planner accepts gives no checkpoint, or the reverse.
--formats runs the formats of today instead of --schemes, --sample only N random pairs. With --write it records the
results in docs/families.json, from which `make docs` writes docs/families.md. It needs the environment 'transformers',
the staged model of tests/staged.toml, and about four seconds per pair.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcq.catalog.hf_config import find_config_shape
from hpcq.catalog.packages import staged_model_path
from hpcq.catalog.schemes import find_scheme, group_size_problem
from hpcq.catalog.unquantized_modules import quantization_problem
from hpcq.core.attempts import Attempt, AttemptRecord, utc_now
from hpcq.core.errors import HpcqError
from hpcq.core.versions import installed_versions
from hpcq.core.work_records import Calibration, Model, QuantizeWork, Scheme, Variant
from hpcq.quantize.worker import quantize
from tests.families import FAMILIES, TOKENIZER_MODEL, write_family
from tests.tiny_llama import write_calibration

SCHEMES = ("fp8-dynamic", "fp8", "gptq-w4a16-g32", "gptq-w4a16-g64", "gptq-w8a16", "smoothquant-w8a8", "awq-w4a16-g32")
FORMATS = (
    "fp8-block",
    "fp8-dynamic-kv8",
    "nvfp4",
    "nvfp4-w4a16",
    "gptq-nvfp4",
    "awq-nvfp4",
    "mxfp4",
    "gptq-mxfp4",
    "awq-mxfp4",
    "mxfp8",
    "w4a8-fp8-g32",
    "gptq-w4a8-fp8-g32",
)
"""Formats of today; `--formats` runs them instead of SCHEMES, which docs/families.md lists."""
RECORD = Path(__file__).parents[1] / "docs" / "families.json"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of one pair.

    Attributes:
        family: The family.
        scheme: The scheme.
        facts: Metadata of the checkpoint; None: refused.
        reason: Why it was refused.
        seconds: Duration.
    """

    family: str
    scheme: str
    facts: dict[str, Any] | None
    reason: str
    seconds: float

    @property
    def is_expected(self) -> bool:
        """Whether it is what the planner says."""
        return (self.facts is None) == (planned_problem(self.family, self.scheme) is not None)


def planned_problem(family: str, scheme_name: str) -> str | None:
    """Return why the planner refuses a pair, from the configuration alone; None: it accepts it."""
    config = {"model_type": FAMILIES[family].model_type, **FAMILIES[family].sizes}
    scheme, shape = named_scheme(scheme_name), find_config_shape(config)
    problem = group_size_problem(scheme, shape) if shape else None
    return quantization_problem(config, scheme) or (problem.sentence(family) if problem else None)


def named_scheme(name: str) -> Scheme:
    """Return a scheme of the catalog."""
    scheme = find_scheme(name)
    assert scheme
    return scheme


def run_pair(family: str, scheme_name: str, folder: Path, calibration: Calibration) -> Outcome:
    """Quantize a family with a scheme in `folder`, which keeps the family's model for further schemes."""
    base, checkpoint = folder / "models" / family, folder / "checkpoints" / family / scheme_name
    if not base.is_dir():
        write_family(family, base, tokenizer_folder())
    scheme = named_scheme(scheme_name)
    model = Model(id=f"tests/{family}", path=str(base))
    variant = Variant(model=model, scheme=scheme, calibration=calibration if scheme.needs_calibration else None)
    record = AttemptRecord(unit="quantize.x", attempt=1, job_id="1", node="here", pid=1, start=utc_now())
    begin_s = time.monotonic()
    reason = ""
    try:
        work = QuantizeWork(variant=variant, checkpoint_path=str(checkpoint), device="cpu")
        quantize(work, Attempt(folder / "attempts", record))
    except HpcqError as error:
        reason = f"{type(error).__name__}: {error}"
    facts = None if reason else json.loads((checkpoint / "hpcq.json").read_text(encoding="utf-8"))
    seconds = time.monotonic() - begin_s
    return Outcome(family=family, scheme=scheme_name, facts=facts, reason=reason, seconds=seconds)


def tokenizer_folder() -> Path:
    """Return the folder of the staged model whose tokenizer the families have."""
    folder = staged_model_path(TOKENIZER_MODEL)
    assert folder
    return folder


def describe(outcome: Outcome) -> str:
    """Return an outcome as one line."""
    mark = "" if outcome.is_expected else "UNEXPECTED "
    head = f"{mark}{outcome.family:14} {outcome.scheme:18} {outcome.seconds:5.1f} s  "
    if outcome.facts is None:
        return head + outcome.reason
    coverage, check = outcome.facts["coverage"], outcome.facts["self_check"]
    return head + f"ok  {json.dumps(coverage)}  {json.dumps(check)}"


def write_record(outcomes: list[Outcome]) -> None:
    """Replace the checkpoints of `outcomes` in docs/families.json."""
    document = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}
    families = document.setdefault("checkpoints", {})
    for outcome in outcomes:
        schemes = families.setdefault(outcome.family, {})
        schemes.pop(outcome.scheme, None)
        if outcome.facts:
            coverage, check = outcome.facts["coverage"], outcome.facts["self_check"]
            schemes[outcome.scheme] = {
                "quantized_linears": coverage["quantized_linears"],
                "unquantized_linears": coverage["unquantized_linears"],
                "largest_error": round(check["weights"]["largest_error"], 3),
                "reloaded_difference": round(check["reloaded"]["difference"], 4),
            }
    document["versions"] = installed_versions({"llmcompressor", "compressed-tensors", "transformers", "torch"})
    RECORD.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def main() -> None:
    """Run the matrix and print it."""
    parser = argparse.ArgumentParser(description="Quantize tiny models of many families with many schemes.")
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--schemes", default=",".join(SCHEMES))
    parser.add_argument("--formats", action="store_true", help="the formats of today instead of --schemes")
    parser.add_argument("--sample", type=int, default=None, help="run this number of random pairs")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    parser.add_argument("--folder", type=Path, default=None, help="keep models and checkpoints here")
    parser.add_argument("--write", action="store_true", help="record the results in docs/families.json")
    arguments = parser.parse_args()
    os.environ.setdefault("LLM_COMPRESSOR_LOG_LEVEL", "ERROR")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        calibration = write_calibration(folder / "text.jsonl")
        outcomes = []
        schemes = FORMATS if arguments.formats else arguments.schemes.split(",")
        pairs = [(family, scheme) for scheme in schemes for family in arguments.families.split(",")]
        if arguments.sample is not None:
            pairs = random.Random(arguments.seed).sample(pairs, min(arguments.sample, len(pairs)))  # noqa: S311
        for family, scheme in pairs:
            with contextlib.redirect_stderr(io.StringIO()):
                outcomes.append(run_pair(family, scheme, folder, calibration))
            sys.stdout.write(describe(outcomes[-1]) + "\n")
            sys.stdout.flush()
            if arguments.write:
                write_record(outcomes[-1:])
    sys.exit(not all(outcome.is_expected for outcome in outcomes))


if __name__ == "__main__":
    main()
