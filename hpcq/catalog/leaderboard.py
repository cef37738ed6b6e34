"""Scales of the Open LLM Leaderboard, versions 1 and 2: lower bounds, subtasks, and the normalized scale.

Version 1 has raw metrics. Version 2 maps the score of guessing to 0: 100 * (raw - bound) / (1 - bound), not below 0,
with a bound of 1 / choices. A task with subtasks is the mean of its normalized subtasks.
Source: https://huggingface.co/docs/leaderboards/open_llm_leaderboard/normalization
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from hpcq.core.frozen import dataclass

RAW_SUITE = "openllm-v1"
NORMALIZED_SUITE = "openllm-v2"

# lm-eval 0.4.13, tasks/leaderboard/bbh_mc: length of `doc_to_choice`.
_BBH_CHOICES = {
    "boolean_expressions": 2, "causal_judgement": 2, "date_understanding": 6, "disambiguation_qa": 3,
    "formal_fallacies": 2, "geometric_shapes": 11, "hyperbaton": 2, "logical_deduction_five_objects": 5,
    "logical_deduction_seven_objects": 7, "logical_deduction_three_objects": 3, "movie_recommendation": 6,
    "navigate": 2,
    "object_counting": 19, "penguins_in_a_table": 5, "reasoning_about_colored_objects": 18, "ruin_names": 6,
    "salient_translation_error_detection": 6, "snarks": 2, "sports_understanding": 2, "temporal_sequences": 4,
    "tracking_shuffled_objects_five_objects": 5, "tracking_shuffled_objects_seven_objects": 7,
    "tracking_shuffled_objects_three_objects": 3, "web_of_lies": 2,
}  # fmt: skip
_MUSR_CHOICES = {"murder_mysteries": 2, "object_placements": 5, "team_allocation": 3}
_MATH_SUBTASKS = (
    "algebra", "counting_and_prob", "geometry", "intermediate_algebra", "num_theory", "prealgebra", "precalculus",
)  # fmt: skip


class Scale(StrEnum):
    """Scale of a score.

    Attributes:
        RAW: The metric of lm-eval, in percent.
        NORMALIZED: That of version 2 of the leaderboard.
        JUDGE: Points from 1 to 10.
    """

    RAW = "raw"
    NORMALIZED = "normalized"
    JUDGE = "judge"


@dataclass(frozen=True, kw_only=True)
class ScorePart:
    """One of the raw scores of which a normalized score is the mean.

    Attributes:
        task: Name in lm-eval of the task or subtask.
        metric: Its metric.
        bound: Score of guessing: 1 / choices, or 0.
    """

    task: str
    metric: str
    bound: float = 0.0

    def normalize(self, raw: float) -> float:
        """Return a raw score between 0 and 1 on the normalized scale, in percent."""
        return 100 * max(0.0, raw - self.bound) / (1 - self.bound)

    @property
    def factor(self) -> float:
        """Normalized percent per unit of the raw score."""
        return 100 / (1 - self.bound)


NORMALIZED_PARTS: Mapping[str, tuple[ScorePart, ...]] = {
    "leaderboard_bbh": tuple(
        ScorePart(task=f"leaderboard_bbh_{name}", metric="acc_norm", bound=1 / choices)
        for name, choices in _BBH_CHOICES.items()
    ),
    "leaderboard_gpqa": (ScorePart(task="leaderboard_gpqa", metric="acc_norm", bound=1 / 4),),
    "leaderboard_ifeval": (
        ScorePart(task="leaderboard_ifeval", metric="prompt_level_strict_acc"),
        ScorePart(task="leaderboard_ifeval", metric="inst_level_strict_acc"),
    ),
    "leaderboard_math_hard": tuple(
        ScorePart(task=f"leaderboard_math_{name}_hard", metric="exact_match") for name in _MATH_SUBTASKS
    ),
    "leaderboard_mmlu_pro": (ScorePart(task="leaderboard_mmlu_pro", metric="acc", bound=1 / 10),),
    "leaderboard_musr": tuple(
        ScorePart(task=f"leaderboard_musr_{name}", metric="acc_norm", bound=1 / choices)
        for name, choices in _MUSR_CHOICES.items()
    ),
}
"""Parts of each task of version 2 of the leaderboard."""


def normalized_mean(raw: Mapping[ScorePart, float]) -> float:
    """Return the mean of the normalized scores, in percent."""
    return sum(part.normalize(score) for part, score in raw.items()) / len(raw)
