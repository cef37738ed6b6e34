"""Section of the answer: what was compared, and one sentence per variant."""

from __future__ import annotations

from collections import Counter

from hpcq.report.page.content import PageContent
from hpcq.report.page.markup import Html, join, tag
from hpcq.report.page.sections import Section, paragraph
from hpcq.report.page.tables import bullet_list
from hpcq.report.paired import Verdict
from hpcq.report.rows import UNQUANTIZED_TOOL

_NO_ANSWER = "No variant was compared with the unquantized model on the same items. The notes below the scores say why."


def answer_section(content: PageContent) -> Section | None:
    """Return the section; None without scores."""
    if not content.rows:
        return None
    parts = [paragraph(_what_was_compared(content), class_="lead")]
    parts.append(
        tag("ul", *(_answer(content, one) for one in content.answers), class_="answers")
        if content.answers
        else paragraph(_NO_ANSWER)
    )
    missing = _without_score(content)
    if missing:
        parts.append(missing)
    return Section(id="answer", link="Answer", title="Answer", content=join(parts))


def _what_was_compared(content: PageContent) -> str:
    compared = [row for row in content.rows if row.is_main and row.paired]
    variants = {(row.run, row.variant) for row in compared}
    counts = Counter(row.paired.verdict for row in compared if row.paired)
    if not compared:
        return f"{len(content.names)} variants, {len(content.tasks)} tasks."
    tasks = len({row.task for row in compared})
    verdicts = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
    return (
        f"{_count(len(variants), 'variant')} compared with the unquantized model on the same items of"
        f" {_count(tasks, 'task')}: {_count(len(compared), 'comparison')}, {verdicts}."
    )


def _answer(content: PageContent, sentence: str) -> Html:
    """Return the sentence with the name of its variant emphasized."""
    names = (name for name in content.names.values() if sentence.startswith(f"{name}: "))
    name = max(names, key=len, default="")
    return tag("li", tag("strong", name), sentence.removeprefix(name))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _without_score(content: PageContent) -> Html | None:
    """Return the variants that have no score for some tasks, and why."""
    lines: dict[tuple[str, str], list[str]] = {}
    reasons: dict[tuple[str, str], str] = {}
    for row in content.rows:
        line = (row.run, row.variant)
        if row.is_main and row.value is None:
            lines.setdefault(line, []).append(row.task)
            if row.failure:
                reasons[line] = row.failure.sentence
            elif row.is_withheld:
                reasons.setdefault(line, "; ".join(m.sentence for m in row.marks if m.kind.withholds_score))
    if not lines:
        return None
    items = []
    for line, tasks in lines.items():
        kind = " (unquantized)" if _is_unquantized(content, line) else ""
        reason = f": {reasons[line]}" if line in reasons else "."
        items.append(f"{content.names[line]}{kind} has no score for {', '.join(tasks)}{reason}")
    return join((tag("h3", "Missing scores"), bullet_list(items, class_="missing")))


def _is_unquantized(content: PageContent, line: tuple[str, str]) -> bool:
    return any(row.tool == UNQUANTIZED_TOOL for row in content.rows if (row.run, row.variant) == line)
