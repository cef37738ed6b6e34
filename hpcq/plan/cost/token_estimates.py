"""How many tokens an evaluation will ask for and compute: an estimate from the catalog's figures, for `plan`.

Knows the catalog; must not know a tokenizer, items or engines.
"""

from __future__ import annotations

from dataclasses import dataclass

from hpcq.catalog.packages import find_items
from hpcq.catalog.tasks import TaskFacts, TokenFacts, find_task
from hpcq.core.work import EvaluateWork, Task

LOGLIKELIHOOD = "loglikelihood"


@dataclass(frozen=True, kw_only=True)
class TokenEstimate:
    """Tokens of log-likelihood requests. without: tasks that are left out, because the catalog has no figures of them.

    asked: each request in full, as lm-eval computes it on vLLM. computed: where what requests share is computed once.
    """

    asked: float = 0.0
    computed: float = 0.0
    without: tuple[str, ...] = ()

    def __add__(self, other: TokenEstimate) -> TokenEstimate:
        return TokenEstimate(
            asked=self.asked + other.asked,
            computed=self.computed + other.computed,
            without=tuple(dict.fromkeys((*self.without, *other.without))),
        )


def estimate(work: EvaluateWork) -> TokenEstimate:
    """What `work` asks for and computes; a shard's is the whole's, divided by the number of shards.

    Prompts and text of generation count in neither. Prompts are taken to fit into the model's length, and the model's
    tokenizer to make as many tokens as the one that the figures are of.
    """
    whole = sum((estimate_of_task(task) for task in work.tasks), start=TokenEstimate())
    return TokenEstimate(
        asked=whole.asked / work.shard.count,
        computed=(whole.computed if work.shares_prefixes else whole.asked) / work.shard.count,
        without=whole.without,
    )


def estimate_of_task(task: Task) -> TokenEstimate:
    """Of all requests of one task."""
    facts = find_task(task.name)
    if facts is not None and facts.output != LOGLIKELIHOOD:
        return TokenEstimate()
    if facts is None or facts.tokens is None:
        return TokenEstimate(without=(task.name,))
    shots = facts.num_fewshot if task.num_fewshot is None else task.num_fewshot
    return _of_requests(facts, facts.tokens, items=items_of_task(task), shots=shots)


def _of_requests(facts: TaskFacts, tokens: TokenFacts, *, items: int, shots: int) -> TokenEstimate:
    """Of `items` documents in so many data sets, with requests_per_item requests each.

    asked = requests · (fixed + shots · example + question + choice)
    computed = data sets · fixed + draws · shots · example + items · question + requests · choice

    Examples are drawn for each item, or stand before all items of a data set. What some of an item's choices share with
    each other is so little that it is computed again.
    """
    requests = items * facts.requests_per_item
    draws = items if tokens.are_examples_drawn else facts.data_sets
    examples = shots * tokens.example
    return TokenEstimate(
        asked=requests * (tokens.fixed + examples + tokens.question + tokens.choice),
        computed=(
            facts.data_sets * tokens.fixed + draws * examples + items * tokens.question + requests * tokens.choice
        ),
    )


def items_of_task(task: Task) -> int:
    """Documents: the original's, or the package's where those are used; a limit is a data set's. 0: not known."""
    facts = find_task(task.name)
    if facts is None:
        return 0
    packaged = find_items(task.name)
    is_packaged = packaged is not None and task.data_path == str(packaged.staged)
    available = packaged.splits[0][1] if packaged is not None and is_packaged else facts.items
    return available if task.limit is None else min(task.limit * facts.data_sets, available)
