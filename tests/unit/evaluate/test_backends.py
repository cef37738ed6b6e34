"""Selection of backends, and the synthetic backend."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcq.core.errors import UserInputError
from hpcq.core.work_records import EvaluateWork, Task
from hpcq.evaluate.backends.interface import make_backend
from hpcq.evaluate.requests import synthetic_requests

FOREIGN_BACKEND = """
from hpcq.evaluate.backends.synthetic import SyntheticBackend


class Foreign(SyntheticBackend):
    pass
"""


def test_an_unknown_backend_is_refused(make_work: Callable[..., EvaluateWork]) -> None:
    """An unknown backend is refused with its name and the installed ones."""
    known = "accelerate, synthetic, vllm"
    with pytest.raises(UserInputError, match=rf"'nope' is not an installed backend: choose {known}\."):
        make_backend(make_work(backend="nope"))


def test_third_parties_add_backends(
    make_work: Callable[..., EvaluateWork], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A distribution that declares an entry point provides a backend under that name."""
    (tmp_path / "foreign_backend.py").write_text(FOREIGN_BACKEND)
    metadata = tmp_path / "foreign_backend-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign-backend\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[hpcq.backends]\nforeign = foreign_backend:Foreign\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    assert type(make_backend(make_work(backend="foreign"))).__name__ == "Foreign"


def test_synthetic_responses_depend_only_on_the_request(make_work: Callable[..., EvaluateWork]) -> None:
    """Two synthetic backends give the same responses, of the requested kind."""
    requests = synthetic_requests([Task(name="arc_challenge", limit=2), Task(name="gsm8k", limit=2)])

    first, second = (
        [response for _, response in make_backend(make_work()).stream([requests[:8], requests[8:]], answered=())]
        for _ in range(2)
    )

    assert first == second
    assert [response.kind.name for response in first] == ["LOGLIKELIHOOD"] * 8 + ["GENERATE_UNTIL"] * 2
    assert len({response.loglikelihood for response in first[:8]}) == 8


def test_the_synthetic_backend_takes_the_configured_time(make_work: Callable[..., EvaluateWork]) -> None:
    """The synthetic backend takes the configured seconds for loading and for each request."""
    backend = make_backend(
        make_work(synthetic_options=(("request_seconds", 0.01), ("load_seconds", 0.05), ("memory_gib", 0.01)))
    )
    began_s = time.monotonic()
    backend.load()
    list(backend.stream([synthetic_requests([Task(name="gsm8k", limit=10)])], answered=()))

    assert time.monotonic() - began_s >= 0.15


def test_synthetic_evaluations_import_nothing_heavy() -> None:
    """Worker and merge of a synthetic evaluation import neither torch nor lm-eval nor datasets."""
    heavy = "{'torch', 'transformers', 'lm_eval', 'datasets', 'llmcompressor', 'vllm', 'matplotlib'}"
    lines = (
        "import sys",
        "import hpcq.evaluate.merge, hpcq.evaluate.backends.synthetic, hpcq.evaluate.worker",
        f"print(sorted({heavy} & set(sys.modules)))",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
