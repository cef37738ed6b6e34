"""vLLM with a model whose numbers are NaN. An earlier version repeated token 0, and gave an accuracy of 100 %."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

from tests.tiny_llama import write_base

PROGRAM = """
import json, sys
from pathlib import Path
from hpcq.evaluate.backends.vllm.backend import VllmBackend
from hpcq.evaluate.requests import GENERATE, LOGLIKELIHOOD
from hpcq.verify.responses import NotFiniteError, response_problem
from tests.vllm.conftest import make_work, request

folder = sys.argv[1]
backend = VllmBackend(make_work(Path(folder), checkpoint_path=folder, dtype="float16", options=(("max_length", 128),)))
backend.load()
chunk = [request(number, LOGLIKELIHOOD, ("What is it?", f" {number}")) for number in range(3)]
problems = [response_problem(response) for _, response in backend.stream([chunk])]
texts = [request(number, GENERATE, ("What is it?", {"until": [], "max_gen_toks": 4})) for number in range(2)]
try:
    list(backend.stream([texts]))
except NotFiniteError as error:
    print(json.dumps({"problems": problems, "error": str(error)}))
"""


def test_log_likelihoods_and_texts_of_nan_are_refused(tmp_path: Path) -> None:
    """In an overflow of float16, log-likelihoods are recognized as invalid, and a generated text is an error.

    The user's environment cannot switch off that the engine counts NaN. Observed: the accuracy was 100 %.
    """
    folder = write_base(tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"] *= 1e5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "VLLM_COMPUTE_NANS_IN_LOGITS": "0"},
    )

    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["problems"] == ["its log-likelihood is nan"] * 3
    assert "corners document 0 request 0: the logits of its text are NaN" in found["error"]
