"""The report in a real browser: axe-core in both schemes, a phone, filters, pictures with the keyboard, print."""

import re
import shutil

import pytest
from test_report import claim, made, reported

from vis.reports.html import run_page
from vis.reports.report import compare
from vis.store.run_folder import RunFolder
from vis.system.files import write_json, write_text

api = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="there is no chromium")

LONG = "a_very_long_word_without_any_space_" * 6
HERE = {"kind": "replication", "differences": ["SqueezeNet 1.1 instead of VGG-16"]}


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(tmp_path, capsys):
    """A report with every verdict and kind, long words, several figures, a run that failed."""
    claims = [claim(verdict, verdict, LONG) for verdict in ("holds", "fails", "undecided")]
    claims += [claim("none", "not measured", "no weights; here 3", **HERE), claim("own", kind="finding", control="")]
    made(tmp_path / LONG, "mine/a", claims=claims, caption=LONG, preset="small", status={"command": "vis-run " + LONG})
    made(tmp_path / "b", "mine/b", claims=[claim("b", "fails", sentence="Rare words")])
    made(tmp_path / "c", "mine/c", state="failed", status={"error": "full disk"})
    made(tmp_path / "d", "visualize")
    (tmp_path / "configs" / "experiment" / "mine").mkdir(parents=True)
    for name in "abc":
        write_text(tmp_path / "configs" / "experiment" / "mine" / f"{name}.yaml", f"# Mine, Figure {name}\n")
    return reported(capsys, tmp_path, "--config-dir", tmp_path / "configs")


WIDE = """[...document.querySelectorAll("body *")].filter(e => !e.closest(".scroll, .skip"))
    .filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 200))"""


def opened(browser, page, width=1400, **options):
    """A page of the browser; errors of its script fail the test."""
    tab = browser.new_context(viewport={"width": width, "height": 800}, **options).new_page()
    tab.on("pageerror", lambda error: pytest.fail(str(error)))
    tab.goto(page.as_uri())
    return tab


@pytest.mark.parametrize(("scheme", "width"), [("light", 1400), ("dark", 360)])
def test_axe_finds_nothing_and_only_tables_scroll_sideways(browser, page, scheme, width):
    first, second = page.parent / "b", page.parent / "d"
    write_json(first / "provenance.json", {"command": "vis-run " + LONG})
    run_page(RunFolder(first))
    for each in (page, first / "index.html", compare([first, second, first])):
        tab = opened(browser, each, width, color_scheme=scheme)
        assert (tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 27)") == (
            scheme == "dark"
        )
        assert tab.evaluate(WIDE) == [], each.name
        if width < 700 and each == page:
            tab.get_by_role("button", name="Filters").click()
        tab.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
        assert tab.evaluate(WIDE) == [], each.name
        found = axe.Axe().run(tab).response["violations"]
        assert [(v["id"], v["nodes"][0]["html"]) for v in found] == []


def test_filters_keep_their_state_in_the_address(browser, page):
    tab = opened(browser, page)
    shown = tab.locator("output")
    everything = shown.inner_text()
    tab.get_by_role("combobox", name="Verdict").select_option("fails")
    assert tab.url.endswith("#verdict=fails")
    assert tab.locator(".claim:visible .verdict").all_inner_texts() == ["fails", "fails"]
    other = opened(browser, page)
    other.goto(tab.url)
    assert other.locator("output").inner_text() == shown.inner_text()
    tab.get_by_role("searchbox").fill("rare words")
    assert tab.locator(".claim:visible").count() == 1
    assert tab.locator(".item:visible").count() == 1
    tab.get_by_role("button", name="Reset").click()
    api.expect(shown).to_have_text(everything)
    tab.locator(".card a.holds").first.click()
    api.expect(tab.locator(".claim:visible")).to_have_count(1)
    assert "kind=reproduction&verdict=holds" in tab.url
    tab.goto(page.as_uri() + "#mine-b")
    assert tab.locator("#mine-b").is_visible(), "a link to an item shows it"


def test_pictures_open_large_with_the_keyboard(browser, page):
    tab = opened(browser, page)
    viewer = tab.locator("dialog")
    tab.locator(".picture").first.press("Enter")
    assert viewer.locator(".number").inner_text() == "1 of 3"
    assert viewer.locator("img").evaluate("image => image.naturalWidth") == 1200
    tab.keyboard.press("ArrowRight")
    assert viewer.locator(".number").inner_text() == "2 of 3"
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("ArrowLeft")
    assert viewer.locator(".number").inner_text() == "3 of 3"
    tab.keyboard.press("Escape")
    api.expect(viewer).to_be_hidden()
    assert tab.evaluate("document.activeElement.className") == "picture"


def test_everything_is_readable_without_the_script(browser, page):
    tab = opened(browser, page, java_script_enabled=False)
    assert tab.locator(".claim:visible").count() == 7
    assert tab.locator(".filters").is_hidden()
    assert tab.locator(".picture").first.get_attribute("href").endswith("figure.png")


def test_print_has_the_opening_sentences_and_the_claims_only(browser, page):
    tab = opened(browser, page)
    assert len(re.findall(rb"/Type\s*/Page\b", tab.pdf(format="A4"))) == 1
    tab.emulate_media(media="print")
    assert tab.locator(".claim:visible").count() == 7
    assert tab.locator(".opening:visible").count() == 2
    assert tab.locator("figure:visible, .filters:visible, .command:visible").count() == 0
