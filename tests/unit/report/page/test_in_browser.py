"""The page in a headless Chromium: no errors, sorting, filtering, hovering, keyboard, phone, dark, print."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpcq.report.make_report import make_report
from tests.browser import Browser
from tests.report_sample import LLAMA, Sample, SampleVariant, write_sample

MAIN_TABLE = "#scores table"


@pytest.fixture
def page(browser: Browser, page_file: Path) -> Iterator[Browser]:
    """Return the browser with the page on a wide window; afterwards, nothing was reported or loaded."""
    browser.set_scheme("light")
    browser.resize(1400, 900)
    browser.open(page_file)
    yield browser
    assert browser.messages == []
    assert browser.requests == []


def column(page: Browser, number: int, *, table: str = MAIN_TABLE) -> list[str]:
    """Return the texts of the visible cells of a column."""
    found: list[str] = page.evaluate(
        f"[...document.querySelector({json.dumps(table)}).tBodies[0].rows].filter(r => r.offsetParent !== null)"
        f".map(r => r.cells[{number}].textContent)"
    )
    return found


def focused(page: Browser) -> str:
    """Return the text of the focused element."""
    return str(page.evaluate("document.activeElement.textContent"))


def test_columns_are_sorted_by_value(page: Browser) -> None:
    """A click sorts by number, not by text, a second one reverses; missing values are last in both directions."""
    click = f"document.querySelectorAll('{MAIN_TABLE} thead button')[2].click()"
    heading = f"document.querySelector('{MAIN_TABLE}').tHead.rows[0].cells[2].getAttribute('aria-sort')"

    def scores() -> list[float]:
        texts = column(page, 2)
        missing = [at for at, text in enumerate(texts) if text == "–"]
        assert missing == list(range(len(texts) - len(missing), len(texts)))
        assert missing
        return [float(text.split(" ")[0]) for text in texts[: -len(missing)]]

    page.evaluate(click)
    assert scores() == sorted(scores())
    assert page.evaluate(heading) == "ascending"
    page.evaluate(click)
    assert scores() == sorted(scores(), reverse=True)
    assert page.evaluate(heading) == "descending"


def test_sorting_by_keyboard(page: Browser) -> None:
    """A heading can be focused and pressed."""
    before = column(page, 1)
    page.evaluate(f"document.querySelectorAll('{MAIN_TABLE} thead button')[1].focus()")
    page.press("Enter")
    assert column(page, 1) == sorted(before)


def test_filters(page: Browser) -> None:
    """Text and choices are combined; the number of lines is announced."""
    page.evaluate("document.querySelector('#scores input').focus()")
    page.type_text("QWEN2.5")
    assert {name.split(" ")[0] for name in column(page, 0)} == {"Qwen2.5-7B-Instruct"}
    choose = (
        "(() => { const s = [...document.querySelectorAll('#scores .filters')][0].querySelectorAll('select')[1];"
        " s.value = [...s.options].find(o => o.text === 'gsm8k').value;"
        " s.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )
    page.evaluate(choose)
    assert column(page, 1) == ["gsm8k"] * 3
    assert page.evaluate("document.querySelector('#scores output').textContent") == "3 of 54 lines"


def tip(page: Browser) -> Any:
    """Return the texts of the visible descriptions of cells."""
    return page.evaluate(
        "[...document.querySelectorAll('.tip')].filter(t => getComputedStyle(t).display !== 'none')"
        ".map(t => t.textContent)"
    )


def test_a_cell_is_described_on_hover(page: Browser) -> None:
    """The pointer on a cell shows interval, items and detectable difference inside the window."""
    assert tip(page) == []
    page.move_to(".heat td a")
    [shown] = tip(page)
    assert "95 % interval" in shown
    assert "detectable" in shown
    assert "n = 60" in shown
    assert page.evaluate(
        "(() => { const r = [...document.querySelectorAll('.tip')].find(t => t.offsetParent !== null"
        " || getComputedStyle(t).display !== 'none').getBoundingClientRect();"
        " return r.height > 10 && r.bottom <= innerHeight + 1 && r.left >= 0 && r.right <= innerWidth; })()"
    )
    page.move_to("h1")
    assert tip(page) == []


def test_a_heat_map_by_keyboard(page: Browser) -> None:
    """One cell is in the tab order; arrows move over empty cells; Enter shows the line, although it is filtered out."""
    assert page.evaluate("[...document.querySelectorAll('.heat a')].filter(a => a.tabIndex === 0).length") == 1
    page.evaluate("document.querySelector('.heat').parentElement.focus()")
    page.press("Tab")
    first = focused(page)
    assert first == page.evaluate("document.querySelector('.heat a').textContent")
    assert len(tip(page)) == 1
    page.press("ArrowRight")
    assert "hellaswag" in tip(page)[0]
    for _ in range(9):
        page.press("ArrowDown")
    assert "Qwen2.5-7B-Instruct gptq-w4a16-g128, hellaswag" in tip(page)[0]
    page.evaluate("document.querySelector('#scores input').value = 'nothing'")
    page.evaluate("document.querySelector('#scores input').dispatchEvent(new Event('input', {bubbles: true}))")
    assert column(page, 0) == []
    page.press("Enter")
    page.evaluate("new Promise(done => setTimeout(done))")
    assert focused(page).startswith("Qwen2.5-7B-Instruct gptq-w4a16-g128hellaswag")
    assert len(column(page, 0)) == 54


def test_tab_reaches_the_answer_first(page: Browser) -> None:
    """The first stop skips the links."""
    page.press("Tab")
    assert focused(page) == "Skip to the answer"


@pytest.mark.parametrize("width", [320, 390, 768])
def test_a_phone_needs_no_sideways_scrolling(page: Browser, width: int) -> None:
    """On narrow windows tables and plots scroll in their boxes, and the page does not."""
    page.resize(width, 800, is_phone=True)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


_CONTRAST = """
(() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const level = text => {
    const [r, g, b] = rgb(text).map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = e => {
    const own = getComputedStyle(e).backgroundColor;
    return rgb(own)[3] === 0 && e.parentElement ? ground(e.parentElement) : own;
  };
  const contrast = e => {
    const [one, other] = [level(getComputedStyle(e).color), level(ground(e))].sort((a, b) => b - a);
    return (one + 0.05) / (other + 0.05);
  };
  const box = document.createElement('table');
  document.querySelector('main').append(box);
  const kinds = ['h0', ...['up', 'down'].flatMap(k => [1, 2, 3, 4].map(n => k + n))];
  const cells = kinds.map(k => {
    const cell = box.insertRow().insertCell();
    cell.className = k; cell.textContent = k; return cell;
  });
  const others = [...document.querySelectorAll('p, li, th, td, a, summary, dt, small, button')];
  const low = [...cells, ...others].map(e => [e.className || e.tagName, contrast(e)]).filter(([, c]) => c < 4.5);
  box.remove();
  return low;
})()
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_contrast(page: Browser, scheme: str) -> None:
    """All text, on all colours of the heat map, has a contrast of at least 4.5 (WCAG 2.2, level AA)."""
    page.set_scheme(scheme)
    grounds = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == grounds[scheme]
    assert page.evaluate(_CONTRAST) == []


def test_print_is_light_and_has_the_tables(page: Browser, tmp_path: Path) -> None:
    """Printed from dark colours, the page is light, without controls, and with folded tables; items stay folded."""
    page.set_scheme("dark")
    page.evaluate("addEventListener('afterprint', () => { window.opened = window.atPrint; })")
    page.evaluate(
        "addEventListener('beforeprint', () => { window.atPrint = ["
        "document.querySelectorAll('details.more:not([open])').length,"
        "document.querySelectorAll('details.changed[open]').length]; })"
    )
    page.print_pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    assert page.evaluate("window.opened") == [0, 0]
    assert page.evaluate("document.querySelectorAll('details.task[open]').length") == 0
    page.send("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.querySelector('.filters')).display") == "none"
    # A4 across, without its margins.
    page.resize(1032, 700)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    wide = "[...document.querySelectorAll('table')].filter(t => t.getBoundingClientRect().right > innerWidth)"
    assert page.evaluate(f"{wide}.map(t => t.tHead.textContent)") == []
    page.send("Emulation.setEmulatedMedia", media="", features=[])


def test_without_scripts_everything_is_there(browser: Browser, page_file: Path) -> None:
    """With scripts disabled, all tables are complete and no control is shown that does nothing."""
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(page_file)
    browser.send("Emulation.setScriptExecutionDisabled", value=False)
    assert browser.evaluate("document.querySelectorAll('button, input, select').length") == 0
    assert len(column(browser, 0)) == 54
    browser.move_to(".heat td a")
    assert len(tip(browser)) == 1


def test_hostile_content_does_nothing(browser: Browser, tmp_path: Path) -> None:
    """Scripts, handlers and closing elements in names and answers run nothing, load nothing and report nothing."""
    evil = "</script><script>window.taken=1</script><img src=x onerror='window.taken=1'>"
    variants = [SampleVariant(model=LLAMA + evil, scheme=name, noise=noise) for name, noise in (("bf16", 0), (evil, 1))]
    texts = [evil.encode(), b"\x1b]0;title\x07", "\u202e".encode(), b"\xff", b"a" * 1_000_000]
    run = write_sample(
        tmp_path / "hostile",
        Sample(variants=variants, n=30, tasks=("winogrande", "gsm8k"), texts=texts, notes=[evil], reason=evil),
    )
    path = tmp_path / "page.html"
    path.write_text(make_report([run], output_format="html"), encoding="utf-8")
    browser.open(path)
    browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.evaluate("window.taken === undefined")
    assert browser.evaluate("document.querySelectorAll('img').length") == 0
    assert browser.evaluate("document.body.textContent").count(evil) > 5
    assert browser.messages == []
    assert browser.requests == []
    # What the policy is for: even a script that gets into the page does not run.
    browser.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {text: 'window.taken = 1'}))"
    )
    assert browser.evaluate("window.taken === undefined")
    assert any("Content Security Policy" in message for message in browser.messages)
    browser.messages.clear()
