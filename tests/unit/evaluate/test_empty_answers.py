"""Answers without a token: an error with the item's id, not a log-likelihood of zero."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcq.core.errors import WorkerError
from hpcq.evaluate.requests import LOGLIKELIHOOD
from hpcq.evaluate.worker import _stream
from tests.tiny_llama import write_base
from tests.unit.evaluate.test_not_finite_responses import loaded, requests, work_of


@pytest.mark.parametrize("options", [(), (("prefix_sharing", False),)], ids=["shared prefixes", "HFLM"])
def test_the_item_is_named(options: tuple[tuple[str, bool], ...], tmp_path: Path) -> None:
    """Task, document and request, whether prefixes are shared or not."""
    backend = loaded(work_of(write_base(tmp_path / "base"), tmp_path, options=options))
    chunk = requests(LOGLIKELIHOOD, [("A question", " yes"), ("A question", "")])
    with pytest.raises(WorkerError, match=r"^made_up document 1 request 0: the answer '' has no token of its own"):
        list(_stream(backend, [chunk], set()))
