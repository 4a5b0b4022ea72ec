"""The page in a real browser: every figure draws, toggles work, nothing is asked of a network."""

import shutil
from itertools import combinations

import pytest

from rectilinear.report.page import make_report
from tests.report.conftest import block
from tests.report.test_dynamics_plot import make as make_dynamics
from tests.report.test_evaluation_table import make_pair
from tests.report.test_pareto import evaluations

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not BROWSER, reason="needs Chromium")
QUIET = ("--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync")
HOSTILE = "<img src=a.png onerror=alert(1)>"


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
    middles = [(17.9, 18.1), (16.9, 17.1), (15.9, 16.1)]
    results = [profile, other, make_dynamics([0, 10, 500], 3), make_pair(), *evaluations(middles)]
    # What the pair is of is not the text of the others.
    results[3] = results[3].model_copy(update={"data": results[3].data.model_copy(update={"fingerprint": "a" * 64})})
    path.write_text(make_report(*results).to_html(), encoding="utf-8")
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


def own_figure(page):
    """The figure of the first profile alone: it, its number, and that of its first plot."""
    number, plot = page.evaluate(
        "() => { const section = [...document.querySelectorAll('main > section:not(#summary)')].find(s => "
        "s.querySelector('h2').textContent === 'How linear each block is: tiny-model'); "
        "const of = name => [...document.querySelectorAll(name)].indexOf(section.querySelector(name)); "
        "return [of('figure'), of('.plot')] }"
    )
    return page.locator("figure").nth(number), number, plot


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
        for axis in ("xtick", "ytick"):
            labels = plots.nth(place).locator(f".{axis} text").all_text_contents()
            assert len({*labels}) == len(labels), labels
    assert page.evaluate("document.documentElement.scrollWidth") == width  # only tables scroll aside
    paper, ink = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    assert (sum(map(int, paper[4:-1].split(","))) > sum(map(int, ink[4:-1].split(",")))) is (scheme == "light")


def test_scales_and_lines_are_toggled(open_page):
    page = open_page(1400, "light")
    figure, _, place = own_figure(page)
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
    plot = own_figure(page)[0].locator(".plot").first
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


def test_keys_have_the_marks_of_their_lines(open_page):
    page = open_page(1400, "light")
    figure, number, _ = own_figure(page)
    drawn = page.evaluate(
        "n => [...document.querySelectorAll('figure')[n].querySelectorAll('.plot')].flatMap(plot => "
        "plot.data.filter(t => t.hovertext && t.marker && t.marker.symbol).map(t => "
        "[t.hovertext[0].split('<br>')[0], t.marker.symbol]))",
        number,
    )
    expected = {"square": "square", "circle": "circle", "diamond": "diamond", "triangle-up": "triangle"}
    assert {symbol for _, symbol in drawn} == {*expected}
    for label, symbol in drawn:
        key = figure.get_by_role("button", name=label, exact=True)
        assert key.locator(f"svg g.{expected[symbol]}").count() == 1
        assert key.locator("svg g > *").count() == 1
    shapes = {
        key.locator("svg g > *").evaluate("e => e.outerHTML")
        for key in figure.locator("button.key").all()
        if key.locator("svg g").count()
    }
    assert len(shapes) == 4


def test_marks_of_sinks_stand_on_the_edge_whatever_the_scale(open_page):
    page = open_page(1400, "light")
    figure, number, _ = own_figure(page)
    edge = (
        "n => { const plot = document.querySelectorAll('figure')[n].querySelector('.plot'); "
        "const t = plot.data.find(t => t.yaxis === 'y2'); "
        "const area = plot.querySelector('.nsewdrag').getBoundingClientRect(); "
        "const marks = [...plot.querySelectorAll('.xy2 .points path, .xy2 path.point')].map(e => "
        "e.getBoundingClientRect()); return [t.hovertext, marks.map(m => (m.top + m.bottom) / 2 - area.bottom)] }"
    )
    for _ in range(2):
        told, away = page.evaluate(edge, number)
        assert told == ["sinks carry 1% or more<br>block 1"]  # and no value
        assert len(away) == 1
        assert abs(away[0]) < 3
        figure.get_by_role("button", name="log₁₀").click()


@pytest.mark.parametrize("width", [400, 1400])
def test_names_of_models_are_within_their_plots_and_apart(open_page, width):
    page = open_page(width, "light")
    page.wait_for_timeout(300)  # names are placed once a plot is drawn
    found = page.evaluate(
        "() => [...document.querySelectorAll('.plot')].filter(p => p.querySelector('.textpoint')).map(p => { "
        "const box = e => { const b = e.getBoundingClientRect(); return [b.left, b.right, b.top, b.bottom] }; "
        "return [box(p.querySelector('.nsewdrag')), [...p.querySelectorAll('.textpoint text')].map(box)] })"
    )
    assert sorted(len(names) for _, names in found) == [2, 4, 4]
    for panel, names in found:
        for left, right, top, bottom in names:
            assert panel[0] <= left < right <= panel[1]
            assert panel[2] <= top < bottom <= panel[3]
        for one, two in combinations(names, 2):
            assert one[1] <= two[0] or two[1] <= one[0] or one[3] <= two[2] or two[3] <= one[2]


def test_contents_lead_everywhere_and_back(open_page):
    page = open_page(400, "light")
    contents = page.get_by_role("navigation", name="Contents")
    links = contents.get_by_role("link")
    targets = links.evaluate_all("links => links.map(link => link.getAttribute('href'))")
    assert len(targets) == len({*targets}) > page.locator("main > section").count()
    assert all(page.locator(target).count() == 1 for target in targets)
    headings = page.locator("main > section:not(#summary) > h2").all_text_contents()
    assert len(headings) == len({*headings})
    assert all(contents.get_by_role("link", name=heading, exact=True).count() == 1 for heading in headings)
    contents.get_by_role("link", name="what made it").last.click()
    assert page.evaluate("scrollY") > 1000
    page.get_by_role("link", name="Back to the top").click()
    page.wait_for_timeout(100)
    assert page.evaluate("scrollY") < 100


def test_tables_that_go_on_to_the_right_say_so(open_page):
    hints = "[...document.querySelectorAll('.scroll')].filter(e => e.checkVisibility()).map(e => "
    hints += "[e.scrollWidth > e.clientWidth + 1, !e.previousElementSibling.hidden, e.classList.contains('more')])"
    narrow = open_page(400, "light")
    narrow.wait_for_timeout(100)
    found = narrow.evaluate(hints)
    assert any(wider for wider, *_ in found)
    assert all(wider == said == faded for wider, said, faded in found)
    narrow.evaluate("document.querySelectorAll('details').forEach(e => (e.open = true))")
    narrow.wait_for_timeout(100)
    opened = narrow.evaluate(hints)
    assert len(opened) > len(found)
    assert all(wider == said for wider, said, _ in opened)
    narrow.evaluate("document.querySelectorAll('.scroll').forEach(e => (e.scrollLeft = e.scrollWidth))")
    narrow.wait_for_timeout(100)
    assert not any(faded for *_, faded in narrow.evaluate(hints))
    assert not any(said for _, said, _ in open_page(2400, "light").evaluate(hints))
