"""Requests for benchmarks: tasks of lm-eval on staged data sets, and synthetic layouts of tasks that are not packaged.

The synthetic layouts have the form of MMLU and MMLU-Pro (lm-eval 0.4.13, `mmlu` and `leaderboard_mmlu_pro`) with the
questions of ARC-Challenge: one block of five examples for all questions. With four choices, a question has its own.
With ten, it has its own and those of the following questions; the questions are those of ARC with the length closest to
MMLU-Pro's. With SmolLM2's tokenizer MMLU-Pro's 12,032 questions have 200 tokens on average, including choices; the five
examples of `leaderboard_mmlu_pro`, which are those of mathematics, have 152.

- letters: the continuation is a letter, as in both tasks;
- worked: the continuation is a letter, after examples with worked answers. `mmlu_pro` has such examples, and generates.
  Its worked answers have 182 tokens on average in mathematics, 60 in business, 56 in psychology; here they have a
  hundred: the choices are repeated;
- texts: the continuation is the text of a choice, as in ARC and HellaSwag.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcq.catalog.packages import staged_dataset_path
from hpcq.core.prompt_settings import Prompt
from hpcq.core.work_records import Task
from hpcq.evaluate.requests import Request, requests_of

if TYPE_CHECKING:
    from hpcq.evaluate.chat_templates import ChatTemplate

RequestGroup = list[Request]
Item = dict[str, Any]

LETTERS, WORKED, TEXTS = "letters", "worked", "texts"
_LABELS = "ABCDEFGHIJ"
_EXAMPLES = 5
# MMLU-Pro's mean tokens, with four characters per token as in ARC's questions.
_EXAMPLE_CHARACTERS, _QUESTION_CHARACTERS = 600, 790
_HEAD = "The following are multiple choice questions (with answers) about science.\n\n"


def lm_eval_requests(
    name: str, *, shots: int, documents: int, tokens: int | None = None, chat: ChatTemplate | None = None
) -> list[RequestGroup]:
    """Return the requests of a task of lm-eval, one group per document.

    Args:
        name: Name of the task.
        shots: Examples per prompt.
        documents: Number of documents.
        tokens: Maximum number of generated tokens.
        chat: Chat template; the examples are turns of the chat. None: plain text.
    """
    from hpcq.evaluate.lm_eval_tasks import build_tasks

    task = Task(
        name=name,
        data_path=str(staged_dataset_path(name)),
        limit=documents,
        num_fewshot=shots,
        max_gen_toks=tokens,
        prompt=Prompt(chat_template=chat is not None, fewshot_as_multiturn=chat is not None),
    )
    [built] = build_tasks([task], chat)
    return group_by_document(built.requests())


def synthetic_layout(kind: str, *, choices: int, documents: int) -> RequestGroup:
    """Return the requests of `documents` questions after one block of five examples."""
    from lm_eval.api.instance import Instance

    examples, questions = _select(_items(), choices, documents)
    block = _HEAD + "".join(_example(kind, *question) for question in examples)
    instances = [
        Instance(
            request_type="loglikelihood",
            doc={},
            arguments=(block + _prompt(text, choice_texts), f" {answer}"),
            idx=index,
            metadata=("laid_out", number, 1),
        )
        for number, (text, choice_texts, _) in enumerate(questions)
        for index, answer in enumerate(choice_texts if kind == TEXTS else _LABELS[:choices])
    ]
    return list(requests_of(instances, "1"))


def group_by_document(requests: Sequence[Request]) -> list[RequestGroup]:
    """Group `requests` by document."""
    groups: dict[int, RequestGroup] = {}
    for request in requests:
        groups.setdefault(request.key.doc_id, []).append(request)
    return list(groups.values())


Question = tuple[str, list[str], int]
"""Text, choices, and index of the correct choice."""


def _items() -> list[Item]:
    with (Path(str(staged_dataset_path("arc_challenge"))) / "test.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _select(items: Sequence[Item], choices: int, documents: int) -> tuple[list[Question], list[Question]]:
    """Return the examples, and the questions."""
    found = [_question(items, number, choices) for number in range(len(items))]
    if choices <= 4:  # noqa: PLR2004  # a question has that many
        return found[:_EXAMPLES], found[_EXAMPLES : _EXAMPLES + documents]
    examples = _nearest(found, _EXAMPLE_CHARACTERS)[:_EXAMPLES]
    others = [question for question in found if question not in examples]
    return examples, _nearest(others, _QUESTION_CHARACTERS)[:documents]


def _nearest(questions: Sequence[Question], characters: int) -> list[Question]:
    return sorted(questions, key=lambda question: abs(len(_prompt(*question[:2])) - characters))


def _question(items: Sequence[Item], number: int, choices: int) -> Question:
    item = items[number]
    offered = list(item["choices"]["text"])
    following = number
    while len(offered) < choices:
        following = (following + 1) % len(items)
        offered += items[following]["choices"]["text"]
    return item["question"], offered[:choices], item["choices"]["label"].index(item["answerKey"])


def _prompt(text: str, choices: Sequence[str]) -> str:
    lines = "".join(f"\n{label}. {choice}" for label, choice in zip(_LABELS, choices, strict=False))
    return f"{text}{lines}\nAnswer:"


def _example(kind: str, text: str, choices: Sequence[str], correct: int) -> str:
    if kind == TEXTS:
        return f"{_prompt(text, choices)} {choices[correct]}\n\n"
    if kind == LETTERS:
        return f"{_prompt(text, choices)} {_LABELS[correct]}\n\n"
    others = " ".join(choice for choice in choices if choice != choices[correct])
    worked = f"Let's think step by step. It is none of these: {others} It is this: {choices[correct]}"
    return f"{_prompt(text, choices)} {worked} The answer is ({_LABELS[correct]}).\n\n"
