"""Requests to measure with: tasks of lm-eval's own on real items, and layouts of tasks that no package ships.

Knows the staged items and the shape of requests; must not know back ends, models or bars.

MMLU and MMLU-Pro are laid out with ARC-Challenge's questions, as lm-eval 0.4.13 lays out its `mmlu` and
`leaderboard_mmlu_pro`: one block of five examples for all questions. Four choices are a question's own, as it comes.
Ten are its own and those of the questions after it; of ARC's questions those are taken that come nearest MMLU-Pro's in
length. By SmolLM2's tokenizer its 12,032 questions have 200 tokens on average, choices included, and the five examples
that `leaderboard_mmlu_pro` shows, which are those of mathematics, 152.

- letters: a letter is asked, as both tasks ask it;
- worked: a letter is asked, behind examples with worked answers. `mmlu_pro` shows such examples, and generates. Its
  worked answers have 182 tokens on average in mathematics, 60 in business, 56 in psychology; here they have a hundred,
  the choices said once more;
- texts: each choice's text is asked, as ARC and HellaSwag ask it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpcq.catalog.packages import staged_items
from hpcq.core.work import Task
from hpcq.evaluate.requests import Request, requests_of

Group = list[Request]
Item = dict[str, Any]

LETTERS, WORKED, TEXTS = "letters", "worked", "texts"
_LABELS = "ABCDEFGHIJ"
_EXAMPLES = 5
# MMLU-Pro's mean tokens, at the four characters that make one in ARC's questions.
_EXAMPLE_CHARACTERS, _QUESTION_CHARACTERS = 600, 790
_HEAD = "The following are multiple choice questions (with answers) about science.\n\n"


def real(name: str, *, shots: int, documents: int, tokens: int | None = None) -> list[Group]:
    """The requests of lm-eval's own task, a group a document."""
    from hpcq.evaluate.tasks import build_tasks

    task = Task(name=name, data_path=str(staged_items(name)), limit=documents, num_fewshot=shots, max_gen_toks=tokens)
    [built] = build_tasks([task])
    return by_document(built.requests())


def laid_out(kind: str, *, choices: int, documents: int) -> Group:
    """The requests of so many questions behind one block of five examples."""
    from lm_eval.api.instance import Instance

    examples, questions = _chosen(_items(), choices, documents)
    block = _HEAD + "".join(_example(kind, *question) for question in examples)
    instances = [
        Instance(
            request_type="loglikelihood",
            doc={},
            arguments=(block + _prompt(text, offered), f" {answer}"),
            idx=index,
            metadata=("laid_out", number, 1),
        )
        for number, (text, offered, _) in enumerate(questions)
        for index, answer in enumerate(offered if kind == TEXTS else _LABELS[:choices])
    ]
    return list(requests_of(instances, "1"))


def by_document(requests: Sequence[Request]) -> list[Group]:
    """`requests` by the documents that they are of."""
    groups: dict[int, Group] = {}
    for request in requests:
        groups.setdefault(request.key.doc_id, []).append(request)
    return list(groups.values())


Question = tuple[str, list[str], int]
"""Its text, the choices, and the place of the right one."""


def _items() -> list[Item]:
    with (Path(str(staged_items("arc_challenge"))) / "test.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _chosen(items: Sequence[Item], choices: int, documents: int) -> tuple[list[Question], list[Question]]:
    """The examples, and the questions that are asked."""
    found = [_question(items, number, choices) for number in range(len(items))]
    if choices <= 4:  # noqa: PLR2004  # a question's own
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


def _prompt(text: str, offered: Sequence[str]) -> str:
    listed = "".join(f"\n{label}. {choice}" for label, choice in zip(_LABELS, offered, strict=False))
    return f"{text}{listed}\nAnswer:"


def _example(kind: str, text: str, offered: Sequence[str], right: int) -> str:
    if kind == TEXTS:
        return f"{_prompt(text, offered)} {offered[right]}\n\n"
    if kind == LETTERS:
        return f"{_prompt(text, offered)} {_LABELS[right]}\n\n"
    others = " ".join(choice for choice in offered if choice != offered[right])
    worked = f"Let's think step by step. It is none of these: {others} It is this: {offered[right]}"
    return f"{_prompt(text, offered)} {worked} The answer is ({_LABELS[right]}).\n\n"
