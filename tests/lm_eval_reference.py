"""Responses of lm-eval's own model class to the requests of tasks, as an independent check of hpcq's backends.

    python -m tests.lm_eval_reference < REQUEST

reads the arguments of `write_reference` as JSON. It runs in the environment `transformers`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import lm_eval.models.huggingface
from lm_eval.models.huggingface import HFLM

from hpcq.core.work_records import Task
from hpcq.evaluate.lm_eval_tasks import build_tasks
from hpcq.evaluate.requests import requests_of
from tests.dequantized import round_inputs, write_dequantized


def write_reference(
    *,
    model: str,
    tasks: list[dict[str, object]],
    output: str,
    max_length: int | None = None,
    batch_size: int = 1,
    is_quantized: bool = False,
) -> None:
    """Answer all requests of `tasks` with lm-eval's HFLM in float32, one at a time, and write them as JSON.

    Args:
        model: Folder of the checkpoint.
        tasks: Arguments of `Task`.
        output: File that gets a list of [task, document, request, log-likelihood or text, greedy flag or null].
        max_length: As in hpcq's manifest.
        batch_size: Requests per batch; 1 excludes any effect of padding.
        is_quantized: Answer with the plain model that tests/dequantized.py makes of the checkpoint.
    """
    lm_eval.models.huggingface.eval_logger.disabled = True
    with tempfile.TemporaryDirectory() as folder:
        plain = str(write_dequantized(Path(model), Path(folder) / "plain")) if is_quantized else model
        lm = HFLM(
            pretrained=plain,
            dtype="float32",
            device="cpu",
            batch_size=batch_size,
            max_length=max_length,
            **_attention(Path(model)),
        )
    if is_quantized:
        round_inputs(lm.model, Path(model))
    rows: list[list[object]] = []
    for built in build_tasks([Task(**one) for one in tasks]):  # type: ignore[arg-type]
        for name, leaf in built.leaves.items():
            keys = [request.key for request in requests_of(leaf.instances, str(leaf.VERSION))]
            answers = getattr(lm, leaf.OUTPUT_TYPE if leaf.OUTPUT_TYPE == "generate_until" else "loglikelihood")(
                leaf.instances, disable_tqdm=True
            )
            for key, answer in zip(keys, answers, strict=True):
                value, is_greedy = (answer, None) if isinstance(answer, str) else answer
                rows.append([name, key.doc_id, key.request_index, value, is_greedy])
    Path(output).write_text(json.dumps(rows), encoding="utf-8")


def _attention(model: Path) -> dict[str, str]:
    """Return the attention implementation that computes the model as defined, where it is not transformers' default.

    `sdpa` ignores soft caps (Gemma 2). `eager` is not always correct: it adds Falcon's ALiBi twice (5.17).
    """
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    return {"attn_implementation": "eager"} if config.get("attn_logit_softcapping") else {}


if __name__ == "__main__":
    write_reference(**json.load(sys.stdin))
