"""Prompt and generation settings in reports, and comparisons of scores with other prompts."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest

from hpcq.report.baselines import RequestSettings, with_other_baselines
from hpcq.report.exports.lm_eval import _prompt
from hpcq.report.prompt_facts import prompt_sentences
from hpcq.report.rows import make_rows
from hpcq.store import Results, Score, VariantScores

CHAT = {"chat_template": True, "fewshot_as_multiturn": True, "system": "Be\nbrief."}
SAMPLED = {"arguments": [["do_sample", True], ["temperature", 0.7]], "repeats": 4}
TEMPLATE = json.dumps({"true": "a" * 64})


def _variant(scheme: str, tool: str, *scores: tuple[str, float], **provenance: Any) -> VariantScores:
    tasks = [{"name": "gsm8k", "prompt": CHAT, "sampling": SAMPLED}, {"name": "arc_challenge", "prompt": CHAT}]
    facts = {"model": "org/Model", "scheme": scheme, "tool": tool, "backend": "vllm", "evaluate_seconds": 1.0}
    made = tuple(
        Score(task="gsm8k", metric=metric, filter="strict-match", value=value, stderr=0.1, n=9)
        for metric, value in scores or (("exact_match", 0.5),)
    )
    common = {"tasks": json.dumps(tasks), "chat_templates": TEMPLATE, "backend_versions": '{"lm-eval": "0.4.13"}'}
    return VariantScores(
        variant=f"model--{scheme}--1", provenance={**facts, **common, **provenance}, scores=made, rows={}
    )


def _results(*variants: VariantScores, run: str = "run") -> Results:
    return Results(run=run, inputs="", provenance={}, merge={}, variants=variants)


def test_settings_that_are_not_the_defaults_are_stated() -> None:
    """Each distinct setting is one sentence with its tasks; a run with the defaults has none."""
    assert list(prompt_sentences([_variant("bf16", "none")])) == [
        (
            "Prompts of all tasks: chat template (SHA-256 aaaaaaaaaaaa), few-shot examples as turns, system"
            " instruction 'Be brief.'."
        ),
        "Texts of gsm8k: do_sample = true, temperature = 0.7, 4 per prompt, avg@n with errors over items.",
    ]
    plain = _variant("bf16", "none", tasks=json.dumps([{"name": "gsm8k", "max_gen_toks": 9}]), chat_templates="")
    assert list(prompt_sentences([plain])) == []


def test_scores_with_another_chat_template_are_not_compared() -> None:
    """A checkpoint whose template differs from the baseline's has a reason instead of a difference."""
    base, same = _variant("bf16", "none"), _variant("own", "gptq")
    other = _variant("theirs", "awq", chat_templates=json.dumps({"true": "b" * 64}))
    rows = {row.scheme: row for row in with_other_baselines(make_rows(_results(base, same, other)), {})}

    assert rows["own"].delta == 0.0
    assert rows["theirs"].delta is None
    assert rows["theirs"].baseline_value is None
    assert str(rows["theirs"].baseline_problem).endswith("than those of the baseline: not comparable")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"tasks": json.dumps([{"name": "gsm8k"}])}, "prompt.chat_template of gsm8k is None in base and True in mine"),
        (
            {"tasks": json.dumps([{"name": "gsm8k", "prompt": CHAT, "sampling": {"repeats": 4}}])},
            "sampling.do_sample of gsm8k is None in base and True in mine",
        ),
        ({"options": '{"add_bos_token": true}'}, "prompt.add_bos_token is not the same in base and in mine"),
        ({"chat_templates": "{}"}, "the chat templates in base and mine differ: not comparable"),
    ],
)
def test_baselines_of_runs_with_other_prompts_are_refused(changes: dict[str, str], problem: str) -> None:
    """A baseline of another run counts only if prompts and generation are the same; the reason names the setting."""
    mine = _variant("own", "gptq", tasks=json.dumps([{"name": "gsm8k", "prompt": CHAT, "sampling": SAMPLED}]))
    base = replace(mine, variant="base", provenance={**mine.provenance, "scheme": "bf16", "tool": "none", **changes})
    same = replace(base, provenance={**base.provenance, **{name: mine.provenance.get(name, "") for name in changes}})

    for other, expected in ((base, problem), (same, None)):
        runs = {"mine": _results(mine, run="mine"), "base": _results(other, run="base")}
        settings = {
            (run, one.variant): RequestSettings.read(one.provenance)
            for run, results in runs.items()
            for one in results.variants
        }
        rows = with_other_baselines([row for results in runs.values() for row in make_rows(results)], settings)
        assert rows[0].baseline_problem == expected
        assert rows[0].delta == (None if expected else 0.0)


def test_tables_show_the_average_of_repeats() -> None:
    """With n texts per prompt the main score is avg@n; without, it is that of the catalog."""
    scores = (("exact_match", 0.5), ("exact_match_avg@4", 0.4), ("exact_match_pass@4", 0.9))
    main = [row.metric for row in make_rows(_results(_variant("bf16", "none", *scores))) if row.is_main]

    assert main == ["exact_match_avg@4"]
    assert [row.metric for row in make_rows(_results(_variant("bf16", "none"))) if row.is_main] == ["exact_match"]


def test_lm_evals_export_has_its_own_keys() -> None:
    """Settings that all tasks share are exported as lm-eval writes them; other results have no such keys."""
    task = {"name": "gsm8k", "prompt": CHAT}
    found = _prompt([task, {**task, "name": "ifeval"}], json.loads(TEMPLATE))

    assert found["system_instruction"] == CHAT["system"]
    assert found["system_instruction_sha"] == hashlib.sha256(b"Be\nbrief.").hexdigest()
    assert (found["fewshot_as_multiturn"], found["chat_template_sha"]) == (True, "a" * 64)
    assert _prompt([task, {"name": "ifeval"}], {}) == _prompt([{"name": "gsm8k"}], {}) == {}
