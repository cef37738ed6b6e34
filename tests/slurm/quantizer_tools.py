"""AutoGPTQ, AutoAWQ, gptqmodel, AutoRound and bitsandbytes through Slurm jobs that load hpcq's modules.

    python -m tests.slurm.quantizer_tools [--schemes a,b] [--folder FOLDER]

submits a manifest with a tiny local model to a virtual cluster, waits, and prints the report. It exits with hpcq's exit
code. It runs in the environment `core`, and needs Slurm, environment modules, `make environments-quantizers`, and some
minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from hpcq.core import environments
from tests.command_line import Hpcq
from tests.slurm.cluster import VirtualCluster

SCHEMES = (
    "bf16",
    "gptq-w4a16-g64",
    "autogptq:gptq-w4a16-g64",
    "autoawq:awq-w4a16-g64",
    "gptqmodel:gptq-w4a16-g64",
    "autoround:w4a16-g64",
    "bitsandbytes:nf4",
)
MODULES = ("gptqmodel", "legacy", "transformers")
CHECKOUT = Path(__file__).resolve().parents[2]
MANIFEST = """
[run]
name = "tools"
[[models]]
path = "base"
[schemes]
use = {schemes}
[calibration]
dataset = "text.jsonl"
samples = 8
sequence_length = 64
[tasks]
use = ["arc_challenge"]
data = "items"
[tasks.options.arc_challenge]
num_fewshot = 0
[quantize]
device = "cpu"
[evaluate]
backend = "accelerate"
device = "cpu"
[cluster]
profile = "{profile}"
"""


def write_inputs(folder: Path, schemes: list[str], profile: Path) -> None:
    """Write the base model, the calibration text, four items and the manifest."""
    code = (
        "import sys; from pathlib import Path; from tests.tiny_llama import *; folder = Path(sys.argv[1]);"
        "write_base(folder / 'base'); write_calibration(folder / 'text.jsonl')"
    )
    variables = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    subprocess.run([environments.interpreter("transformers"), "-c", code, str(folder)], check=True, env=variables)
    items = folder / "items" / "arc_challenge"
    items.mkdir(parents=True)
    rows = [
        {
            "id": str(number),
            "question": f"What is {number} plus one?",
            "choices": {"text": [str(number), str(number + 1)], "label": ["A", "B"]},
            "answerKey": "B",
        }
        for number in range(4)
    ]
    for split in ("train", "test"):
        (items / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    text = MANIFEST.format(schemes=json.dumps(schemes), profile=profile)
    (folder / "m.toml").write_text(text, encoding="utf-8")


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.slurm.quantizer_tools", description=__doc__)
    parser.add_argument("--schemes", default=",".join(SCHEMES))
    parser.add_argument("--folder", type=Path, help="folder of the run (default: a temporary one)")
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(CHECKOUT)}
    with tempfile.TemporaryDirectory(prefix="hpcq-tools-") as temporary, VirtualCluster() as cluster:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for name in MODULES:
            environments.create(name)
        cluster.write_profile({"core": sys.executable})
        with cluster.profile.open("a", encoding="utf-8") as profile:
            profile.writelines(f'\n[environments.{name}]\nmodules = ["hpcq/{name}"]\n' for name in MODULES)
        os.environ |= cluster.environment()
        write_inputs(folder, options.schemes.split(","), cluster.profile)
        hpcq = Hpcq(python=Path(sys.executable), folder=folder)
        done = hpcq("submit", "m.toml", "--wait", timeout_s=3600)
        sys.stdout.write(f"{done.out}{done.err if done.code else ''}\nexit code {done.code}\n")
    return done.code


if __name__ == "__main__":
    sys.exit(main())
