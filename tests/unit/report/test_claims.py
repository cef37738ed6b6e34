"""Claims: the study's findings on its own tables, a user's file, and claims on the results of a run."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from hpcq.catalog.schemes import find_scheme
from hpcq.core.addressing import canonical
from hpcq.core.errors import UserInputError
from hpcq.report.claims.claim import Claim, ClaimVerdict, Direction
from hpcq.report.claims.claim_file import read_claims
from hpcq.report.claims.claim_report import claims_table, published_results
from hpcq.report.claims.claim_scores import ClaimScore, Subject, family_name, row_claim_scores
from hpcq.report.claims.evaluate import ClaimLine, ClaimResult, evaluate_claims, sign_test
from hpcq.report.claims.pairs import spearman
from hpcq.report.make_report import make_report
from hpcq.report.rows import Row
from hpcq.verify.marks import Mark, MarkKind
from tests.unit.report.test_comparisons import RIGHT, merged

VALID = """
[[claims]]
name = "a"
text = "A is better."
first = { method = "awq" }
second = { method = "gptq" }
direction = "higher"
"""


def claims_of(folder: Path, text: str) -> tuple[Claim, ...]:
    """Read claims from a file."""
    path = folder / "claims.toml"
    path.write_text(text)
    return read_claims(str(path))


def lines_of(results: Sequence[ClaimResult], name: str) -> dict[str, ClaimLine]:
    """Return the lines of a claim by task, or by suite."""
    (result,) = [result for result in results if result.claim.name == name]
    return {line.task or line.suite: line for line in result.lines}


def score(model: str, method: str, value: float, *, error: float | None = None, **more: Any) -> ClaimScore:
    """Return a score of one task."""
    subject = Subject(
        source="r", variant=f"{model} {method}", model=model, family=family_name(model), parameters_b=7.0,
        scheme=method, method=method, tool=method, weight_bits=4, activation_bits=16,
    )  # fmt: skip
    return ClaimScore(subject=subject, suite="s", task=more.pop("task", "t"), value=value, error=error, **more)


def evaluated(folder: Path, text: str, scores: Sequence[ClaimScore]) -> ClaimLine:
    """Return the line of the suite of the only claim."""
    (result,) = evaluate_claims(claims_of(folder, text), scores)
    return next(line for line in result.lines if not line.task)


def test_awq_against_gptq_on_the_published_tables() -> None:
    """AWQ is higher in 10 of 14 pairs of version 1 and 9 of 14 of version 2: no evidence for "consistently"."""
    lines = lines_of(published_results("published"), "awq-beats-gptq")
    counts = {suite: (lines[suite].agreeing, lines[suite].opposing) for suite in ("openllm-v1", "openllm-v2")}
    assert counts == {"openllm-v1": (10, 4), "openllm-v2": (9, 5)}
    assert {lines[suite].verdict for suite in counts} == {ClaimVerdict.CANNOT_TELL}


def test_the_findings_of_the_study() -> None:
    """Verdicts on the study's own tables, and its exceptions: on TruthfulQA the larger model is also better."""
    results = published_results("published")
    assert {result.claim.name: str(result.verdict) for result in results} == {
        "larger-4bit-beats-smaller-16bit": "holds",
        "smoothquant-falls-at-405b": "holds",
        "smoothquant-keeps-below-405b": "cannot tell",
        "awq-beats-gptq": "cannot tell",
        "gptq-tools-differ": "cannot tell",
        "gptq-8bit-beats-4bit-at-8b": "cannot tell",
        "gptq-8bit-no-better-at-70b": "holds",
        "fp8-most-robust": "holds",
        "second-turn-loses-more": "cannot tell",
        "difficulty-does-not-predict-loss": "cannot tell",
    }
    lines = lines_of(results, "larger-4bit-beats-smaller-16bit")
    assert (lines["openllm-v1"].agreeing, lines["openllm-v1"].pairs) == (10, 10)
    assert lines["truthfulqa_mc2"].is_exception
    assert (lines["truthfulqa_mc2"].agreeing, lines["leaderboard_ifeval"].agreeing) == (8, 6)
    turns = lines_of(results, "second-turn-loses-more")["mt-bench-turns"]
    assert (turns.agreeing, turns.opposing) == (12, 12)


def test_a_report_of_published_tables_has_counts_and_misprints(tmp_path: Path) -> None:
    """Without runs, all formats have the claims; the misprints and their corrections are shown."""
    text = make_report([], claims="published")
    assert "10 of 14" in text
    assert "47.79 is printed, 49.79 is used" in text
    document = json.loads(make_report([], claims="published", output_format="json"))
    assert len(document["claims"]) == 10
    rows = list(csv.DictReader(io.StringIO(make_report([], claims="published", output_format="csv"))))
    assert {"claim", "suite", "task", "agreeing", "pairs", "verdict"} <= set(rows[0])
    for output_format in ("md", "latex", "html"):
        assert "awq-beats-gptq" in make_report([], claims="published", output_format=output_format)
    path = tmp_path / "mine.toml"
    path.write_text(VALID.replace('"awq"', '"awq", weight_bits = 4').replace('"gptq"', '"gptq", weight_bits = 4'))
    assert "10 of 14" in make_report([], claims=str(path))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x = 1", "must have [[claims]] tables, at least one, and nothing else."),
        (VALID.replace('name = "a"', ""), "claim 1: 'name' is missing."),
        (VALID + "margins = 1", "claim 'a': unknown key 'margins'; allowed are name, text,"),
        (VALID.replace("higher", "up"), "claim 'a': 'direction': 'up' is unknown; allowed are higher, lower,"),
        (VALID.replace("method", "methods"), "claim 'a': 'first': 'methods' is unknown; allowed are model,"),
        (VALID.replace('"awq"', "4"), "claim 'a': 'method' must be a string."),
        (VALID.replace('method = "awq"', "method = { min = 4 }"), "claim 'a': 'method': { min = ..., max = ... } is"),
        (VALID.replace('method = "awq"', 'weight_bits = "4"'), "claim 'a': 'weight_bits' must be a number"),
        (VALID.replace('method = "awq"', "weight_bits = []"), "claim 'a': 'weight_bits' must not be an empty list."),
        (VALID.replace('second = { method = "gptq" }', ""), "claim 'a': 'second' is missing."),
        (VALID + 'value = "rank correlation"', "claim 'a': value 'rank correlation' has no 'second' selection."),
        (VALID + "margin = -1", "claim 'a': 'margin' must be a number, 0 or more."),
        (VALID + 'same = ["task"]', "claim 'a': 'same' cannot have 'task'"),
        (VALID + 'first_is_larger = "yes"', "claim 'a': 'first_is_larger' must be true or false."),
        (VALID + VALID, "claim 'a': another claim has the same 'name'."),
        ("claims = [", "not valid TOML:"),
    ],
)
def test_an_invalid_file_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    """One sentence with file, claim and key."""
    with pytest.raises(UserInputError) as error:
        claims_of(tmp_path, text)
    assert str(error.value).startswith(f"{tmp_path / 'claims.toml'}: {problem}")


def test_a_missing_file_is_refused_with_the_studies() -> None:
    """The message names the option, the file and the studies."""
    with pytest.raises(UserInputError, match=r"--claims nature: No such file or directory\. .*arxiv-2409\.11055v6"):
        read_claims("nature")


@pytest.mark.parametrize(
    ("direction", "agreeing"),
    [("higher", [2.0]), ("lower", [-2.0]), ("not higher", [-2.0, 0.0]), ("not lower", [0.0, 2.0]),
     ("equivalent", [0.0]), ("different", [-2.0, 2.0])],
)  # fmt: skip
def test_directions(tmp_path: Path, direction: str, agreeing: list[float]) -> None:
    """With a margin of 1, which of the differences -2, 0 and 2 agree."""
    (claim,) = claims_of(tmp_path, VALID.replace("higher", direction) + "margin = 1")
    assert claim.direction is Direction(direction)
    assert [value for value in (-2.0, 0.0, 2.0) if claim.holds_for(value)] == agreeing


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [([1, 2, 3, 1, 2, 3], "holds"), ([-1, -2, -3, -1, -2, -3], "fails"), ([1, 2, 3, 1, 2, -9], "cannot tell"),
     ([1, 2, 3, 1, 2], "cannot tell"), ([], None)],
)  # fmt: skip
def test_the_sign_test_needs_six_models(tmp_path: Path, differences: Sequence[float], verdict: str | None) -> None:
    """Six of six models are significant (p = 0.03), five of six are not, and five without errors show nothing."""
    scores = [
        one
        for at, value in enumerate(differences)
        for one in (score(f"m{at}", "awq", 50.0 + value), score(f"m{at}", "gptq", 50.0))
    ]
    if verdict is None:
        (result,) = evaluate_claims(claims_of(tmp_path, VALID), scores)
        assert (result.lines, result.verdict) == ([], ClaimVerdict.CANNOT_TELL)
    else:
        assert evaluated(tmp_path, VALID, scores).verdict == verdict


@pytest.mark.parametrize(("value", "verdict"), [(4.0, "holds"), (-4.0, "fails"), (1.0, "cannot tell")])
def test_few_models_are_judged_by_the_errors_of_their_scores(tmp_path: Path, value: float, verdict: str) -> None:
    """A difference of 4 with a standard error of sqrt(2) is significant, one of 1 is not."""
    line = evaluated(tmp_path, VALID, [score("m", "awq", 50 + value, error=1), score("m", "gptq", 50, error=1)])
    assert line.verdict == verdict
    assert line.low == pytest.approx(value - 1.96 * 2**0.5, abs=1e-3)


def test_pairs_of_a_model_count_once_in_the_test(tmp_path: Path) -> None:
    """One model with two GPTQ variants has two pairs, and one unit in the test."""
    scores = [score("m", "awq", 52), score("m", "gptq", 50)]
    other = score("m", "gptq", 51)
    object.__setattr__(other.subject, "tool", "other")
    line = evaluated(tmp_path, VALID, [*scores, other])
    assert (line.pairs, line.models, line.mean) == (2, 1, 1.5)


def test_equivalence_fails_only_outside_the_margin(tmp_path: Path) -> None:
    """Within the margin: holds; beyond it: fails; across it: cannot tell."""
    text = VALID.replace("higher", "equivalent")
    for value, error, verdict in ((0.0, 0.1, "holds"), (3.0, 0.1, "fails"), (1.0, 0.1, "cannot tell")):
        pair = [score("m", "awq", 50 + value, error=error), score("m", "gptq", 50, error=error)]
        assert evaluated(tmp_path, text, pair).verdict == verdict


def test_different_needs_one_significant_pair(tmp_path: Path) -> None:
    """One of two pairs differs: holds; none does, and the margin is 0: cannot tell; all within a margin: fails."""
    text = VALID.replace("higher", "different")
    equal = [score("m", "awq", 50, error=1), score("m", "gptq", 50, error=1)]
    other = [score("n", "awq", 60, error=1), score("n", "gptq", 50, error=1)]
    assert evaluated(tmp_path, text, [*equal, *other]).verdict == "holds"
    assert evaluated(tmp_path, text, equal).verdict == "cannot tell"
    assert evaluated(tmp_path, text + "margin = 5", equal).verdict == "fails"


def test_exceptions_do_not_decide(tmp_path: Path) -> None:
    """An excepted task is left out of the mean and has its own line."""
    scores = [
        score("m", method, value, error=1, task=task)
        for method, values in (("awq", (60, 40)), ("gptq", (50, 50)))
        for task, value in zip("tu", values, strict=True)
    ]
    (result,) = evaluate_claims(claims_of(tmp_path, VALID + 'except = ["u"]'), scores)
    lines = {line.task: line for line in result.lines}
    assert (lines[""].mean, lines["u"].mean, result.verdict) == (10.0, -10.0, ClaimVerdict.HOLDS)
    assert lines["u"].is_exception


def test_scores_of_other_requests_are_no_pair(tmp_path: Path) -> None:
    """Scores with other settings or numbers of items are not compared."""
    scores = [score("m", "awq", 60, protocol="n=100"), score("m", "gptq", 50, protocol="n=200")]
    (result,) = evaluate_claims(claims_of(tmp_path, VALID), scores)
    assert result.lines == []


def test_pairs_with_marked_scores_are_counted(tmp_path: Path) -> None:
    """A verdict that rests on a score with a warning says so."""
    row = Row(
        run="r", variant="v", model="m", scheme="awq", tool="", backend="vllm", task="t", metric="acc", filter="none",
        value=0.6, stderr=None, n=9, is_main=True, marks=(Mark(kind=MarkKind.PROMPTS_CUT, detail="3 of 9 prompts"),),
    )  # fmt: skip
    scores = [score("m", "awq", 60, row=row), score("m", "gptq", 50)]
    (result,) = evaluate_claims(claims_of(tmp_path, VALID), scores)
    assert [line.marked for line in result.lines if not line.task] == [1]
    notes = claims_table([result], "r").notes
    assert "1 pairs have a score with a mark: see the table of scores." in notes


def test_sign_test_by_hand() -> None:
    """10 of 14: 2 * (1 + 14 + 91 + 364 + 1001) / 2^14 = 0.1796."""
    assert sign_test(10, 4) == pytest.approx(0.1796, abs=1e-4)
    assert sign_test(0, 0) == 1.0


def test_rank_correlation_by_hand() -> None:
    """A monotonic relation is 1 or -1; ties share their rank; a constant has no correlation."""
    assert spearman([(1, 1), (2, 4), (3, 9)]) == pytest.approx(1.0)
    assert spearman([(1, 3), (2, 2), (3, 1)]) == pytest.approx(-1.0)
    assert spearman([(1, 1), (1, 2), (2, 3)]) == pytest.approx(0.8660, abs=1e-4)
    assert spearman([(1, 5), (2, 5)]) is None


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-instruct"),
        ("meta-llama/Llama-3.1-405B-Instruct", "llama-3.1-instruct"),
        ("HuggingFaceTB/SmolLM2-135M", "smollm2"),
        ("Llama-2-7B-Chat", "llama-2-chat"),
        ("Qwen/Qwen2.5-0.5B-Instruct", "qwen2.5-instruct"),
    ],
)
def test_families_are_names_without_the_size(model: str, family: str) -> None:
    """Models of a family differ in the number of parameters only."""
    assert family_name(model) == family


def test_a_claim_cannot_write_control_characters(tmp_path: Path) -> None:
    """Line breaks and escape sequences in names and texts do not reach the terminal."""
    path = tmp_path / "hostile.toml"
    path.write_text(VALID.replace('"a"', '"a\\u001b[31m"').replace("better.", "better.\\u001b[2J\\nAll holds."))
    shown = make_report([], claims=str(path))
    assert "\x1b" not in shown
    assert "\nAll holds." not in shown


OWN = """
[[claims]]
name = "worse-loses"
text = "It loses."
first = { scheme = "worse" }
second = { method = "none", scheme = "bf16" }
direction = "lower"
"""


def test_claims_on_a_run_use_paired_errors(tmp_path: Path) -> None:
    """50 lost items of 400 on one task of two: the error of the mean is that of the changed items, not of all items."""
    path = tmp_path / "own.toml"
    path.write_text(OWN)
    run = merged(tmp_path / "r", RIGHT)
    document: Mapping[str, Any] = json.loads(make_report([run], output_format="json", claims=str(path)))
    (claim,) = document["claims"]
    lines = {line["task"]: line for line in claim["lines"]}
    assert claim["verdict"] == "holds"
    task = lines["arc_challenge"]
    assert task["mean"] == pytest.approx(-12.5)
    assert task["low"] == pytest.approx(-12.5 - 1.96 * 1.66, abs=0.05)  # sqrt(0.125 * 0.875 / 400) = 0.0165
    assert "claims" not in json.loads(make_report([run], output_format="json"))
    assert "Claims, evaluated on the scores of r" in make_report([run], claims=str(path))


def test_rows_have_the_fields_of_their_scheme() -> None:
    """Method and bits are those of the recipe that the merge records; the size is that of the catalog."""
    rows = [
        Row(
            run="r", variant=scheme, model="meta-llama/Llama-3.1-8B-Instruct", scheme=scheme, tool="llmcompressor",
            backend="vllm", task="winogrande", metric="acc", filter="none", value=0.75, stderr=0.01, n=1267,
            is_main=True,
        )
        for scheme in ("bf16", "awq-w4a16", "smoothquant-w8a8", "fp8")
    ]  # fmt: skip
    recipes = {("r", row.scheme): json.dumps(canonical(find_scheme(row.scheme))) for row in rows}
    found = row_claim_scores(rows, recipes, {})
    assert [(one.subject.method, one.subject.weight_bits, one.subject.activation_bits) for one in found] == [
        ("none", 16, 16), ("awq", 4, 16), ("smoothquant", 8, 8), ("fp8", 8, 8),
    ]  # fmt: skip
    assert {(one.suite, one.value, one.error) for one in found} == {("openllm-v1", 75.0, 1.0)}
    assert found[0].subject.parameters_b == pytest.approx(8.03, abs=0.01)
