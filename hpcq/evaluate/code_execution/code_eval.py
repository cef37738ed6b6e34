"""Hugging Face's metric code_eval (pass@k), computed with hpcq's sandbox.

lm-eval's definitions load the metric from the hub and run it when they are loaded (0.4.13). It executes code in a child
process, without a sandbox.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from hpcq.evaluate.code_execution.sandbox import ProgramResult, run_program
from hpcq.evaluate.pass_at_k import pass_at_k

_METRIC = "code_eval"


class CodeEval:
    """The metric, with the signature that lm-eval's definitions call."""

    def compute(
        self,
        references: Sequence[str],
        predictions: Sequence[Sequence[str]],
        k: Sequence[int] = (1, 10, 100),
        **_: object,
    ) -> tuple[dict[str, float], dict[int, list[tuple[int, dict[str, Any]]]]]:
        """Run each prediction with its test.

        Args:
            references: Python code of each problem's test.
            predictions: Programs that the model wrote for each problem.
            k: The values of k in pass@k.

        Returns:
            pass@k by its name, for each k up to the smallest number of programs of a problem; and, by index of the
            problem, the result of each program.
        """
        with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
            pending = [
                [pool.submit(run_program, f"{program}\n{test}") for program in programs]
                for programs, test in zip(predictions, references, strict=True)
            ]
            results = [[one.result() for one in programs] for programs in pending]
        counts = [(len(programs), sum(one.passed for one in programs)) for programs in results]
        smallest = min((total for total, _ in counts), default=0)
        scores = {
            f"pass@{size}": sum(pass_at_k(total, passed, size) for total, passed in counts) / len(counts)
            for size in k
            if 0 < size <= smallest
        }
        return scores, {number: list(map(_as_row, range(len(one)), one)) for number, one in enumerate(results)}


def _as_row(number: int, result: ProgramResult) -> tuple[int, dict[str, Any]]:
    return number, {"passed": result.passed, "result": result.reason or "passed", "completion_id": number}


@contextmanager
def sandboxed_code_eval() -> Iterator[None]:
    """Let `evaluate.load("code_eval")` return the metric of this module; other metrics are loaded as before."""
    import evaluate

    load = evaluate.load

    def load_metric(path: str, *arguments: Any, **settings: Any) -> Any:
        return CodeEval() if path == _METRIC else load(path, *arguments, **settings)

    evaluate.load = load_metric
    try:
        yield
    finally:
        evaluate.load = load
