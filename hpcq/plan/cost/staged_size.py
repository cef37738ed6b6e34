"""Token estimates of tasks without a row in the catalog, from what was counted when they were staged.

Nothing here is measured with the model's tokenizer: the estimates are approximate, and the plan says so.
"""

from __future__ import annotations

from hpcq.catalog.tasks import TaskInfo
from hpcq.core.frozen import dataclass
from hpcq.core.work_records import Task, TaskSize

CHARACTERS_PER_TOKEN = 4.0
"""Assumed, as is usual for English text; SmolLM2 has 4.2 in ARC's and 3.7 in GSM8K's prompts."""

DEFAULT_SIZE = TaskSize(documents=1000, requests=4000, characters=1200.0, shared_characters=1100.0)
"""Assumed for a subtask whose data are not staged yet."""

_MAX_ANSWER_TOKENS = 256


@dataclass(frozen=True, kw_only=True)
class SizeEstimate:
    """Tokens and requests of one task.

    Attributes:
        requests: Number of requests.
        requested: Prompt tokens of all requests in full.
        computed: Prompt tokens if what the requests of a document share is computed once.
        generated: Generated tokens.
    """

    requests: float
    requested: float
    computed: float
    generated: float


def size_estimate(task: Task, info: TaskInfo | None) -> SizeEstimate:
    """Estimate the tokens of a task from its `size`, or from an assumed one."""
    subtasks = info.num_subtasks if info else 1
    generates = info is not None and info.generates_text
    size = task.size or _assumed(subtasks, generates=generates)
    documents = task.selected(size.documents, subtasks)
    requests = size.requests * documents / max(1, size.documents)
    tokens, shared = size.characters / CHARACTERS_PER_TOKEN, size.shared_characters / CHARACTERS_PER_TOKEN
    limit = task.max_gen_toks or (info.max_gen_toks if info else 0)
    return SizeEstimate(
        requests=requests,
        requested=requests * tokens,
        computed=documents * shared + requests * (tokens - shared),
        generated=requests * min(limit, _MAX_ANSWER_TOKENS) if generates else 0.0,
    )


def _assumed(subtasks: int, *, generates: bool) -> TaskSize:
    documents = DEFAULT_SIZE.documents * subtasks
    return TaskSize(
        documents=documents,
        requests=documents if generates else DEFAULT_SIZE.requests * subtasks,
        characters=DEFAULT_SIZE.characters,
        shared_characters=DEFAULT_SIZE.shared_characters,
    )
