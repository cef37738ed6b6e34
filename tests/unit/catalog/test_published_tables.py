"""Published tables and the leaderboard's normalized scale: known values, and consistency of what is printed."""

from __future__ import annotations

import pytest

from hpcq.catalog.leaderboard import NORMALIZED_PARTS, NORMALIZED_SUITE, RAW_SUITE, Scale, ScorePart, normalized_mean
from hpcq.catalog.published_scores import find_published_score
from hpcq.catalog.published_tables import (
    CATEGORIES_SUITE,
    STUDY,
    STUDY_TASKS,
    TURNS_SUITE,
    largest_error,
    misprints,
    published_cells,
    table_rows,
)

NORMALIZATION = "https://huggingface.co/docs/leaderboards/open_llm_leaderboard/normalization"


def test_the_examples_of_the_leaderboards_documentation() -> None:
    """A raw GPQA score of 0.6 is 46.67; MuSR with 0.7, 0.4 and 0.6 is 35.0 (NORMALIZATION rounds 1/3 to 0.333)."""
    (gpqa,) = NORMALIZED_PARTS["leaderboard_gpqa"]
    assert gpqa.normalize(0.6) == pytest.approx(46.67, abs=0.005)
    musr = dict(zip(NORMALIZED_PARTS["leaderboard_musr"], (0.7, 0.4, 0.6), strict=True))
    assert [part.normalize(raw) for part, raw in musr.items()] == pytest.approx([40.0, 25.0, 40.0])
    assert normalized_mean(musr) == pytest.approx(35.0)


def test_ifeval_of_llama_2_7b() -> None:
    """0.18484 per prompt and 0.31894 per instruction are 25.19 on the leaderboard (discuss.huggingface.co/t/105187)."""
    parts = NORMALIZED_PARTS["leaderboard_ifeval"]
    raw = dict(zip(parts, (0.18484288354898337, 0.31894484412470026), strict=True))
    assert normalized_mean(raw) == pytest.approx(25.19, abs=0.005)


def test_below_guessing_is_zero() -> None:
    """A score below that of guessing counts as 0, in each subtask."""
    part = ScorePart(task="t", metric="acc", bound=0.5)
    assert part.normalize(0.4) == 0.0
    assert normalized_mean({part: 0.4, ScorePart(task="u", metric="acc", bound=0.5): 0.75}) == pytest.approx(25.0)


@pytest.mark.parametrize("suite", [RAW_SUITE, NORMALIZED_SUITE])
def test_the_printed_averages_follow_from_the_corrected_scores(suite: str) -> None:
    """Each printed average is the mean of its row within the rounding, after the corrections, in all 50 rows."""
    column = {RAW_SUITE: "average_v1", NORMALIZED_SUITE: "average_v2"}[suite]
    cells = [cell for cell in published_cells() if cell.suite == suite]
    for row in table_rows("leaderboards"):
        name = (row["model"], row["method"], row["bits"])
        own = [cell.value for cell in cells if (cell.model, cell.label, cell.bits) == name]
        assert len(own) == 6
        assert sum(own) / 6 == pytest.approx(float(row[column]), abs=0.011), name


def test_the_printed_averages_show_the_misprints() -> None:
    """Without corrections, three averages differ from their rows: those with a misprinted score."""
    columns = {"average_v1": RAW_SUITE, "average_v2": NORMALIZED_SUITE}
    wrong = {
        (row["model"], row["method"])
        for row in table_rows("leaderboards")
        for average, suite in columns.items()
        if abs(
            sum(float(row[task.column]) for task in STUDY_TASKS.values() if task.suite == suite) / 6
            - float(row[average])
        )
        > 0.011
    }
    assert wrong == {(one.model, one.method) for one in misprints() if one.column != "size_gb"}


def test_gpqa_is_that_of_546_items() -> None:
    """All 50 normalized scores are those of a whole number of 546 items; of lm-eval's 1192 items, only 3 would be."""

    def fitting(items: int) -> int:
        scores = [0.25 + 0.75 * cell.value / 100 for cell in published_cells() if cell.task == "leaderboard_gpqa"]
        assert len(scores) == 50
        return sum(abs(round(score * items) / items - score) < 0.000042 for score in scores)

    assert fitting(546) == 50
    assert fitting(1192) < 10


def test_sizes_are_parameters_times_bits() -> None:
    """After the corrections, the weights of a model have sizes in proportion to their bits."""
    cells = [cell for cell in published_cells() if cell.gigabytes]
    full = {cell.model: cell.gigabytes for cell in cells if cell.weight_bits == 16}
    for cell in cells:
        assert cell.gigabytes == pytest.approx((full[cell.model] or 0) * cell.weight_bits / 16)


def test_mt_bench_categories_agree_with_the_turns() -> None:
    """The means of categories and turns agree within the rounding, except for one model: docs/claims.md says so."""
    means: dict[tuple[str, str, str], list[float]] = {}
    for cell in published_cells():
        if cell.scale is Scale.JUDGE:
            means.setdefault((cell.model, cell.label, cell.suite), []).append(cell.value)
    models = {(model, label) for model, label, _ in means}
    assert len(models) == 36
    off = [
        name
        for name in models
        if abs(sum(means[*name, TURNS_SUITE]) / 2 - sum(means[*name, CATEGORIES_SUITE]) / 8) > 0.02
    ]
    assert off == [("Llama-2-70B-Chat", "FP16")]


def test_a_normalized_score_is_found() -> None:
    """The study's 30.11 on BBH is found by our names, with its scale, protocol and the misprint of another score."""
    found = find_published_score(STUDY, "meta-llama/Llama-3.1-8B-Instruct", "bf16", "leaderboard_bbh")
    assert found is not None
    assert (found.value, found.task.scale, found.task.shots, found.task.items) == (30.11, Scale.NORMALIZED, 3, 5761)
    misprinted = find_published_score(STUDY, "meta-llama/Llama-3.1-405B-Instruct", "fp8", "leaderboard_gpqa")
    assert misprinted is not None
    assert misprinted.misprint is not None
    assert (misprinted.value, misprinted.misprint.printed) == (27.47, 27.37)


@pytest.mark.parametrize(
    ("task", "value", "expected"),
    [("arc_challenge", 50.0, 1.4605), ("leaderboard_gpqa", 0.0, 2.4708), ("leaderboard_musr", 0.0, 2.9394)],
)
def test_standard_errors_are_upper_bounds(task: str, value: float, expected: float) -> None:
    """sqrt(p (1 - p) / n), divided by 1 - bound on the normalized scale; computed by hand."""
    assert largest_error(STUDY_TASKS[task], value) == pytest.approx(expected, abs=1e-4)
