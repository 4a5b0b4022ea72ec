"""The page in a real browser: every figure draws, toggles work, nothing is asked of a network."""

import shutil

import pytest

from rectilinear.report.page import make_report
from tests.report.conftest import block
from tests.report.test_dynamics_plot import make as make_dynamics
from tests.report.test_evaluation_table import make_pair

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not BROWSER, reason="needs Chromium")
QUIET = ("--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync")
HOSTILE = "<img src=https://example.org/a.png onerror=alert(1)>"


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium."""
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        yield (started := playwright.chromium.launch(executable_path=BROWSER, args=QUIET))
        started.close()


@pytest.fixture(scope="module")
def file(profile, make_profile, tmp_path_factory):
    """The page of some results."""
    blocks = [block(index, (0.999, 0.99, 0.001), (0.7, 0.6, 0.02), sinks=2) for index in range(30)]
    other = make_profile(*blocks, name=HOSTILE, source=HOSTILE)
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(
        make_report(profile, other, make_dynamics([0, 10, 500], 3), make_pair()).to_html(), encoding="utf-8"
    )
    return path


@pytest.fixture
def open_page(browser, file):
    """A function that opens the page, and keeps what the browser complains of and asks for."""

    def open_it(width, scheme):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.complaints, page.asked = [], []
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(file.as_uri())
        # Asked from outside: the page's policy forbids code that is made of strings, as a wait inside would be.
        expect = pytest.importorskip("playwright.sync_api").expect
        expect(page.locator(".plot:not(.js-plotly-plot)")).to_have_count(0, timeout=30_000)
        return page

    return open_it


def traces(page, place=0):
    """What plotly was given to draw in a panel."""
    return page.evaluate(
        "n => document.querySelectorAll('.plot')[n].data.map(t => ({y: t.y, z: t.z, text: t.hovertext}))", place
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_every_figure_draws_without_a_network(open_page, width, scheme):
    page = open_page(width, scheme)
    assert page.complaints == []
    assert [url.partition(":")[0] for url in page.asked] == ["file"]
    plots = page.locator(".plot")
    assert plots.count() >= 10
    for place in range(plots.count()):
        marks = plots.nth(place).locator(".scatterlayer path, .heatmaplayer image, .heatmaplayer path")
        assert marks.count()
        box = plots.nth(place).bounding_box()
        assert box["width"] > 250
        assert box["x"] + box["width"] <= width
    assert page.evaluate("document.documentElement.scrollWidth") == width  # only tables scroll aside
    paper, ink = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    assert (sum(map(int, paper[4:-1].split(","))) > sum(map(int, ink[4:-1].split(",")))) is (scheme == "light")


def test_scales_and_lines_are_toggled(open_page):
    page = open_page(1400, "light")
    figure = page.locator("figure").nth(1)  # of the first profile alone
    place = page.locator("figure").nth(0).locator(".plot").count()
    scores = traces(page, place)
    scale = figure.get_by_role("button", name="log₁₀")
    assert scale.get_attribute("aria-pressed") == "false"
    scale.click()
    assert scale.get_attribute("aria-pressed") == "true"
    drawn = traces(page, place)
    held_out = next(n for n, trace in enumerate(scores) if trace["text"] and "0.81" in trace["text"][0])
    assert scores[held_out]["y"] == [0.81, 0.82, 0.83]
    assert drawn[held_out]["y"] == pytest.approx([0.72125, 0.74473, 0.76955], abs=1e-5)  # -log10(1 - score)
    assert drawn[held_out]["text"] == scores[held_out]["text"]  # what is read is the score
    scale.click()
    key = figure.get_by_role("button", name="in sample")
    key.click()
    assert len(traces(page, place)) == len(scores) - 1
    key.click()
    assert traces(page, place) == scores


def test_the_pointer_reads_values(open_page):
    page = open_page(1400, "light")
    plot = page.locator("figure").nth(1).locator(".plot").first
    plot.scroll_into_view_if_needed()
    point = plot.locator(".scatterlayer .points path").first.bounding_box()
    page.mouse.move(point["x"] + point["width"] / 2, point["y"] + point["height"] / 2)
    plot.locator(".hoverlayer .hovertext").wait_for()
    assert "block 0" in plot.locator(".hoverlayer").text_content()


def test_the_theme_can_be_chosen_and_paper_is_light(open_page):
    page = open_page(1400, "dark")
    theme = "document.documentElement.dataset.theme"
    assert page.evaluate(theme) == "dark"
    page.get_by_role("button", name="Light or dark").click()
    assert page.evaluate(theme) == "light"
    page.get_by_role("button", name="Light or dark").click()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(theme) == "light"
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(theme) == "dark"


def test_a_name_that_is_markup_is_a_name(open_page):
    page = open_page(1400, "light")
    assert page.locator("img").count() == 0
    assert page.get_by_role("heading", name=HOSTILE).count() >= 1
