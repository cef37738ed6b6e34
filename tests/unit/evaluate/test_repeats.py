"""avg@n and pass@k of sampled texts, beside lm-eval's own scores."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from hpcq.core.errors import UserInputError
from hpcq.core.prompt_settings import Sampling
from hpcq.core.work_records import Task
from hpcq.evaluate.lm_eval_tasks import build_tasks
from hpcq.evaluate.repeats import pass_at
from hpcq.evaluate.sampling import seed_of
from hpcq.evaluate.scoring import score
from hpcq.store import Response

REPEATS = 4
RIGHT = ((True, False, False, True), (False, False, False, False), (False, True, True, True))
"""Which of the four texts of each of three items are right."""
SAMPLED = Sampling(arguments=(("do_sample", True), ("temperature", 0.7)), repeats=REPEATS)


def _task(folder: Path, sampling: Sampling) -> Task:
    for split in ("train", "test"):
        rows = ({"question": f"What is {split} {number}?", "answer": f"It is.\n#### {number}"} for number in range(6))
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Task(name="gsm8k", data_path=str(folder), limit=len(RIGHT), num_fewshot=1, sampling=sampling)


def test_scores_of_repeats_count_every_text_and_errors_count_items(tmp_path: Path) -> None:
    """lm-eval scores the first text; avg@4 is the mean of all, with an error over items; pass@k is as defined."""
    [built] = build_tasks([_task(tmp_path, SAMPLED)])
    answers = {
        request.key: Response(
            text=f"#### {request.key.doc_id if RIGHT[request.key.doc_id][request.key.repeat] else 99}", cut_tokens=0
        )
        for request in built.requests()
    }
    scored = score([built], answers)
    found = {one.metric: one for one in scored.scores if one.filter == "strict-match"}

    assert len(answers) == len(RIGHT) * REPEATS
    assert found["exact_match"].value == pytest.approx(1 / 3)
    means = np.array(RIGHT, dtype=float).mean(axis=1)
    average = found["exact_match_avg@4"]
    assert (average.value, average.n) == (pytest.approx(means.mean()), 3)
    assert average.stderr == pytest.approx(means.std(ddof=1) / 3**0.5)
    for k in (2, 4):
        expected = np.mean([[any(some) for some in itertools.combinations(item, k)] for item in RIGHT])
        assert found[f"exact_match_pass@{k}"].value == pytest.approx(expected)
    [table] = scored.items.tasks
    assert table.values["exact_match_avg@4", "strict-match"][:, 0] == pytest.approx(means)


def test_pass_at_k_is_the_share_of_draws_with_a_right_text() -> None:
    """pass@k equals the share of all selections of k texts that have a right one."""
    for repeats, k in ((5, 2), (6, 3), (3, 3)):
        right = np.arange(repeats + 1)
        draws = [
            np.mean([any(text < count for text in some) for some in itertools.combinations(range(repeats), k)])
            for count in right
        ]
        assert pass_at(k, right.astype(float), repeats) == pytest.approx(draws)


def test_repeats_of_a_greedy_task_are_refused(tmp_path: Path) -> None:
    """Several greedy texts of a prompt would be equal; the message names the key and the fix."""
    with pytest.raises(UserInputError, match=r"gsm8k\.repeats: 4 greedy texts .*do_sample = true"):
        build_tasks([_task(tmp_path, Sampling(repeats=REPEATS))])


def test_repeats_of_a_task_without_texts_are_refused(arc_items: Path) -> None:
    """Log-likelihoods are the same each time; the plan knows this only of tasks in the catalog."""
    with pytest.raises(UserInputError, match="arc_challenge generates no text, so nothing can be repeated"):
        build_tasks([Task(name="arc_challenge", data_path=str(arc_items), sampling=SAMPLED)])


def test_each_repeat_has_a_key_and_a_seed_of_its_own(tmp_path: Path) -> None:
    """Repeats differ in their key, and so in their seed; the task's seed replaces that of the evaluation."""
    [built] = build_tasks([_task(tmp_path, SAMPLED)])
    requests = built.requests()
    seeds = {seed_of(request, 1234) for request in requests}

    assert len(seeds) == len({request.key for request in requests}) == len(RIGHT) * REPEATS
    assert seeds.isdisjoint(seed_of(request, 1) for request in requests)
