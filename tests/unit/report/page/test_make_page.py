"""The page as a whole: one file without network, safe with hostile content, and of limited size."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html.parser
import json
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest

from hpcq.core.errors import SetupError
from hpcq.report.exports import EXPORTERS
from hpcq.report.exports.variants import file_name
from hpcq.report.fidelity_table import fidelity_table
from hpcq.report.formats import Report, page_content
from hpcq.report.make_report import MergedRun, build_report, make_report
from hpcq.report.page import figures
from hpcq.report.page.content import PageContent
from hpcq.report.page.evidence import Evidence, RunEvidence
from hpcq.report.page.figures import FigureFormat, write_figures
from hpcq.report.page.make_page import make_page
from hpcq.report.table import make_table
from tests.report_sample import LLAMA, Sample, SampleVariant, write_sample

LARGEST_PAGE = 5_000_000
HOSTILE = (
    "<script>document.title='taken'</script>", '"><img src=x onerror=alert(1)>',
    "</style></script><svg onload=alert(1)>", "\x1b[31mred\x1b[0m", "\u202eevil", "=1+1", "\\end{tabular}",
    "${title} $title", "&lt;b&gt;", "שלום",
)  # fmt: skip
TEXTS = (
    *(text.encode() for text in HOSTILE),
    b"\xff\xfe invalid \xed\xa0\x80",
    b"",
    b"0123456789" * 100_000,
    "שלום \N{RIGHT-TO-LEFT OVERRIDE} abc".encode(),
)


class Elements(html.parser.HTMLParser):
    """Collects elements with their attributes, and the text outside of style and script."""

    _WITHOUT_END = ("meta", "link", "br", "input")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.found.append((tag, dict(attrs)))
        if tag not in self._WITHOUT_END:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Check that elements are closed in order."""
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Note text."""
        if self._open[-1:] not in (["style"], ["script"]):
            self.text.append(data)


def read(page: str) -> Elements:
    """Parse a page; all elements are closed."""
    parser = Elements()
    parser.feed(page)
    parser.close()
    assert not parser._open
    return parser


def test_nothing_is_loaded(page_file: Path) -> None:
    """No element refers to anything outside of the file, and none has a handler or a style of its own."""
    elements = read(page_file.read_text(encoding="utf-8"))
    for name, attributes in elements.found:
        assert name not in ("img", "iframe", "object", "embed", "base", "form", "image", "use"), name
        assert not [key for key in attributes if key.startswith("on") or key in ("style", "src", "srcset", "action")]
        for key in ("href", "xlink:href"):
            assert str(attributes.get(key, "#")).startswith(("#", "data:,")), attributes
    identifiers = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    for _, attributes in elements.found:
        for key in ("aria-labelledby", "aria-describedby"):
            assert set(str(attributes.get(key) or "").split()) <= set(identifiers)
        if str(attributes.get("href", "")).startswith("#"):
            assert str(attributes["href"])[1:] in identifiers


def test_the_policy_permits_only_our_own_script(page_file: Path) -> None:
    """The policy names the digests of the one script and the one style sheet, and forbids all else."""
    page = page_file.read_text(encoding="utf-8")
    [policy] = [
        str(attributes["content"])
        for name, attributes in read(page).found
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; ")
    for kind in ("style", "script"):
        [source] = re.findall(f"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy


def test_the_same_results_give_the_same_page(report: Report, page_file: Path) -> None:
    """The page has no time and no random number."""
    assert make_page(page_content(report)) == page_file.read_text(encoding="utf-8")


def test_every_section_is_linked(page_file: Path) -> None:
    """The list of sections has all ten, in their order."""
    elements = read(page_file.read_text(encoding="utf-8")).found
    sections = [attributes["id"] for name, attributes in elements if name == "section"]
    assert sections == [
        "answer", "differences", "table", "cost", "fidelity", "scores", "tasks", "provenance", "plan", "attempts",
    ]  # fmt: skip
    assert [attributes.get("href") for name, attributes in elements if name == "a"][1:11] == [
        f"#{one}" for one in sections
    ]


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> MergedRun:
    """Return a run with hostile ids, names, notes, reasons and answers."""
    schemes = ("bf16", *HOSTILE[:6])
    variants = tuple(
        SampleVariant(model=f"{LLAMA}{HOSTILE[0]}", scheme=scheme.replace("\x00", ""), noise=1.0 * (at > 0), damage=0.5)
        for at, scheme in enumerate(schemes)
    )
    sample = Sample(
        variants=variants, n=40, tasks=("winogrande", "gsm8k"), texts=TEXTS, reason=HOSTILE[2],
        notes=[*HOSTILE, f"gsm8k: {HOSTILE[1]}"],
    )  # fmt: skip
    return write_sample(tmp_path_factory.mktemp("hostile") / "a<b>&'\"", sample)


def test_hostile_content_is_text(hostile_run: MergedRun) -> None:
    """Names, notes, reasons and answers appear as they are, and make no element."""
    page = make_report([hostile_run], output_format="html")
    elements = read(page)
    assert [name for name, _ in elements.found].count("script") == 1
    assert "img" not in [name for name, _ in elements.found]
    assert "</script><svg" not in page
    text = "".join(elements.text)
    shown = (*HOSTILE[:3], "\\x1b[31mred", "\\u202eevil", "\\xff\\xfe invalid", "${title} $title", "&lt;b&gt;", "שלום")
    assert not [one for one in shown if one not in text]
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", page)
    assert len(page.encode()) < LARGEST_PAGE


SHAPES = {"svg", "title", "desc", "style", "rect", "text", "line", "g", "circle", "polygon", "polyline"}


def test_hostile_content_in_figures_is_text(hostile_run: MergedRun, tmp_path: Path) -> None:
    """Only shapes and texts, no attribute that runs or loads anything; PDF and PNG can be made of them."""
    write_figures(tmp_path, page_content(build_report([hostile_run])), list(FigureFormat))
    names = {path.name for path in tmp_path.iterdir()}
    assert {"differences.svg", "differences.pdf", "differences.png", "attempts-0.pdf"} <= names
    for path in tmp_path.glob("*.svg"):
        source = path.read_text(encoding="utf-8")
        elements = list(ElementTree.fromstring(source).iter())  # noqa: S314 (our own source)
        assert {element.tag.rpartition("}")[2] for element in elements} <= SHAPES
        assert not [name for one in elements for name in one.attrib if name.startswith("on") or "href" in name]
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", source)
        assert "url(" not in source
        assert "@import" not in source


@pytest.mark.parametrize("form", list(EXPORTERS))
def test_hostile_content_in_exports_is_data(hostile_run: MergedRun, tmp_path: Path, form: str) -> None:
    """Files stay in their folder and have printable names; their JSON is ASCII, valid, and has every text as it is."""
    paths = list(EXPORTERS[form]([hostile_run], tmp_path / "out"))
    assert all(path.resolve().is_relative_to(tmp_path / "out") for path in paths)
    assert all(str(path.relative_to(tmp_path)).isprintable() for path in paths)
    documents, texts = [], 0
    for path in paths:
        if path.suffix == ".eval":
            with zipfile.ZipFile(path) as archive:
                assert not [name for name in archive.namelist() if name.startswith("/") or ".." in name]
                lines = [archive.read(name) for name in archive.namelist()]
        else:
            lines = [path.read_bytes()] if path.suffix == ".json" else path.read_bytes().splitlines()
        documents += [json.loads(line.decode("ascii")) for line in lines]
        texts += sum(b"0123456789" * 100_000 in line for line in lines)
    written = json.dumps(documents)
    if form != "eee":  # which has no responses
        assert not [text for text in HOSTILE if json.dumps(text)[1:-1] not in written]
        assert "\\ufffd\\ufffd invalid" in written
        assert texts
    assert not re.search(r"\\ud[89a-f]..(?!\\ud[c-f])", written)


@pytest.mark.parametrize(
    "text", ["../../etc/passwd", "\x1b[31mred", "\u202eabc", "\ud800", "a/b\\c", "..", "x" * 1_000_000, "\u4e00" * 300]
)
def test_names_of_exported_files(text: str) -> None:
    """One printable part of a path, short enough for every file system."""
    name = file_name(text)
    assert name.isprintable()
    assert not {"/", "\\"} & set(name)
    assert not name.startswith(".")
    assert 0 < len(name.encode()) <= 120


def copies(content: PageContent, count: int) -> PageContent:
    """Return the content with this number of copies of its variants."""
    rows, changed = [], {}
    for copy in range(count):
        for row in content.rows:
            new = dataclasses.replace(row, variant=f"{row.variant}-{copy}", scheme=f"{row.scheme}-{copy}")
            rows.append(new)
            key = (row.run, row.variant, row.task)
            if row.is_main and key in content.evidence.changed:
                changed[new.run, new.variant, new.task] = content.evidence.changed[key]
    [run] = content.evidence.runs
    large = RunEvidence(
        name=run.name,
        variants={f"{name}-{copy}": one for name, one in run.variants.items() for copy in range(count)},
        plan_document={**run.plan_document, "units": list(run.plan_document["units"]) * count},
        attempts={f"{name}-{copy}": own for name, own in run.attempts.items() for copy in range(count)},
    )
    evidence = Evidence(runs=[large], changed=changed, groups=content.evidence.groups)
    fidelity = [
        dataclasses.replace(one, variant=f"{one.variant}-{copy}") for one in content.fidelity for copy in range(count)
    ]
    large_content = dataclasses.replace(content, rows=rows, evidence=evidence, fidelity=fidelity, suites=())
    closeness = fidelity_table(fidelity, large_content.names)
    return dataclasses.replace(large_content, table=make_table(rows, title="T"), closeness=closeness)


def test_a_large_run_is_below_five_megabytes(content: PageContent) -> None:
    """270 variants, with all that the sample has for each: the page is limited and says what it leaves out."""
    page = make_page(copies(content, 30))
    assert len(page.encode()) < LARGEST_PAGE
    text = "".join(read(page).text)
    assert "3000 of 3300 scores, main metrics first" in text
    assert "The plot shows the first 120 of " in text
    assert "The plot shows the 80 units with the most attempts" in text


def test_figures_stand_alone(content: PageContent, tmp_path: Path) -> None:
    """Each plot is an SVG file with its own colours, without variables and references."""
    names = write_figures(tmp_path / "figures", content)
    files = sorted((tmp_path / "figures").iterdir())
    assert [file.name for file in files] == [
        "attempts-0.svg", "differences.svg", "fidelity.svg", "quality-hours.svg", "quality-size.svg",
    ]  # fmt: skip
    assert sorted(names) == [file.name for file in files]
    for file in files:
        source = file.read_text(encoding="utf-8")
        assert ElementTree.fromstring(source).tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314 (our own source)
        assert "var(" not in source
        assert "url(" not in source


def test_figures_for_papers(content: PageContent, tmp_path: Path) -> None:
    """PDF files have outlines of letters or fonts and no image; PNG files have 300 dots per inch."""
    names = write_figures(tmp_path, content, [FigureFormat.PDF, FigureFormat.PNG])
    assert sorted(names) == sorted(
        f"{name}.{form}"
        for name in ("attempts-0", "differences", "fidelity", "quality-hours", "quality-size")
        for form in ("pdf", "png")
    )
    [svg] = [plot for name, plot in figures._figures(content) if name == "quality-size"]
    width = float(ElementTree.fromstring(svg.source).attrib["width"])  # noqa: S314 (our own source)
    document = (tmp_path / "quality-size.pdf").read_bytes()
    assert document.startswith(b"%PDF-")
    assert b"/FontFile" in document
    assert b"/Subtype /Image" not in document
    picture = (tmp_path / "quality-size.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">I", picture[16:20])[0] == pytest.approx(width * 300 / 96, abs=1)
    at = picture.index(b"pHYs") + 4
    assert struct.unpack(">I", picture[at : at + 4])[0] == pytest.approx(300 / 0.0254, rel=0.01)


def test_without_the_converter_a_sentence_says_what_to_install(
    content: PageContent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written; SVG needs no package."""
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(SetupError, match=r"PDF need the package vl-convert-python.*hpcq\[figures\]"):
        write_figures(tmp_path / "new", content, [FigureFormat.SVG, FigureFormat.PDF])
    assert not (tmp_path / "new").exists()


def test_several_runs_are_in_one_page(sample_run: MergedRun, tmp_path: Path) -> None:
    """Each run has its provenance, plan and timeline, and all identifiers are different."""
    other = write_sample(tmp_path / "other", Sample(n=30, tasks=("winogrande",)))
    page = make_page(page_content(build_report([sample_run, other])))
    elements = read(page)
    identifiers = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    assert "".join(elements.text).count("digest of all inputs") == 2


def test_the_page_needs_no_plotting_library() -> None:
    """The modules of the page import neither matplotlib nor pandas, nor lm-eval nor torch."""
    code = (
        "import sys, hpcq.report.page.make_page, hpcq.report.page.figures;"
        "print(sorted({'matplotlib', 'pandas', 'torch', 'lm_eval', 'jinja2'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout == "[]\n"
