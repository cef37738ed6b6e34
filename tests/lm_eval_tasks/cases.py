"""Tasks that are compared with lm-eval, by the kind of their requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FAST = (
    "piqa",  # multiple choice
    "mmlu_anatomy",  # one leaf of a group
    "lambada_openai",  # log-likelihood
    "wikitext",  # rolling log-likelihood
    "triviaqa",  # generation, a filter of the definition
    "anli",  # a tag of 3 tasks
    "leaderboard_musr",  # a group
    "leaderboard_gpqa",  # a group whose definition shuffles choices
    "mgsm_direct_en",  # few-shot examples of another split
    "gsm8k_cot",  # a chat with examples as turns
)
"""Tasks of the test that `make test` runs; they cover all types of requests, a group and a tag."""

OWN = ("my_colors", "my_group")
"""Tasks of `write_own_tasks`: one with a Python function, and a group of it and one of lm-eval."""

UNMODIFIED = (
    "mmlu", "leaderboard_bbh", "leaderboard_mmlu_pro", "leaderboard_musr", "leaderboard_math_hard", "leaderboard_gpqa",
    "ceval-valid", "humaneval", "wikitext",
)  # fmt: skip
"""Tasks that are compared twice: from the hub, and from a mirror with HF_HUB_OFFLINE=1."""

FURTHER = (
    # multiple choice; none with f1 or mcc (cola, qqp), of which lm-eval computes the standard error for minutes
    "sciq", "openbookqa", "arc_easy", "arc_challenge", "boolq", "copa", "sglue_rte", "wic", "wsc", "commonsense_qa",
    "logiqa", "social_iqa", "swag", "medmcqa", "pubmedqa", "headqa_en", "mnli", "qnli", "rte", "sst2", "wnli",
    "blimp_adjunct_island", "blimp_causative", "blimp_passive_1", "ethics_cm", "ethics_justice", "ethics_virtue",
    "xcopa_et", "xnli_en", "xstorycloze_en", "xwinograd_en", "cmmlu_agronomy", "mmlu_pro_math", "race", "hellaswag",
    "winogrande", "truthfulqa_mc1", "truthfulqa_mc2", "agieval_aqua_rat", "inverse_scaling_hindsight_neglect_10shot",
    "med_concepts_qa_icd9cm_easy", "webqs", "gpqa_main_n_shot",
    # log-likelihood and rolling log-likelihood
    "lambada_openai_mt_de", "lambada_standard", "asdiv", "pile_10k", "paloma_c4_100_domains",
    # generation
    "nq_open", "drop", "unscramble", "gsm8k", "mgsm_en_cot_en", "hendrycks_math_algebra", "babi", "aime24",
    "eq_bench", "mmlu_anatomy_generative", "bbh_zeroshot_navigate", "bbh_cot_fewshot_navigate", "ifeval",
)  # fmt: skip
"""Further tasks, of `make test-tasks`."""

MAX_GEN_TOKS = 12
"""Of all tasks: a model with random weights writes as long as it may."""

LIMIT = 3
"""Items per task."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a task.

    Attributes:
        num_fewshot: Number of few-shot examples; None: as in the definition.
        is_chat: The chat template is applied, with the examples as turns.
        system: System instruction.
    """

    num_fewshot: int | None = None
    is_chat: bool = False
    system: str | None = None

    def of_hpcq(self) -> dict[str, Any]:
        """Return the table `tasks.options.<task>` of a manifest."""
        prompt = {"chat_template": self.is_chat, "system": self.system}
        given = {name: value for name, value in prompt.items() if value}
        return {"num_fewshot": self.num_fewshot} if not given else {"num_fewshot": self.num_fewshot, "prompt": given}

    def of_lm_eval(self) -> dict[str, Any]:
        """Return arguments of `simple_evaluate`, with the defaults of lm-eval's command line."""
        return {
            "num_fewshot": self.num_fewshot,
            "apply_chat_template": self.is_chat,
            "fewshot_as_multiturn": self.is_chat,
            "system_instruction": self.system,
        }


OPTIONS: Mapping[str, Options] = {
    "gsm8k_cot": Options(num_fewshot=2, is_chat=True, system="Be brief."),
    "gsm8k": Options(num_fewshot=3, is_chat=True),
    "hellaswag": Options(num_fewshot=2, is_chat=True),
    "boolq": Options(is_chat=True, system="Be brief."),
    "arc_challenge": Options(num_fewshot=4),
    "gpqa_main_n_shot": Options(num_fewshot=2),
    "race": Options(system="Be brief."),
    "medmcqa": Options(num_fewshot=1, is_chat=True),
}
"""Options of single tasks; the others have none."""
