"""Requests of the fidelity panel: the log-probabilities of the most probable next tokens at every position of a window.

They need no lm-eval. Tokens depend on the model, so a request has the text and the number of tokens to read.
"""

from __future__ import annotations

from collections.abc import Iterator

from hpcq.core.errors import WorkerError
from hpcq.core.work_records import PANEL_TASK, Task
from hpcq.evaluate.requests import SYNTHETIC_VERSION, TOP_LOGPROBS, Request
from hpcq.store import RequestKey, digest_of_arguments

PANEL_VERSION = "1"
"""Version of the windows and of what is stored per position."""


def panel_requests(task: Task, *, is_synthetic: bool) -> Iterator[Request]:
    """Yield the requests of the panel, window by window; a repeated window has several.

    Raises:
        SetupError: The text is missing or has changed.
        UserInputError: The text is malformed or too short.
        WorkerError: The task has no panel.
    """
    panel = task.panel
    if panel is None:
        raise WorkerError(f"{task.name} is not a fidelity panel.")
    if is_synthetic:
        texts, version = [f"{task.name} {number}" for number in range(panel.windows)], SYNTHETIC_VERSION
    else:
        from hpcq.evaluate.panel_windows import panel_windows

        texts, version = panel_windows(panel), PANEL_VERSION
    for number, text in enumerate(texts):
        arguments = (text, panel.window_tokens, panel.top)
        digest = digest_of_arguments(TOP_LOGPROBS, arguments)
        for repeat in range(panel.repeats):
            key = RequestKey(PANEL_TASK, version, number, 0, repeat, digest)
            yield Request(key=key, kind=TOP_LOGPROBS, arguments=arguments)


def window_tokens(request: Request, tokens: list[int]) -> list[int]:
    """Return the tokens of a window that the model reads.

    Args:
        request: The request.
        tokens: Token ids of the whole text.

    Raises:
        WorkerError: The text has fewer tokens than the model must read.
    """
    wanted = int(request.arguments[1])
    if len(tokens) < wanted:
        raise WorkerError(
            f"Window {request.key.doc_id} of the fidelity panel has {len(tokens)} tokens, fewer than the {wanted} of"
            " fidelity.window: its text has long words. Set fidelity.dataset to other text."
        )
    return tokens[:wanted]
