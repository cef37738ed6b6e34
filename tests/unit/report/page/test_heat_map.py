"""Heat map: colours by size, words for screen readers, and reasons of empty cells."""

from __future__ import annotations

import dataclasses
import re
from xml.etree import ElementTree

import pytest

from hpcq.report.page.content import PageContent
from hpcq.report.page.heat_map import heat_map_section, shade
from hpcq.report.page.heat_map_plot import heat_map_plot
from hpcq.report.page.score_sections import all_scores_section


@pytest.mark.parametrize(
    ("points", "shown"),
    [(0.0, "h0"), (0.9, "h0"), (-0.9, "h0"), (-1, "down1"), (1, "up1"), (-2, "down2"), (7, "up3"), (-10, "down4")],
)
def test_the_colour_is_the_difference_in_margins(points: float, shown: str) -> None:
    """Colours begin at 1, 2, 5 and 10 times the margin, in two hues."""
    assert shade(points / 100, 0.01) == shown


def test_each_cell_has_its_evidence_in_words(content: PageContent) -> None:
    """A cell describes interval, scores, items, flips, detectable difference, p-value and verdict."""
    section = heat_map_section(content)
    assert section
    tips = re.findall(r'class="tip" role="tooltip" id="([^"]+)">([^<]+)<', section.content.source)
    assert len(tips) == sum(row.paired is not None for row in content.main.values())
    expected = (
        r".+, \w+: [+\u2212]?\d+\.\d points, 95 % interval \S+ to \S+; score \d+\.\d, unquantized \d+\.\d; n = 60;"
        r"( \d+ lost, \d+ gained;)? detectable \d+\.\d points; p (= \S+|&lt; 0\.001);"
        r" (worse|better|equivalent|cannot tell)"
    )
    assert not [words for _, words in tips if not re.fullmatch(expected, words)]
    assert all(f'aria-describedby="{identifier}"' in section.content.source for identifier, _ in tips)


def test_each_cell_leads_to_its_line(content: PageContent) -> None:
    """Every link of the heat map is a line of the table of all scores."""
    heat_map, scores = heat_map_section(content), all_scores_section(content)
    assert heat_map
    assert scores
    targets = re.findall(r'href="#([^"]+)"', heat_map.content.source)
    assert targets
    assert set(targets) <= set(re.findall(r'<tr id="([^"]+)"', scores.content.source))


def test_empty_cells_have_a_reason(content: PageContent) -> None:
    """A failed variant and a withheld score are named, not left empty."""
    section = heat_map_section(content)
    assert section
    assert section.content.source.count('<td class="none">failed</td>') == 6
    assert section.content.source.count('<td class="none">withheld</td>') == 1


def test_without_comparisons_there_is_no_heat_map(content: PageContent) -> None:
    """Rows without a comparison have neither section nor drawing."""
    rows = [dataclasses.replace(row, paired=None) for row in content.rows]
    bare = dataclasses.replace(content, rows=rows)
    assert heat_map_section(bare) is None
    assert heat_map_plot(bare) is None


def test_the_drawing_is_valid_and_named(content: PageContent) -> None:
    """The drawing is XML, and each of its cells has the words of the table's."""
    drawing = heat_map_plot(content)
    assert drawing
    root = ElementTree.fromstring(drawing.source)  # noqa: S314 (our own source)
    namespace = "{http://www.w3.org/2000/svg}"
    assert root[0].tag == f"{namespace}title"
    assert [one.text for one in root.findall(f"{namespace}text") if one.text == "withheld"] == ["withheld"]
    assert len(root.findall(f"{namespace}g/{namespace}title")) == sum(
        row.paired is not None for row in content.main.values()
    )
