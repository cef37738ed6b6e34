"""Input of the page's sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from functools import cached_property

from hpcq.core.frozen import dataclass
from hpcq.report.add_comparisons import SuiteResult
from hpcq.report.clean_text import MAX_CELL
from hpcq.report.fidelity import ChoiceFidelity
from hpcq.report.line import Line
from hpcq.report.page.evidence import Evidence
from hpcq.report.page.markup import shortened
from hpcq.report.panel import PanelFidelity
from hpcq.report.rows import Row
from hpcq.report.table import Table, line_names

LABEL_CHARACTERS = 34


def shortened_name(name: str) -> str:
    """Return a name that fits a plot."""
    half = LABEL_CHARACTERS // 2
    return name if len(name) <= LABEL_CHARACTERS else f"{name[: half - 1]}…{name[-half:]}"


@dataclass(frozen=True, kw_only=True)
class PageContent:
    """What the page shows.

    Attributes:
        runs: Names of the runs, separated by commas.
        rows: All scores.
        table: The main scores, pivoted.
        suites: Mean differences of variants over their tasks.
        answers: A sentence per variant.
        fidelity: Fidelity of variants on multiple-choice tasks.
        closeness: Their table; None if there is none.
        panels: Fidelity of variants on the fidelity panel.
        panel_closeness: Their table; None if there is none.
        checks: Table of a gate; None if there is none.
        more: Further tables: published scores, claims.
        evidence: Provenance, plans, attempts and changed items of the runs.
    """

    runs: str
    rows: Sequence[Row]
    table: Table
    suites: Sequence[SuiteResult] = ()
    answers: Sequence[str] = ()
    fidelity: Sequence[ChoiceFidelity] = ()
    closeness: Table | None = None
    panels: Sequence[PanelFidelity] = ()
    panel_closeness: Table | None = None
    checks: Table | None = None
    more: Sequence[Table] = ()
    evidence: Evidence = field(default_factory=Evidence)

    @cached_property
    def names(self) -> Mapping[Line, str]:
        """Name of each variant, as in the tables."""
        return {line: shortened(name, MAX_CELL) for line, name in line_names(self.rows).items()}

    @cached_property
    def schemes(self) -> Mapping[Line, str]:
        """Scheme of each variant."""
        return {(row.run, row.variant): row.scheme for row in self.rows}

    def label(self, line: Line) -> str:
        """Return the name of a variant for a plot: if it is too long, the model is shortened, not the scheme."""
        name, scheme = self.names[line], self.schemes[line]
        room = LABEL_CHARACTERS - len(scheme) - 2
        if len(name) <= LABEL_CHARACTERS or not name.endswith(scheme) or room < 0:
            return shortened_name(name)
        return f"{name.removesuffix(scheme).strip()[:room]}… {scheme}"

    @cached_property
    def tasks(self) -> Sequence[str]:
        """Tasks with a main score, in the order of the rows."""
        return tuple(dict.fromkeys(row.task for row in self.rows if row.is_main))

    @cached_property
    def main(self) -> Mapping[tuple[Line, str], Row]:
        """Row of the main score of each variant and task."""
        return {((row.run, row.variant), row.task): row for row in self.rows if row.is_main}
